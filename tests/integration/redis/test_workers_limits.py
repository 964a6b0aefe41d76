"""Several worker processes and servers hold a team to one limit, and hear of changes."""

from __future__ import annotations

import subprocess
import time

import pytest

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import COMMAND, clean_environment, eventually, run_tollgate
from tests.support.workers import ask, burst, figure, until_all_serve

FREE = 20
# One that a busy machine keeps: who does not hear of Redis in time would decide by itself.
PATIENT = "[limits]\nredis_deadline_ms = 10000\n"


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def pair(simulator, redis, tmp_path_factory):
    """Two servers of two workers each on one data directory; its settings name Redis, as `tollgate keys` needs."""
    place = tmp_path_factory.mktemp("pair")
    settings = f'redis_url = "{redis.url}"\n[server]\nworkers = 2\nreplicas = 2\n{PATIENT}'
    with (
        run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as first,
        run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as second,
    ):
        for each in (first, second):
            until_all_serve(each, 2)
        yield first, second


def admits_what_one_would(gateways, team):
    began = time.monotonic()
    ended = burst(gateways, team, 60)
    # One request more for every three seconds that the burst took.
    assert FREE <= ended[200] <= FREE + (time.monotonic() - began) * FREE / 60
    assert ended[200] + ended[429] == 60


def test_four_workers_admit_what_one_would(simulator, redis, tmp_path):
    options = ("--workers", "4", "--redis-url", redis.url)
    with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=PATIENT, options=options) as gateway:
        until_all_serve(gateway, 4)
        team = gateway.add_team("four", "free")
        admits_what_one_would([gateway], team)
        # A request is counted a moment after it is answered.
        eventually(lambda: figure(gateway, "tollgate_requests_total", team="four", outcome="ok") >= FREE)
        assert figure(gateway, "tollgate_degraded_decisions_total") == 0


def test_two_servers_admit_what_one_would_and_keep_one_ledger(pair):
    team = pair[0].add_team("two", "free")
    admits_what_one_would(pair, team)
    told = []

    def all_are_counted():
        told[:] = [figure(each, "tollgate_requests_total", team="two") for each in pair]
        return sum(told) == 60

    eventually(all_are_counted, what="60 requests counted")
    assert min(told) > 0, "each speaks for its own workers"
    admitted = sum(figure(each, "tollgate_requests_total", team="two", outcome="ok") for each in pair)
    events = pair[1].events("two", int(admitted))
    assert len(events) == admitted
    assert len({event["event_id"] for event in events}) == admitted


def until_no_worker_takes(gateways, team):
    def refused():
        return all(ask(gateway, team).status_code == 401 for gateway in gateways for _ in range(6))

    # What workers know of a key they trust for ten seconds when nobody tells them.
    eventually(refused, seconds=7, what="a key revoked everywhere")


def test_a_revocation_is_announced_to_every_worker(pair, redis):
    team = pair[0].add_team("announced")
    assert burst(pair, team, 16) == {200: 16}
    eventually(lambda: redis.ask("PUBSUB", "NUMSUB", "tollgate:changes") == ["tollgate:changes", 4])
    before = redis.calls("publish")
    pair[0].cli("keys", "revoke", team.kid)
    assert redis.calls("publish") == before + 1
    until_no_worker_takes(pair, team)


def test_a_revocation_that_nobody_announces_is_seen_in_the_database(pair, redis):
    team = pair[0].add_team("unannounced")
    assert burst(pair, team, 16) == {200: 16}
    before = redis.calls("publish")
    place = ("--data-dir", str(pair[0].data_dir))
    done = subprocess.run(
        (*COMMAND, "keys", "revoke", team.kid, *place), env=clean_environment(), check=False, timeout=60
    )
    assert done.returncode == 0
    assert redis.calls("publish") == before
    until_no_worker_takes(pair, team)


def test_a_change_of_tier_or_limits_is_announced_and_holds_in_every_worker(pair, redis):
    team = pair[0].add_team("changed", "free")

    def limits_told():
        answers = [ask(gateway, team) for gateway in pair for _ in range(6)]
        return {answer.headers["x-ratelimit-limit-requests"] for answer in answers}

    assert limits_told() == {"20"}
    for change, limit in (("--tier=payg", "60"), ("--requests-per-minute=75", "75"), ("--tier=free", "75")):
        before = redis.calls("publish")
        pair[0].cli("teams", "set", "changed", change)
        assert redis.calls("publish") == before + 1
        eventually(lambda limit=limit: limits_told() == {limit}, seconds=7, what=f"{limit} everywhere")


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        (("--workers", "2"), {}),
        ((), {"TOLLGATE_WORKERS": "2"}),
        ((), {"TOLLGATE_REPLICAS": "2"}),
    ],
)
def test_limits_that_nobody_shares_are_refused(tmp_path, options, environment):
    done = subprocess.run(
        (*COMMAND, "serve", "--data-dir", str(tmp_path), "--port", "0", "--admin-port", "0", *options),
        env=clean_environment(OPENAI_API_KEY="sk-upstream", **environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {1, 2}
    assert "TOLLGATE_REDIS_URL" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
