"""Keys: issued, bounded and ended beside the running server."""

from __future__ import annotations

import json
import time

import pytest

from tests.support.tollgate_process import Team, eventually

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "echo:x"}]}


@pytest.fixture
def issue(gateway, team):
    def new(*options):
        issued = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json", *options))
        return Team(team.name, issued["key"], issued["id"])

    return new


def test_a_key_of_the_command_line_opens_at_once(call, issue):
    assert call(ASK, by=issue("--label", "ci", "--expires", "90d")).status_code == 200


def test_a_revoked_key_ends_within_a_second(gateway, call, team, issue):
    other = issue()
    assert call(ASK).status_code == call(ASK, by=other).status_code == 200
    gateway.cli("keys", "revoke", team.kid)
    # What is known of a key is trusted for ten seconds when nobody tells of a change.
    eventually(lambda: call(ASK).status_code == 401, seconds=8, what="a refusal")
    assert call(ASK).json()["error"]["code"] == "invalid_api_key"
    assert call(ASK, by=other).status_code == 200
    assert next(row for row in _listed(gateway, team) if row["id"] == team.kid)["state"] == "revoked"


def test_a_rotated_key_goes_on_through_its_overlap(gateway, call, team):
    printed = gateway.cli("keys", "rotate", team.kid, "--overlap", "1h", "--json")
    fresh = json.loads(printed)
    assert call(ASK).status_code == 200
    assert call(ASK, by=Team(team.name, fresh["key"], fresh["id"])).status_code == 200


def test_a_key_ends_when_it_expires(gateway, call):
    """In mid-flight, by the server's own clock: nobody tells it."""
    for lasts_seconds in (1, 10, 30):
        ends_at = time.time() + lasts_seconds
        short = gateway.add_team(f"short-{time.time_ns()}", expires_at_ms=int(ends_at * 1_000))
        statuses = [call(ASK, by=short).status_code]
        if statuses == [200]:
            break  # before that the machine stood still for as long as the key lasts
    eventually(lambda: statuses.append(call(ASK, by=short).status_code) or statuses[-1] == 401, what="the end")
    assert time.time() >= ends_at
    assert set(statuses) == {200, 401}


def test_a_key_is_held_to_its_models(call, issue, upstream):
    narrow = issue("--models", "gpt-4o")
    assert call({**ASK, "model": "gpt-4o"}, by=narrow).status_code == 200
    refused = call(ASK, by=narrow)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize(
    "spoil", [lambda key: key[:-1], lambda key: key.swapcase(), lambda key: key + "0", lambda _: "x"]
)
def test_a_key_that_is_not_quite_one_is_refused(call, team, spoil):
    answer = call(ASK, {"Authorization": f"Bearer {spoil(team.key)}"})
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert team.key not in answer.text


def test_lists_show_no_key(gateway, team):
    for form in ((), ("--json",)):
        listed = gateway.cli("keys", "list", "--team", team.name, *form)
        assert team.kid in listed
        assert team.key.removeprefix(f"sk-tg_{team.kid}_") not in listed


def _listed(gateway, team):
    return json.loads(gateway.cli("keys", "list", "--team", team.name, "--json"))
