"""Several workers call upstream under one key: together they keep to its limits, as it counts them itself."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import Team, Tollgate, run_simulator, run_tollgate
from tests.support.workers import figure, until_all_serve

KEY = "sk-upstream-limited"
TOKENS = 100
# One that a busy machine keeps: what is shown is how far two workers keep to what Redis tells them.
PATIENT = "[limits]\nredis_deadline_ms = 10000\n"


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


def ask(gateway: Tollgate, team: Team, number: int) -> int:
    """A request that upstream takes for `TOKENS`, over a connection of its own: any of the workers may be dealt it."""
    with requests.Session() as session:
        session.trust_env = False
        body = {
            "model": "gpt-4o-mini",
            "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": f"echo:{number:03} {'word ' * 300}"}],
        }
        headers = {**team.headers, "Connection": "close"}
        return session.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers, timeout=60).status_code


def crowd(gateway: Tollgate, team: Team, count: int) -> Counter[int]:
    with ThreadPoolExecutor(count) as pool:
        return Counter(pool.map(lambda number: ask(gateway, team, number), range(count)))


def test_requests_of_two_workers_are_within_the_limit_of_their_key(redis, tmp_path):
    settings = f"""
redis_url = "{redis.url}"
[server]
workers = 2
{PATIENT}
[upstream]
requests_per_minute = 120
pacing_deadline_seconds = 4
max_attempts = 1
"""
    with run_simulator(tmp_path / "simulator", KEY, "--rpm", "120") as upstream:
        place = tmp_path / "gateway"
        with run_tollgate(place, upstream.base_url, KEY, settings=settings) as gateway:
            until_all_serve(gateway, 2)
            team = gateway.add_team("paced")
            begun = time.monotonic()
            ended = crowd(gateway, team, 60)
            passed = upstream.idle_stats()
            seconds = time.monotonic() - begun
        assert set(ended) == {200, 503}, "60 at once are twice of what upstream takes, which nobody was told"
        assert set(passed["by_status"]) == {"200"}
        assert passed["requests"] == ended[200] <= 2 * 2 + seconds * 2, "two bursts of two seconds, and two a second"
        assert ended[200] >= 4


def test_tokens_of_two_workers_come_out_of_one_bucket(redis, tmp_path):
    """There is no pace here: what holds both to the limit is the bucket they share."""
    settings = f"""
redis_url = "{redis.url}"
[server]
workers = 2
{PATIENT}
[upstream]
tokens_per_minute = 6_000
pacing_deadline_seconds = 6
max_attempts = 1
"""
    with run_simulator(tmp_path / "simulator", KEY, "--tpm", "6000") as upstream:
        place = tmp_path / "gateway"
        with run_tollgate(place, upstream.base_url, KEY, settings=settings) as gateway:
            until_all_serve(gateway, 2)
            team = gateway.add_team("sharing")
            begun = time.monotonic()
            ended = crowd(gateway, team, 90)
            stats = upstream.idle_stats()
            seconds = time.monotonic() - begun
            waited = figure(gateway, "tollgate_queue_wait_seconds_count", queue="upstream")
        assert set(stats["by_status"]) == {"200"}, "upstream has refused nobody"
        assert set(ended) == {200, 503}
        used = stats["input_tokens"] + stats["output_tokens"]
        assert used <= 6_000 + seconds * 100
        assert waited > 0
        names = redis.ask("KEYS", "*upstream:openai*")
        assert names == ["tollgate:limit:1:{upstream:openai}team"], "one for all, of a name that no team can have"


def test_while_redis_is_away_the_limiters_policy_decides(tmp_path):
    settings = """
[server]
workers = 2
[limits]
when_redis_is_away = "{policy}"
redis_deadline_ms = 10_000
[upstream]
requests_per_minute = 6_000
max_attempts = 1
"""
    statuses = {}
    with run_simulator(tmp_path / "simulator", KEY) as upstream:
        for policy in ("open", "closed"):
            with RedisServer() as gone:
                text = f'redis_url = "{gone.url}"\n' + settings.replace("{policy}", policy)
                with run_tollgate(tmp_path / policy, upstream.base_url, KEY, settings=text) as gateway:
                    until_all_serve(gateway, 2)
                    team = gateway.add_team(f"team-{policy}")
                    assert ask(gateway, team, 0) == 200
                    gone.kill()
                    statuses[policy] = Counter(ask(gateway, team, number) for number in range(1, 9))
    assert statuses == {"open": {200: 8}, "closed": {503: 8}}
