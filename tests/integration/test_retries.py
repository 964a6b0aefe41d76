"""Calls upstream that are made again, and those that are not."""

from __future__ import annotations

import json
import time
import uuid

import pytest
import requests

from tests.support.canned_upstream import canned_upstream
from tests.support.tollgate_process import run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "echo:x"}]}


def faults(**wishes):
    return {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in wishes.items()}


def first(times, **wishes):
    """Faults of the first attempts alone."""
    return faults(id=uuid.uuid4().hex, times=times, **wishes)


@pytest.mark.parametrize(
    ("wishes", "stream"),
    [
        ({"status": 500}, False),
        ({"status": 500}, True),
        ({"status": 503}, False),
        ({"status": 408}, False),
        ({"reset": 1}, False),
        ({"reset": 1}, True),
    ],
    ids=str,
)
def test_the_third_attempt_succeeds_and_is_one_request(gateway, call, team, upstream, wishes, stream):
    answer = call({**ASK, "stream": stream}, first(2, **wishes))
    assert answer.status_code == 200
    assert upstream.idle_stats()["requests"] == 3
    line = gateway.logged(answer.headers["x-request-id"])
    assert (line["attempts"], line["status"], line["outcome"]) == (3, 200, "ok")
    (event,) = gateway.events(team.name, 1)
    assert (event["attempts"], event["status"], event["outcome"]) == (3, 200, "ok")
    assert event["output_tokens"] == 1


def test_three_attempts_and_no_more(gateway, call, team, upstream):
    answer = call(ASK, faults(status=500))
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "Simulated error with status 500."
    assert upstream.idle_stats()["by_status"] == {"500": 3}
    (event,) = gateway.events(team.name, 1)
    assert (event["attempts"], event["status"], event["outcome"], event["cost_pico_usd"]) == (
        3,
        500,
        "upstream_error",
        0,
    )


@pytest.mark.parametrize("asked", [{"retry_after_ms": 300}, {"retry_after_ms": 300, "retry_after": 9}])
def test_the_wait_upstream_asks_for_is_kept(call, upstream, asked):
    begun = time.monotonic()
    assert call(ASK, first(1, status=429, **asked)).status_code == 200
    assert time.monotonic() - begun >= 0.3
    assert upstream.idle_stats()["by_status"] == {"200": 1, "429": 1}


def test_a_wait_too_long_to_sit_through_is_the_clients(call, upstream):
    answer = call(ASK, faults(status=429, retry_after=30))
    assert answer.status_code == 429
    assert answer.headers["Retry-After"] == "30"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 422])
def test_what_is_wrong_with_the_request_is_not_tried_again(call, upstream, status):
    assert call(ASK, faults(status=status)).status_code == (502 if status == 401 else status)
    assert upstream.idle_stats()["requests"] == 1


def test_a_stream_that_has_begun_is_not_tried_again(gateway, call, team, upstream):
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        call({**ASK, "stream": True}, faults(cut_after=1))
    assert upstream.idle_stats()["requests"] == 1
    (event,) = gateway.events(team.name, 1)
    assert (event["status"], event["outcome"], event["estimated"]) == (200, "upstream_error", 1)


def test_a_quota_that_is_used_up_stays_used_up(tmp_path, session):
    """An upstream that says 429 and means it."""
    error = {"message": "You exceeded your current quota.", "type": "insufficient_quota", "param": None}
    body = json.dumps({"error": {**error, "code": "insufficient_quota"}}).encode()
    with (
        canned_upstream(429, "application/json", body) as upstream,
        run_tollgate(tmp_path, upstream.base_url, "sk-unused") as gateway,
    ):
        team = gateway.add_team("broke")
        answer = session.post(f"{gateway.base_url}/chat/completions", json=ASK, headers=team.headers, timeout=30)
        assert (answer.status_code, answer.content) == (429, body)
    assert len(upstream.bodies) == 1


def test_nobody_at_home_is_a_502(tmp_path, session):
    settings = "[upstream]\nfirst_backoff_ms = 1\nmax_backoff_ms = 1\n"
    with run_tollgate(tmp_path, "http://127.0.0.1:9/v1", "sk-unused", settings=settings) as alone:
        team = alone.add_team("alone")
        answer = session.post(f"{alone.base_url}/chat/completions", json=ASK, headers=team.headers, timeout=30)
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "upstream_unreachable"
        (event,) = alone.events("alone", 1)
        assert (event["attempts"], event["status"], event["outcome"]) == (3, 502, "upstream_error")
        models = session.get(f"{alone.base_url}/models", headers=team.headers, timeout=30)
        assert models.status_code == 502
