"""A purge is gone by in every worker, whatever each of them has at hand."""

from __future__ import annotations

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import eventually, run_tollgate
from tests.support.workers import figure, until_all_serve

MODEL = "gpt-4o-mini"
WORKERS = 3


@pytest.fixture(scope="module")
def gateway(simulator, tmp_path_factory):
    with RedisServer() as redis:
        # Deadlines that a busy machine keeps: every answer that is kept is found.
        patient = "[limits]\nredis_deadline_ms = 10000\n[cache]\nredis_deadline_ms = 10000\n"
        settings = f'redis_url = "{redis.url}"\n[server]\nworkers = {WORKERS}\n{patient}'
        place = tmp_path_factory.mktemp("purge")
        with run_tollgate(place, simulator.base_url, simulator.key, settings=settings) as running:
            until_all_serve(running, WORKERS)
            yield running


def told(gateway, team, model=MODEL):
    """Which answer a worker gives, over a connection of its own: any of them may be dealt it."""
    body = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": "Keep this."}]}
    with requests.Session() as session:
        session.trust_env = False
        headers = {**team.headers, "Connection": "close"}
        answer = session.post(f"{gateway.base_url}/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    return answer.json()["id"]


def many(gateway, team, model=MODEL):
    """Answers of more calls than would all be dealt to one worker, but for one time in many thousand."""
    return {told(gateway, team, model) for _ in range(8 * WORKERS)}


@pytest.mark.parametrize("named", [(), ("--model", MODEL)], ids=["all", "model"])
def test_no_worker_gives_an_old_answer_again(gateway, named):
    team, other = gateway.add_team(f"team{len(named)}"), gateway.add_team(f"other{len(named)}")
    (old,) = many(gateway, team)
    (elsewhere,), (theirs,) = many(gateway, team, "gpt-4o"), many(gateway, other)
    asked = figure(gateway, "tollgate_upstream_duration_seconds_count")
    gateway.cli("cache", "purge", "--team", team.name, *named)
    # Nobody need be told: then the bound is ten seconds.
    eventually(lambda: old not in many(gateway, team), seconds=10, what="a purge in every worker")
    (new,) = many(gateway, team)
    assert new != old
    assert (many(gateway, team, "gpt-4o") == {elsewhere}) is bool(named)
    assert many(gateway, other) == {theirs}
    # Each answer was asked for once again, whatever the number of workers.
    assert figure(gateway, "tollgate_upstream_duration_seconds_count") - asked == (1 if named else 2)
