"""A hundred that ask the same at once, over four processes: upstream is asked once, and once more for one that dies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import Team, Tollgate, eventually, run_tollgate
from tests.support.workers import figure, until_all_serve, workers_of

CALLERS, WORKERS = 100, 4
SETTINGS = f"[server]\nworkers = {WORKERS}\n[limits]\nredis_deadline_ms = 5000\n[cache]\nredis_deadline_ms = 5000\n"
DELAY_MS = 3_000
"""Long enough for everybody to have asked."""


@pytest.fixture
def gateway(simulator, tmp_path) -> Iterator[Tollgate]:
    with RedisServer() as redis:
        options = ("--redis-url", redis.url)
        with run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=SETTINGS, options=options) as running:
            until_all_serve(running, WORKERS)
            yield running


def ask(gateway: Tollgate, team: Team, question: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.post(
            f"{gateway.base_url}/chat/completions",
            json={"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": question}]},
            headers={**team.headers, "Connection": "close", "x-simulate-delay-ms": str(DELAY_MS)},
            timeout=60,
        )


def all_ask(pool: ThreadPoolExecutor, gateway: Tollgate, team: Team, question: str) -> list[Future[requests.Response]]:
    """Have everybody ask; returns when all of them are being served."""
    asked = [pool.submit(ask, gateway, team, question) for _ in range(CALLERS)]
    eventually(lambda: figure(gateway, "tollgate_in_flight_requests") == CALLERS, what="everybody in flight")
    return asked


def test_a_hundred_over_four_processes_are_one_call_and_one_more_when_its_process_dies(gateway, upstream):
    team = gateway.add_team("herd")
    port = int(upstream.base_url.removesuffix("/v1").rpartition(":")[2])
    with ThreadPoolExecutor(CALLERS) as pool:
        asked = all_ask(pool, gateway, team, "Who dies?")
        # Nobody else has asked upstream anything yet: who has a connection to it leads.
        (leader,) = [
            worker
            for worker in workers_of(gateway)
            if any(each.raddr and each.raddr.port == port for each in worker.net_connections())
        ]
        assert figure(gateway, "tollgate_cache_requests_total") == 0, "nobody has an answer yet"
        leader.kill()
        wait(asked)
        told = [each.result() for each in asked if each.exception() is None]
        assert len({answer.content for answer in told}) == 1
        assert {answer.status_code for answer in told} == {200}
        assert 0 < len(told) < CALLERS, "who was served by the one that died has no answer"
        assert upstream.idle_stats()["requests"] == 2

        until_all_serve(gateway, WORKERS + 1)
        before = len(told)
        told = [each.result() for each in all_ask(pool, gateway, team, "Who asks?")]
        assert Counter(answer.status_code for answer in told) == {200: CALLERS}
        assert len({answer.content for answer in told}) == 1
        assert len({answer.headers["x-request-id"] for answer in told}) == CALLERS
        said = Counter(answer.headers["Cache-Status"].partition("; ttl")[0] for answer in told)
        assert said["tollgate; fwd=uri-miss; stored"] == 1, said
        assert upstream.idle_stats()["requests"] == 3
    outcomes = Counter(event["outcome"] for event in gateway.events(team.name, before + CALLERS + 1))
    assert outcomes == {"interrupted": 1, "ok": 2, "cached": before + CALLERS - 2}
