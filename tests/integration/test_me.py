"""`GET /v1/tollgate/me` on a real server, after real requests."""

from __future__ import annotations

import re

import pytest
import requests

from tests.support.days import day_that_lasts
from tests.support.tollgate_process import eventually

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Who am I?"}], "temperature": 0}


@pytest.fixture
def me(gateway, session):
    def get(team, path="/tollgate/me", method="GET", **headers):
        return session.request(method, f"{gateway.base_url}{path}", headers={**team.headers, **headers}, timeout=30)

    return get


def endpoint_count(gateway, team, endpoint, outcome):
    wanted = rf'^tollgate_requests_total{{endpoint="{endpoint}",model="",outcome="{outcome}",team="{team}"}} (\S+)$'
    found = re.search(wanted, gateway.metrics(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_what_was_used_is_told_to_its_team_alone(gateway, me, call, new_team, upstream):
    day_that_lasts()
    team = new_team("free", requests_per_minute=1, request_capacity=10)
    other = new_team("free")
    assert [call(ASK, by=team).status_code for _ in range(3)] == [200] * 3
    gateway.events(team.name, 3)
    sent = upstream.idle_stats()["requests"]

    def told():
        answer = me(team).json()
        return answer if answer["usage"]["today"]["requests"] >= 3 else None

    mine = eventually(told, what="the usage")
    assert (mine["team"], mine["key"]["id"], mine["base_url"]) == (team.name, team.kid, gateway.base_url)
    (room,) = mine["limits"]
    assert room["requests"]["limit"] == 1
    assert room["requests"]["remaining"] in {7, 8}
    today, month = mine["usage"]["today"], mine["usage"]["month"]
    assert (today["cached"], today["requests"]) == (2, 3)
    assert today["cost_pico_usd"] > 0
    assert month["cost_pico_usd"] >= today["cost_pico_usd"]
    assert today["saved_pico_usd"] == 2 * today["cost_pico_usd"]
    assert me(other).json()["usage"]["month"]["requests"] == 0
    assert other.name not in me(team).text
    assert team.name not in me(other).text
    assert upstream.idle_stats()["requests"] == sent, "nothing of it goes upstream"
    assert len(gateway.events(team.name, 3)) == 3
    assert endpoint_count(gateway, team.name, "me", "ok") >= 2
    answer = me(team)
    assert answer.headers["Cache-Control"] == "private, no-store"
    line = gateway.logged(answer.headers["x-request-id"])
    assert (line["endpoint"], line["team"], line["status"]) == ("me", team.name, 200)
    assert team.key not in answer.text


def test_who_has_used_up_its_limit_can_still_look(me, call, new_team):
    team = new_team(requests_per_minute=1, request_capacity=1)
    assert call(ASK | {"temperature": 1}, by=team).status_code == 200
    assert call(ASK | {"temperature": 1}, by=team).status_code == 429
    answers = [me(team) for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[-1].json()["limits"][0]["requests"]["remaining"] == 0


def test_strangers_and_other_ways_of_asking(gateway, me, team):
    for headers in ({}, {"Authorization": "Bearer sk-tg_nobody"}):
        with requests.Session() as stranger:
            stranger.trust_env = False
            answer = stranger.get(f"{gateway.base_url}/tollgate/me", headers=headers, timeout=30)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "invalid_request_error"
    for method in ("POST", "DELETE", "PUT"):
        assert me(team, method=method).status_code == 405
    assert me(team, "/tollgate/me/").status_code == 404
    assert me(team, "/tollgate/me?team=other").json()["team"] == team.name
