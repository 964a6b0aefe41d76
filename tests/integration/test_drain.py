"""SIGTERM: no new connections, and time for what is under way."""

from __future__ import annotations

import signal
import time

import pytest
import requests

from tests.support.held_upstream import HELD, held_upstream
from tests.support.tollgate_process import eventually, run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How long?"}], "stream": True}


@pytest.fixture
def start(simulator, tmp_path):
    def run(settings=""):
        return run_tollgate(tmp_path, simulator.base_url, simulator.key, settings=settings)

    return run


def stream_from(session, gateway, team, headers):
    return session.post(
        f"{gateway.base_url}/chat/completions",
        json=ASK,
        headers={**team.headers, **headers},
        stream=True,
        timeout=30,
    )


def accepts(gateway):
    try:
        with requests.Session() as fresh:
            fresh.trust_env = False
            return bool(fresh.get(f"{gateway.base_url}/models", timeout=5).status_code)
    except requests.ConnectionError:
        return False


def test_a_stream_is_finished(tmp_path, session):
    with held_upstream() as upstream, run_tollgate(tmp_path, upstream.base_url, "sk-upstream") as gateway:
        team = gateway.add_team("growth")
        with stream_from(session, gateway, team, HELD) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(b"data: ")
            gateway.signal(signal.SIGTERM)
            eventually(lambda: not accepts(gateway), what="a closed listener")
            assert gateway.exit_status is None
            # Those who ask whether to send more are told no for as long as anything runs.
            assert gateway.ready_status() == 503
            upstream.go_on()
            *_, last = [line for line in lines if line]
        assert last == b"data: [DONE]"
        assert gateway.wait() == 0
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("ok", 0, 16)


def test_load_balancers_get_time_to_notice(start, session):
    # A second is enough for two requests, but for a machine that stands still.
    for grace_seconds in (1.0, 20.0):
        with start(f"[server]\nready_grace_seconds = {grace_seconds}\n") as gateway:
            team = gateway.add_team(f"growth-{grace_seconds:.0f}")
            begun = time.monotonic()
            gateway.signal(signal.SIGTERM)
            try:
                eventually(lambda: gateway.ready_status() != 200, what="not ready")
                assert gateway.ready_status() == 503 or time.monotonic() - begun > grace_seconds
                answer = stream_from(session, gateway, team, {})
            except requests.ConnectionError:
                if time.monotonic() - begun <= grace_seconds:
                    raise
                continue
            assert answer.status_code == 200
            assert answer.content.endswith(b"data: [DONE]\n\n")
            assert gateway.wait() == 0
            return
    raise AssertionError("nobody was let in during the grace")


def test_what_outlasts_the_drain_is_cut_and_charged(start, session):
    with start("[server]\ndrain_seconds = 0.5\n") as gateway:
        team = gateway.add_team("growth")
        with stream_from(session, gateway, team, {"x-simulate-chunk-ms": "600000"}) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(b"data: ")
            gateway.signal(signal.SIGTERM)
            heard = []
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                heard.extend(line for line in lines if line)
            assert b'"code":"server_is_overloaded"' in heard[-1]
        assert gateway.wait() == 0
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"]) == ("unavailable", 1)
    assert event["output_tokens"] >= 1


def test_an_idle_server_ends_at_once(start):
    with start() as gateway:
        gateway.signal(signal.SIGINT)
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.stderr
