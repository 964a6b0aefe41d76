"""Clients that leave a running Tollgate: upstream is stopped, or reads its answer to the end, as the operator says."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

import pytest
from openai import AsyncOpenAI

from tests.support.held_upstream import HELD, INPUT_TOKENS, held_upstream
from tests.support.tollgate_process import eventually, run_tollgate

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How long?"}], "temperature": 0}


@pytest.fixture
def upstream():
    """One that answers nobody to the end before it is told to."""
    with held_upstream() as running:
        yield running


@pytest.fixture
def start(upstream, tmp_path):
    def run(how, **more):
        lines = "".join(f"{name} = {value}\n" for name, value in more.items())
        settings = f'[streams]\non_disconnect = "{how}"\n[server]\n{lines}'
        return run_tollgate(tmp_path, upstream.base_url, "sk-upstream", settings=settings)

    return run


def metric(gateway, name, **labels):
    pairs = ",".join(f'{key}="{value}"' for key, value in labels.items())
    start = f"{name}{{{pairs}}} " if pairs else f"{name} "
    return next(float(line.rpartition(" ")[2]) for line in gateway.metrics().splitlines() if line.startswith(start))


def leave(gateway, team, upstream, *, stream):
    """Ask with the official SDK, and leave while upstream is at it."""

    async def ask():
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=60) as client:
            asking = asyncio.create_task(client.chat.completions.create(**ASK, stream=stream, extra_headers=HELD))
            if stream:
                async with await asking as chunks:
                    assert (await anext(aiter(chunks))).choices
                return
            await asyncio.to_thread(eventually, lambda: upstream.asked or asking.done(), what="the call upstream")
            assert not asking.done()
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking

    asyncio.run(ask())


def drained_requests(gateway):
    return metric(gateway, "tollgate_draining_requests")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_cancel_stops_upstream_and_charges_what_is_known(start, upstream, stream):
    with start("cancel") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, upstream, stream=stream)
        eventually(lambda: upstream.cut, what="the end of the call")
        assert (upstream.asked, upstream.completed) == (1, 0)
        (event,) = gateway.events("growth", 1)
        assert (event["outcome"], event["estimated"]) == ("client_gone", 1)
        assert event["input_tokens"] > 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
def test_drain_charges_what_upstream_says_and_keeps_the_answer(start, upstream, session, stream):
    with start("drain") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, upstream, stream=stream)
        eventually(lambda: drained_requests(gateway) == 1, what="a call that is drained")
        upstream.go_on()
        (event,) = gateway.events("growth", 1)
        eventually(lambda: upstream.completed, what="the end of the call")
        assert (upstream.asked, upstream.completed, upstream.cut) == (1, 1, 0)
        assert (event["outcome"], event["estimated"], event["status"]) == ("client_gone", 0, 200)
        assert (event["input_tokens"], event["output_tokens"]) == (INPUT_TOKENS, 16)
        assert event["cost_pico_usd"] > 0
        eventually(lambda: drained_requests(gateway) == 0, what="the end of it")
        labels = {"endpoint": "chat", "model": "gpt-4o-mini", "outcome": "client_gone", "team": "growth"}
        eventually(lambda: metric(gateway, "tollgate_requests_total", **labels) == 1, what="its count")
        (line,) = eventually(gateway.log_lines, what="its line")
        assert (line["outcome"], line["output_tokens"]) == ("client_gone", event["output_tokens"])
        headers = {**team.headers, **HELD}
        again = session.post(f"{gateway.base_url}/chat/completions", json=ASK, headers=headers, timeout=30)
        assert again.headers["Cache-Status"].startswith("tollgate; hit")
        assert upstream.asked == 1


def test_sigterm_waits_for_what_is_drained(start, upstream):
    with start("drain") as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, upstream, stream=False)
        eventually(lambda: drained_requests(gateway) == 1, what="a call that is drained")
        gateway.signal(signal.SIGTERM)
        eventually(lambda: gateway.ready_status() == 503, what="not ready")
        upstream.go_on()
        assert gateway.wait() == 0
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"]) == ("client_gone", 0)
    eventually(lambda: upstream.completed, what="the end of the call")
    assert upstream.cut == 0


def test_sigterm_waits_no_longer_than_it_may(start, upstream):
    with start("drain", drain_seconds=0.2) as gateway:
        team = gateway.add_team("growth")
        leave(gateway, team, upstream, stream=False)
        eventually(lambda: drained_requests(gateway) == 1, what="a call that is drained")
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.stderr
    (event,) = gateway.events("growth", 1)
    assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("client_gone", 1, 1_024)
    eventually(lambda: upstream.cut, what="the end of the call")
    assert upstream.completed == 0
