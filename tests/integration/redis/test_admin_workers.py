"""The admin API beside several workers: one listener speaks for all, and all go by what it changes."""

from __future__ import annotations

import re

import pytest
import requests

from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import Team, eventually, run_tollgate
from tests.support.workers import ask, until_all_serve, workers_of

WORKERS = 2
DEALT = 12
"""Connections that leave no worker out: one in four thousand times, one of two is."""


@pytest.fixture(scope="module")
def gateway(simulator, tmp_path_factory):
    with RedisServer() as redis:
        # Deadlines that a busy machine keeps: every limit is Redis's to hold.
        settings = "[limits]\nredis_deadline_ms = 10000\n"
        options = ("--workers", str(WORKERS), "--redis-url", redis.url)
        place = tmp_path_factory.mktemp("admin-workers")
        with run_tollgate(place, simulator.base_url, simulator.key, settings=settings, options=options) as running:
            until_all_serve(running, WORKERS)
            yield running


@pytest.fixture
def admin(gateway):
    with requests.Session() as session:
        session.trust_env = False

        def call(method, path, body=None, token=None):
            token = token or (gateway.data_dir / "admin_token").read_text().strip()
            headers = {"Authorization": f"Bearer {token}"}
            url = f"{gateway.operations_url}/admin/v1{path}"
            return session.request(method, url, json=body, headers=headers, timeout=30)

        yield call


def answers(gateway, team):
    return {ask(gateway, team).status_code for _ in range(DEALT)}


def test_every_worker_goes_by_a_change(gateway, admin):
    def audited():
        return [line["actor"] for line in admin("GET", "/audit").json()["data"]]

    before = len(audited())
    assert admin("POST", "/teams", {"name": "growth", "tier": "unlimited"}).status_code == 201
    issued = admin("POST", "/keys", {"team": "growth"}).json()
    team = Team("growth", issued["key"], issued["id"])
    assert answers(gateway, team) == {200}
    assert admin("PATCH", "/teams/growth", {"models": ["gpt-5"]}).status_code == 200
    eventually(lambda: answers(gateway, team) == {404}, what="the list of models everywhere")
    assert admin("PATCH", "/teams/growth", {"models": None}).status_code == 200
    eventually(lambda: answers(gateway, team) == {200}, what="all models everywhere")
    assert admin("POST", f"/keys/{team.kid}/revoke").json()["state"] == "revoked"
    eventually(lambda: answers(gateway, team) == {401}, what="the revocation everywhere")
    assert audited()[before:] == ["admin-api"] * 5


def test_the_supervisor_alone_has_the_listener_and_follows_the_token(gateway, admin):
    listening = {
        connection.laddr.port
        for process in workers_of(gateway)
        for connection in process.net_connections("tcp")
        if connection.status == "LISTEN"
    }
    public, operations = (int(re.search(r":(\d+)", url[8:])[1]) for url in (gateway.base_url, gateway.operations_url))
    assert listening == {public}
    assert operations != public
    old = (gateway.data_dir / "admin_token").read_text().strip()
    new = gateway.cli("admin", "token", "--rotate").strip()
    assert admin("GET", "/teams", token=old).status_code == 401
    assert admin("GET", "/teams", token=new).status_code == 200
    assert old not in gateway.stderr
    assert new not in gateway.stderr


def test_a_team_sees_its_shared_limits_through_any_worker(gateway, admin):
    admin("POST", "/teams", {"name": "seen", "requests_per_minute": 1, "request_capacity": 50})
    issued = admin("POST", "/keys", {"team": "seen", "max_parallel": 40}).json()
    team = Team("seen", issued["key"], issued["id"])
    assert [ask(gateway, team).status_code for _ in range(6)] == [200] * 6
    told = []
    for _ in range(DEALT):
        with requests.Session() as session:
            session.trust_env = False
            headers = {**team.headers, "Connection": "close"}
            told.append(session.get(f"{gateway.base_url}/tollgate/me", headers=headers, timeout=10).json())
    remaining = {each["limits"][0]["requests"]["remaining"] for each in told}
    assert remaining <= {44, 45}, "what any worker admitted, all of them know"
    assert {each["limits"][1]["max_parallel"] for each in told} == {40}
