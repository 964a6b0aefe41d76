"""Workers that share answers: what one has fetched the others have, and what is being fetched they wait for."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_tollgate
from tests.support.workers import figure, until_all_serve, workers_of

SAME = {"model": "gpt-4o-mini", "temperature": 0, "max_tokens": 8}
SETTINGS = "[server]\nworkers = 2\n[limits]\nredis_deadline_ms = 10000\n[cache]\nredis_deadline_ms = 10000\n"


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture(scope="module")
def answers():
    """A Redis for the cache."""
    with RedisServer("maxmemory 50mb", "maxmemory-policy allkeys-lru") as running:
        yield running


@pytest.fixture(scope="module")
def gateway(simulator, redis, answers, tmp_path_factory):
    place = tmp_path_factory.mktemp("workers")
    settings = f'cache_redis_url = "{answers.url}"\n{SETTINGS}'
    options = ("--redis-url", redis.url)
    with run_tollgate(place, simulator.base_url, simulator.key, settings=settings, options=options) as running:
        until_all_serve(running, 2)
        yield running


def ask(gateway, team, question, **headers):
    """One deterministic completion over a connection of its own, so that any of the workers may be dealt it."""
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(
            f"{gateway.base_url}/chat/completions",
            json=SAME | {"messages": [{"role": "user", "content": question}]},
            headers={**team.headers, "Connection": "close", **headers},
            timeout=30,
        )
    assert answer.status_code == 200, answer.text
    return answer


def said(answer):
    """What the cache said, without the rest of a life."""
    return answer.headers["Cache-Status"].partition("; ttl")[0]


def test_what_one_worker_has_fetched_all_have(gateway, upstream):
    team = gateway.add_team("sharing")
    told = [ask(gateway, team, "Who has it?") for _ in range(24)]
    assert Counter(map(said, told)) == {"tollgate; fwd=uri-miss; stored": 1, "tollgate; hit": 23}
    assert len({answer.json()["choices"][0]["message"]["content"] for answer in told}) == 1
    assert upstream.idle_stats()["requests"] == 1
    assert len(workers_of(gateway)) == 2


def test_what_is_being_fetched_by_one_worker_the_others_wait_for(gateway, upstream):
    team = gateway.add_team("waiting")
    slow = {"x-simulate-delay-ms": "400"}
    for number in range(4):
        asking = partial(ask, gateway, team, f"Who waits? {number}", **slow)
        with ThreadPoolExecutor(16) as pool:
            told = [each.result() for each in [pool.submit(asking) for _ in range(16)]]
        kinds = Counter(map(said, told))
        assert kinds["tollgate; fwd=uri-miss; stored"] == 1, kinds
        assert upstream.idle_stats()["requests"] == number + 1
    assert figure(gateway, "tollgate_cache_failures_total") == 0


def test_no_team_is_given_anothers_answer(gateway, upstream):
    one, other = gateway.add_team("one"), gateway.add_team("other")
    assert said(ask(gateway, one, "Whose is it?")) == "tollgate; fwd=uri-miss; stored"
    assert said(ask(gateway, other, "Whose is it?")) == "tollgate; fwd=uri-miss; stored"
    assert said(ask(gateway, one, "Whose is it?")) == "tollgate; hit"


def test_without_its_redis_nothing_is_a_hit_and_nothing_else_is_wrong(gateway, upstream, answers):
    team = gateway.add_team("alone")
    ask(gateway, team, "Is it there?")
    answers.kill()
    eventually(lambda: figure(gateway, "tollgate_degraded", store="cache") == 1, what="tollgate_degraded")
    told = [said(ask(gateway, team, "Is it there?")) for _ in range(6)]
    assert told == ["tollgate; fwd=uri-miss"] * 6
    assert upstream.idle_stats()["requests"] == 7
    assert figure(gateway, "tollgate_degraded", store="limiter") == 0
    assert figure(gateway, "tollgate_cache_failures_total", operation="get", reason="away") >= 6
    answers.start()
    eventually(lambda: figure(gateway, "tollgate_degraded", store="cache") == 0, what="no tollgate_degraded")
    eventually(lambda: said(ask(gateway, team, "Is it there?")) == "tollgate; hit", what="a hit")
