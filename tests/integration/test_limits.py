"""Limits as clients meet them: how many pass, what is said to those that do not, what comes back afterwards."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.tollgate_process import eventually

MODEL = "gpt-4o-mini"
SIX = {f"x-ratelimit-{kind}-{what}" for kind in ("limit", "remaining", "reset") for what in ("requests", "tokens")}
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+)ms)?")


def ask(text="echo:x", **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 1, **more}


def milliseconds(duration):
    found = DURATION.fullmatch(duration)
    assert found, duration
    hours, minutes, seconds, ms = found.groups()
    return round(int(hours or 0) * 3_600_000 + int(minutes or 0) * 60_000 + float(seconds or 0) * 1_000 + int(ms or 0))


def test_a_free_team_gets_its_twenty_and_then_a_truthful_refusal(call, new_team, upstream):
    team = new_team("free")
    begun = time.monotonic()
    answers = [call(ask(), by=team)]
    while answers[-1].status_code == 200 and len(answers) < 100:
        answers.append(call(ask(), by=team))
    # What refills while they run passes as well: one each three seconds.
    most = 20 + int((time.monotonic() - begun) / 3)
    *passed, refused = answers
    assert 20 <= len(passed) <= most
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in passed]
    assert all(0 <= here - (19 - number) <= most - 20 for number, here in enumerate(left[:20]))
    assert all(set(answer.headers) >= SIX or {n.lower() for n in answer.headers} >= SIX for answer in answers)
    assert upstream.stats()["requests"] == len(passed)

    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-limit-requests"] == "20"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    wait_ms = int(refused.headers["retry-after-ms"])
    assert 1 <= wait_ms <= 3_000
    assert refused.headers["Retry-After"] == str(-(-wait_ms // 1_000))
    error = refused.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("requests", None, "rate_limit_exceeded")
    said = re.fullmatch(
        rf"Rate limit reached for {MODEL} of team {team.name} on requests per min \(RPM\): "
        r"Limit 20, Used 20, Requested 1\. Please try again in (\S+)\.",
        error["message"],
    )
    assert milliseconds(said[1]) == wait_ms
    # Empty now: a full bucket is a minute away, less what has come back since.
    assert 57_000 - 1 <= milliseconds(refused.headers["x-ratelimit-reset-requests"]) <= 60_000


def test_a_crowd_gets_no_more_than_the_bucket_holds(gateway, session, new_team, upstream, call):
    team = new_team(requests_per_minute=1, request_capacity=7)
    with ThreadPoolExecutor(12) as crowd:
        statuses = list(crowd.map(lambda _: call(ask(), by=team).status_code, range(24)))
    assert sorted(statuses) == [200] * 7 + [429] * 17
    assert upstream.stats()["requests"] == 7


def test_one_who_waits_as_told_is_let_in(call, new_team):
    team = new_team(requests_per_minute=240, request_capacity=1)
    assert call(ask(), by=team).status_code == 200
    refused = call(ask(), by=team)
    if refused.status_code == 429:  # a slow machine may have taken the quarter of a second already
        time.sleep(int(refused.headers["retry-after-ms"]) / 1_000)
        assert call(ask(), by=team).status_code == 200


def test_tokens_are_limited(call, new_team):
    team = new_team(tokens_per_minute=60, token_capacity=1_000)
    text = "echo:" + "a" * 3_995  # 1,000 characters in four of which one is a token, and as many more would not fit
    refused = call(ask("echo:" + "b" * 2_995, max_tokens=500), by=team)
    assert refused.status_code == 429
    assert refused.json()["error"]["message"].startswith("Request too large")
    first = call(ask("echo:" + "b" * 1_995, max_tokens=300), by=team)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-limit-tokens"] == "60"
    second = call(ask(text[:2_000], max_tokens=300), by=team)
    assert second.status_code == 429
    error = second.json()["error"]
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    found = re.search(r"tokens per min \(TPM\): Limit 60, Used (\d+), Requested (\d+)\.", error["message"])
    used, requested = int(found[1]), int(found[2])
    assert used + requested > 1_000
    # 60 a minute is one a second: the wait is what is too much, in seconds.
    wait_ms = int(second.headers["retry-after-ms"])
    assert (used + requested - 1_000 - 1) * 1_000 < wait_ms <= (used + requested - 1_000) * 1_000
    assert second.headers["x-should-retry"] == "false" if wait_ms > 60_000 else "x-should-retry" not in second.headers


def test_what_can_never_fit_is_told_so(call, new_team, upstream):
    team = new_team(tokens_per_minute=1_000)
    answer = call(ask(max_tokens=1_500), by=team)
    assert answer.status_code == 429
    assert answer.headers["x-should-retry"] == "false"
    assert "Retry-After" not in answer.headers
    assert "retry-after-ms" not in answer.headers
    assert answer.headers["x-ratelimit-remaining-tokens"] == "1000"
    error = answer.json()["error"]
    assert error["type"] == "tokens"
    assert re.search(r"Limit 1000, Requested 15\d\d\.", error["message"])
    assert "try again" not in error["message"]
    assert upstream.stats()["requests"] == 0
    # Nothing was taken: another one fits.
    assert call(ask(max_tokens=900), by=team).status_code == 200


def test_teams_do_not_interact(call, new_team):
    one, other = new_team(requests_per_minute=1), new_team(requests_per_minute=1)
    assert [call(ask(), by=one).status_code for _ in range(2)] == [200, 429]
    assert call(ask(), by=other).status_code == 200


def test_the_keys_of_a_team_share_its_limit(gateway, call, new_team):
    one = new_team(requests_per_minute=1)
    other = type(one)(one.name, gateway.cli("keys", "issue", "--team", one.name).strip(), "")
    assert [call(ask(), by=key).status_code for key in (one, other)] == [200, 429]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_large_maximum_is_given_back_at_the_end(call, new_team, stream):
    """Forty requests that might each have taken half of the bucket are held to what they used."""
    team = new_team(tokens_per_minute=60, token_capacity=3_000)
    begun = time.monotonic()
    answers = [call(ask(max_tokens=1_500, stream=stream), by=team) for _ in range(40)]
    assert {answer.status_code for answer in answers} == {200}
    # By the simulator's rule: 3 for the prompt, 4 for the message and 2 for its text; 1 for the answer.
    used = 39 * (3 + 4 + 2 + 1)
    reserved = 1_500 + -(-len("userecho:x") // 4)
    remaining = int(answers[-1].headers["x-ratelimit-remaining-tokens"])
    back = int(time.monotonic() - begun) + 1
    assert 3_000 - used - reserved <= remaining <= 3_000 - used - reserved + back


def test_an_upstream_error_costs_a_request_and_no_tokens(call, new_team):
    team = new_team(requests_per_minute=1, request_capacity=2, tokens_per_minute=1_000)
    assert call(ask(max_tokens=900), {"x-simulate-status": "400"}, by=team).status_code == 400
    after = call(ask(max_tokens=900), by=team)
    assert after.status_code == 200
    assert after.headers["x-ratelimit-remaining-requests"] == "0"
    assert call(ask(), by=team).status_code == 429


def test_what_is_refused_for_what_it_is_costs_nothing(call, new_team):
    team = new_team(requests_per_minute=1)
    assert call(b"{", by=team).status_code == 400
    assert call(ask(model="gpt-none"), by=team).status_code == 404
    assert call(ask(), by=team).status_code == 200


def test_a_limit_changed_beside_the_server_holds_within_a_second(gateway, call, new_team):
    team = new_team(requests_per_minute=1)
    assert [call(ask(), by=team).status_code for _ in range(2)] == [200, 429]
    gateway.cli("teams", "set", team.name, "--requests-per-minute", "none", "--tier", "unlimited")
    # What is known of a key is trusted for ten seconds when nobody tells of a change.
    eventually(lambda: call(ask(), by=team).status_code == 200, seconds=8, what="a team without its limit")
