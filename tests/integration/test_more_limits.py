"""Limits of keys, of models and of requests under way, and shadow tiers, as clients and operators meet them."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.support.tollgate_process import Team, eventually

MODEL, OTHER_MODEL = "gpt-4o-mini", "gpt-4o"
SOON_SECONDS = 8.0
"""Less than the ten for which what is known of a key is trusted when nobody tells of a change."""


def ask(text="echo:x", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}


def message(answer):
    return answer.json()["error"]["message"]


@pytest.fixture
def new_key(gateway):
    def new(team, *options):
        issued = json.loads(gateway.cli("keys", "issue", "--team", team.name, "--json", *options))
        return Team(team.name, issued["key"], issued["id"])

    return new


def sample(gateway, name, **labels):
    for family in text_string_to_metric_families(gateway.metrics()):
        for each in family.samples:
            if each.name == name and each.labels == labels:
                return each.value
    return None


# Keys


def test_a_key_is_held_to_its_own_limit_and_its_team_to_its_own(call, new_team, new_key):
    team = new_team(requests_per_minute=1, request_capacity=5)
    narrow = new_key(team, "--rpm", "2", "--label", "nightly build")
    begun = time.monotonic()
    answers = [call(ask(), by=narrow) for _ in range(3)]
    took_ms = (time.monotonic() - begun) * 1_000
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    # The headers tell of the team's bucket, the message of the limit that refused.
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["4", "3", "3"]
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"1"}
    said = message(answers[2])
    assert said.startswith(f"Rate limit reached for {MODEL} of key nightly build on requests per min (RPM): Limit 2,")
    assert narrow.kid not in said
    wait_ms = int(answers[2].headers["retry-after-ms"])
    assert 30_000 - 1 - took_ms <= wait_ms <= 30_000
    assert [call(ask(), by=team).status_code for _ in range(4)] == [200, 200, 200, 429]
    refused = call(ask(), by=team)
    assert f" of team {team.name} on requests" in message(refused)
    assert "nightly" not in message(refused)


def test_a_key_without_a_label_is_named_by_its_id(call, new_team, new_key):
    key = new_key(new_team(), "--tpm", "50")
    refused = call(ask(max_tokens=500), by=key)
    assert refused.status_code == 429
    assert f" of key {key.kid} on tokens per min (TPM): Limit 50, Requested " in message(refused)
    assert refused.headers["x-should-retry"] == "false"
    # Without a maximum of its own the reservation is what the key can hold at most.
    assert call({**ask(), "max_tokens": None}, by=key).status_code == 200


def test_a_key_changed_beside_the_server_holds_within_a_second(gateway, call, new_team, new_key):
    key = new_key(new_team(), "--rpm", "1")
    assert [call(ask(), by=key).status_code for _ in range(2)] == [200, 429]
    gateway.cli("keys", "set", key.kid, "--rpm", "none")
    eventually(lambda: call(ask(), by=key).status_code == 200, seconds=SOON_SECONDS, what="a key without its limit")


# Models


def test_a_model_is_limited_for_a_team_and_no_other_is(gateway, call, new_team):
    team, other = new_team(), new_team()
    gateway.cli("teams", "limit", team.name, "--model", OTHER_MODEL, "--rpm", "1")
    answers = [call(ask(model=OTHER_MODEL), by=team) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert f" of team {team.name} for model {OTHER_MODEL} on requests per min (RPM): Limit 1," in message(answers[1])
    assert call(ask(), by=team).status_code == 200
    assert [call(ask(model=OTHER_MODEL), by=other).status_code for _ in range(2)] == [200, 200]
    gateway.cli("teams", "limit", team.name, "--model", OTHER_MODEL, "--none")
    eventually(
        lambda: call(ask(model=OTHER_MODEL), by=team).status_code == 200,
        seconds=SOON_SECONDS,
        what="a model without its limit",
    )


def test_a_refusal_by_the_model_costs_team_and_key_nothing(gateway, call, new_team, new_key):
    team = new_team(requests_per_minute=3)
    key = new_key(team, "--rpm", "3")
    gateway.cli("teams", "limit", team.name, "--model", OTHER_MODEL, "--rpm", "1")
    statuses = [call(ask(model=OTHER_MODEL), by=key).status_code for _ in range(5)]
    assert statuses == [200, 429, 429, 429, 429]
    assert [call(ask(), by=key).status_code for _ in range(2)] == [200, 200]


# Requests under way


def test_no_more_are_under_way_than_there_are_places(gateway, call, new_team):
    team = new_team(max_parallel=2)
    slow = {"x-simulate-chunk-ms": "3600000"}
    streams = [call(ask("echo:ab cd", max_tokens=9, stream=True), slow, by=team, stream=True) for _ in range(2)]
    try:
        assert [stream.status_code for stream in streams] == [200, 200]
        refused = call(ask(), by=team)
        assert refused.status_code == 429
        assert (refused.headers["Retry-After"], refused.headers["retry-after-ms"]) == ("1", "1000")
        assert "x-should-retry" not in refused.headers
        assert refused.json()["error"] == {
            "message": f"Too many requests at one time for {MODEL} of team {team.name}: Limit 2, In flight 2. "
            "Please try again when one of them has ended.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    finally:
        streams[0].close()
    eventually(lambda: call(ask(), by=team).status_code == 200, what="a free place")
    assert sample(gateway, "tollgate_rate_limited_total", team=team.name, limit="parallel") >= 1
    streams[1].close()


def left(call, team, **more):
    """Hang up on a streamed answer while it comes."""
    with call(ask("echo:ab cd ef gh", max_tokens=20, stream=True), more, by=team, stream=True) as answer:
        next(answer.iter_lines())


def given_up(call, team):
    """Hang up before there is an answer."""
    with pytest.raises(requests.ReadTimeout):
        call(ask(), {"x-simulate-hang": "1"}, by=team, read_seconds=0.2)


def broken(call, team, **faults):
    streamed = not {"cut-after", "error-event-after"}.isdisjoint(faults)
    with contextlib.suppress(requests.exceptions.ChunkedEncodingError):
        call(ask("echo:ab cd", max_tokens=9, stream=streamed), _fault(**faults), by=team)


def _fault(**faults):
    return {f"x-simulate-{name}": value for name, value in faults.items()}


ENDINGS = {
    "an answer": lambda call, team: call(ask(), by=team),
    "a stream": lambda call, team: call(ask(stream=True), by=team),
    "hits": lambda call, team: [call(ask("echo:again", temperature=0), by=team) for _ in range(3)],
    "an error upstream": lambda call, team: call(ask(), _fault(status="400"), by=team),
    "errors through all retries": lambda call, team: call(ask(), _fault(status="500"), by=team),
    "a connection reset": lambda call, team: broken(call, team, reset="1"),
    "a body that is none": lambda call, team: broken(call, team, malformed="1"),
    "a stream cut upstream": lambda call, team: broken(call, team, **{"cut-after": "1"}),
    "an error in a stream": lambda call, team: broken(call, team, **{"error-event-after": "1"}),
    "a stream left": lambda call, team: left(call, team, **{"x-simulate-chunk-ms": "600000"}),
    "a request given up": given_up,
    "a body that is not read": lambda call, team: call(b"{", by=team),
    "a request too large": lambda call, team: call(ask(max_tokens=16_000), by=team),
}


@pytest.mark.parametrize("end", list(ENDINGS.values()), ids=list(ENDINGS))
def test_a_place_comes_back_however_a_request_ends(call, new_team, end):
    team = new_team(max_parallel=1, tokens_per_minute=10_000)
    for _ in range(2):
        end(call, team)
        # One that hung up has gone once the server has noticed; nobody else is refused for a moment.
        eventually(lambda: call(ask(), by=team).status_code == 200, what="the place")


# Shadow tiers


def test_a_shadow_tier_refuses_nothing_and_tells_what_it_would_have(gateway, call, new_team, upstream):
    team = new_team("unlimited", shadow_tier="free")
    answers, limited = [], []
    # One comes back each three seconds, should this take as long.
    while len(limited) < 3 and len(answers) < 100:
        answers.append(call(ask(stream=len(answers) % 2 == 1), by=team))
        if answers[-1].headers["x-tollgate-shadow"] != "tier=free; ok":
            limited.append(answers[-1].headers["x-tollgate-shadow"])
    assert {answer.status_code for answer in answers} == {200}
    told = [answer.headers["x-tollgate-shadow"] for answer in answers]
    assert set(told[:20]) == {"tier=free; ok"}
    assert len(limited) == 3
    waits = [re.fullmatch(r"tier=free; limited=requests; wait_ms=(\d+)", text) for text in limited]
    assert all(1 <= int(wait[1]) <= 3_000 for wait in waits)
    assert "x-ratelimit-limit-requests" not in answers[0].headers
    shadow = {"team": team.name, "limit": "requests"}
    eventually(lambda: sample(gateway, "tollgate_shadow_limited_total", **shadow) == len(limited), what="its count")
    assert not sample(gateway, "tollgate_rate_limited_total", team=team.name, limit="requests")
    lines = [gateway.logged(answer.headers["x-request-id"]) for answer in answers]
    assert [line["shadow_limited"] for line in lines] == [
        None if text == "tier=free; ok" else "requests" for text in told
    ]
    assert upstream.stats()["requests"] == len(answers)


def test_a_shadow_tier_counts_what_was_used_and_leaves_the_teams_bucket_alone(call, new_team):
    # One comes back in a minute: not while this runs.
    own = {"requests_per_minute": 1, "request_capacity": 20}
    team, plain = new_team("free", shadow_tier="free", **own), new_team("free", **own)
    for number in range(3):
        # Each might take half of the shadow's bucket, and takes what it used.
        mine, theirs = (call(ask(max_tokens=15_000, n=1), by=each) for each in (team, plain))
        assert mine.headers["x-tollgate-shadow"] == "tier=free; ok"
        remaining = "x-ratelimit-remaining-requests"
        assert mine.headers[remaining] == theirs.headers[remaining] == str(19 - number)
        assert "x-tollgate-shadow" not in theirs.headers
    too_large = call(ask(max_tokens=16_000, n=3), by=new_team(shadow_tier="free"))
    assert too_large.status_code == 200
    assert too_large.headers["x-tollgate-shadow"] == "tier=free; limited=tokens; never"


def test_a_hit_is_a_request_of_the_shadow_tier_too(call, new_team):
    team = new_team("unlimited", shadow_tier="free")
    answers = [call(ask("echo:kept", temperature=0), by=team) for _ in range(21)]
    assert "hit" in answers[20].headers["Cache-Status"]
    told = [answer.headers["x-tollgate-shadow"] for answer in answers]
    assert set(told[:20]) == {"tier=free; ok"}
