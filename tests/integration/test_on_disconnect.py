"""Clients that leave a running Tollgate: upstream is stopped, or reads its answer to the end, as the operator says."""

from __future__ import annotations

import signal

import openai
import pytest
from openai import OpenAI

from tests.support.tollgate_process import eventually, run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How long?"}], "temperature": 0}
SLOW = {"x-simulate-chunk-ms": "40", "x-simulate-ttft-ms": "40"}
VERY_SLOW = {"x-simulate-ttft-ms": "1500"}


@pytest.fixture
def start(upstream, tmp_path):
    def run(how, **more):
        lines = "".join(f"{name} = {value}\n" for name, value in more.items())
        settings = f'[streams]\non_disconnect = "{how}"\n[server]\n{lines}'
        return run_tollgate(tmp_path, upstream.base_url, upstream.key, settings=settings)

    return run


def metric(gateway, name, **labels):
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    start = f"{name}{{{pairs}}} " if pairs else f"{name} "
    return next(float(line.rpartition(" ")[2]) for line in gateway.metrics().splitlines() if line.startswith(start))


def leave(gateway, team, *, stream):
    """Ask with the official SDK, and leave before the answer is whole."""
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        if stream:
            with client.chat.completions.create(**ASK, stream=True, extra_headers=SLOW) as chunks:
                assert next(iter(chunks)).choices
            return
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.5).chat.completions.create(**ASK, extra_headers=VERY_SLOW)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_cancel_stops_upstream_and_charges_what_is_known(start, upstream, stream):
    with start("cancel") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, stream=stream)
        stats = upstream.idle_stats()
        assert (stats["requests"], stats["cut_by_client"], stats["output_tokens"]) == (1, 1, 0)
        (event,) = gateway.events("growth", 1)
        assert (event["outcome"], event["estimated"]) == ("client_gone", 1)
        assert event["input_tokens"] > 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_drain_charges_what_upstream_says_and_keeps_the_answer(start, upstream, session, stream):
    with start("drain") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, stream=stream)
        eventually(lambda: metric(gateway, "tollgate_draining_requests") == 1, what="a call that is drained")
        (event,) = gateway.events("growth", 1)
        stats = upstream.idle_stats()
        assert (stats["requests"], stats["cut_by_client"]) == (1, 0)
        assert (event["outcome"], event["estimated"], event["status"]) == ("client_gone", 0, 200)
        assert (event["input_tokens"], event["output_tokens"]) == (stats["input_tokens"], stats["output_tokens"])
        assert event["cost_pico_usd"] > 0
        eventually(lambda: metric(gateway, "tollgate_draining_requests") == 0, what="the end of it")
        labels = {"endpoint": "chat", "model": "gpt-4o-mini", "outcome": "client_gone", "team": "growth"}
        assert metric(gateway, "tollgate_requests_total", **labels) == 1
        (line,) = eventually(gateway.log_lines, what="its line")
        assert (line["outcome"], line["output_tokens"]) == ("client_gone", event["output_tokens"])
        headers = {**team.headers, **(SLOW if stream else VERY_SLOW)}
        again = session.post(f"{gateway.base_url}/chat/completions", json=ASK, headers=headers, timeout=10)
        assert again.headers["Cache-Status"].startswith("tollgate; hit")
        assert upstream.stats()["requests"] == 1


def test_sigterm_waits_for_what_is_drained(start, upstream):
    with start("drain") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, stream=False)
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"]) == ("client_gone", 0)
    assert upstream.idle_stats()["cut_by_client"] == 0


def test_sigterm_waits_no_longer_than_it_may(start, upstream):
    with start("drain", drain_seconds=0.2) as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, stream=False)
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.stderr
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("client_gone", 1, 1_024)
    assert upstream.idle_stats()["cut_by_client"] == 1
