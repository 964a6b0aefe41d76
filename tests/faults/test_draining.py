"""Clients that leave where the operator would have their answers read to the end: over real connections."""

import asyncio
import random
import threading
from collections import Counter
from contextlib import AsyncExitStack

import pytest

from tests.faults.conftest import CHAT, Gateway, HeldTime, Open, ScriptedUpstream, at_rest, read_answer, until

SHARED = {**CHAT, "temperature": 0}
BODIES = {"plain": CHAT, "stream": {**CHAT, "stream": True}, "shared plain": SHARED,
          "shared stream": {**SHARED, "stream": True}}  # fmt: skip
RESERVED = 7 + 1_024
by_body = pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)


async def opened(open_gateway: Open, *, time: HeldTime | None = None, **changes: object) -> Gateway:
    return await open_gateway(time=time, **{"streams.on_disconnect": "drain", **changes})


async def leave(gateway: Gateway, body: dict, *wishes: str, after: bytes = b"") -> None:
    """Ask, read as far as told, and leave while upstream is at work."""
    requests = gateway.stats.requests
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(body, *wishes))
        await until(lambda: gateway.stats.requests > requests)
        if after:
            await reader.readuntil(after)


def drained(gateway: Gateway) -> float:
    return gateway.metric("tollgate_draining_requests")


def given_up(gateway: Gateway) -> dict[str, float]:
    return {reason: gateway.metric("tollgate_drains_given_up_total", reason=reason) for reason in ("full", "deadline")}


async def exact(gateway: Gateway) -> dict:
    """The one event of a request whose client left, told as upstream told it."""
    (event,) = await gateway.events()
    (seen,) = gateway.stats.records
    assert (seen.completed, seen.cut_by_client, gateway.stats.cut_by_client) == (True, False, 0)
    assert (event["outcome"], event["estimated"], event["status"]) == ("client_gone", False, 200)
    assert (event["input_tokens"], event["output_tokens"]) == (seen.input_tokens, seen.output_tokens)
    assert await gateway.charged() == (1, seen.input_tokens + seen.output_tokens)
    (record,) = gateway.records()
    assert (record["outcome"], record["cost_pico_usd"]) == ("client_gone", event["cost_pico_usd"])
    assert event["cost_pico_usd"] > 0
    assert gateway.total("tollgate_requests_total") == 1
    assert gateway.total("tollgate_requests_total", outcome="client_gone") == 1
    assert gateway.total("tollgate_tokens_total") == event["input_tokens"] + event["output_tokens"]
    assert drained(gateway) == 0
    assert given_up(gateway) == {"full": 0, "deadline": 0}
    assert await gateway.mismatches() == []
    return event


@by_body
async def test_before_the_head(open_gateway: Open, body: dict) -> None:
    time = HeldTime()
    gateway = await opened(open_gateway, time=time)
    await leave(gateway, body, "x-simulate-delay-ms: 1")
    await until(lambda: drained(gateway) == 1)
    assert (gateway.in_flight, gateway.records()) == (1, []), "it is told of at its end"
    time.release()
    await exact(gateway)
    await gateway.works()


@pytest.mark.parametrize("body", [BODIES["stream"], BODIES["shared stream"]], ids=["alone", "shared"])
@pytest.mark.parametrize("usage", [False, True], ids=["bare", "usage"])
async def test_in_mid_stream(open_gateway: Open, body: dict, usage: bool) -> None:
    time = HeldTime()
    gateway = await opened(open_gateway, time=time)
    body = {**body, "stream_options": {"include_usage": True}} if usage else body
    await leave(gateway, body, "x-simulate-chunk-ms: 1", after=b"\n\n")
    await until(lambda: drained(gateway) == 1)
    time.release()
    await exact(gateway)


async def test_what_was_drained_is_in_the_cache(open_gateway: Open) -> None:
    time = HeldTime()
    gateway = await opened(open_gateway, time=time)
    await leave(gateway, BODIES["shared stream"], "x-simulate-chunk-ms: 10", after=b"\n\n")
    await until(lambda: drained(gateway) == 1)
    time.release()
    await gateway.settled()
    async with gateway.post(SHARED, chunk_ms=10) as response:
        assert response.headers["Cache-Status"].startswith("tollgate; hit")
    assert gateway.stats.requests == 1


async def test_no_more_at_once_than_the_operator_lets(open_gateway: Open) -> None:
    time = HeldTime()
    gateway = await opened(open_gateway, time=time, **{"streams.max_draining": 2})
    for number in range(3):
        await leave(gateway, {**CHAT, "seed": number}, "x-simulate-delay-ms: 1")
        await until(lambda number=number: drained(gateway) + gateway.stats.cut_by_client == number + 1)
    assert (drained(gateway), gateway.stats.cut_by_client) == (2, 1)
    time.release()
    events = await gateway.events()
    assert [event["estimated"] for event in events] == [False, False, True]
    assert {event["outcome"] for event in events} == {"client_gone"}
    assert given_up(gateway) == {"full": 1, "deadline": 0}
    sent = sum(event["input_tokens"] + event["output_tokens"] for event in events[:2])
    assert await gateway.charged() == (3, sent + RESERVED)


@pytest.mark.parametrize("body", [BODIES["stream"], BODIES["shared stream"]], ids=["alone", "shared"])
async def test_no_longer_than_an_exchange_may_last(open_gateway: Open, body: dict) -> None:
    gateway = await opened(open_gateway, **{"upstream.total_timeout_seconds": 1.5})
    await leave(gateway, body, "x-simulate-chunk-ms: 600000", after=b"\n\n")
    await until(lambda: gateway.stats.cut_by_client == 1)
    (event,) = await gateway.events()
    assert (event["outcome"], event["estimated"], event["status"]) == ("client_gone", True, 200)
    assert given_up(gateway) == {"full": 0, "deadline": 1}
    assert await gateway.charged() == (1, RESERVED)
    assert drained(gateway) == 0


async def test_one_that_did_not_read_holds_up_upstream_no_more_once_it_has_left(open_gateway: Open) -> None:
    sent = 0
    piece = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 4_000) + b"\n\n"
    last = (
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":77,"total_tokens":80}}\n\n'
        b"data: [DONE]\n\n"
    )

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while sent < 40_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        writer.write(last)
        await writer.drain()

    async with ScriptedUpstream(pour) as base_url:
        gateway = await opened(open_gateway, **{"upstream.base_url": base_url})
        async with gateway.connection() as (reader, writer):
            reader._transport.pause_reading()
            writer.write(gateway.request_bytes(BODIES["stream"]))
            assert await at_rest(lambda: sent) < 40_000_000, "buffers are full, and upstream waits"
        await until(lambda: drained(gateway) == 1)
        (flight,) = gateway.worker.services.flights.draining
        await until(lambda: gateway.in_flight == 0)
        assert flight.held_bytes < 1_000_000
        (event,) = await gateway.events()
        assert (event["outcome"], event["input_tokens"], event["output_tokens"]) == ("client_gone", 3, 77)
        assert await gateway.charged() == (1, 80)


@pytest.mark.parametrize("temperature", [0, 1], ids=["shared", "alone"])
@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_one_that_is_cut_because_it_does_not_read_has_left(
    open_gateway: Open, how: str, temperature: int
) -> None:
    sent = 0
    piece = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 4_000) + b"\n\n"
    last = (
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":77,"total_tokens":80}}\n\ndata: [DONE]\n\n'
    )

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while sent < 40_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
        writer.write(last)
        await writer.drain()

    upstream = ScriptedUpstream(pour)
    async with upstream as base_url:
        changes = {"streams.on_disconnect": how, "server.write_timeout_seconds": 0.5}
        gateway = await open_gateway(**{"upstream.base_url": base_url, **changes})
        async with gateway.connection() as (reader, writer):
            reader._transport.pause_reading()
            writer.write(gateway.request_bytes({**BODIES["stream"], "temperature": temperature}))
            await until(lambda: gateway.in_flight == 1)
            await until(lambda: gateway.in_flight == 0)
        (event,) = await gateway.events()
        assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 200, how == "cancel")
        assert [record["outcome"] for record in gateway.records()] == ["client_gone"]
        _, tokens = await gateway.charged()
        if how == "drain":
            assert sent >= 40_000_000
            assert (event["output_tokens"], tokens) == (77, 80)
        else:
            await until(lambda: upstream.left == 1)
            assert sent < 40_000_000
            assert tokens >= RESERVED


async def test_between_two_calls_none_is_made_for_nobody(open_gateway: Open) -> None:
    gateway = await opened(open_gateway, **{"upstream.first_backoff_ms": 600_000, "upstream.max_backoff_ms": 600_000})
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes(CHAT, "x-simulate-status: 503", "x-simulate-retry-after: 300"))
        await until(lambda: gateway.stats.requests == 1 and gateway.stats.in_flight == 0)
        await until(lambda: "_call" not in waiting_in())
    (event,) = await gateway.events()
    assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("client_gone", False, 0)
    assert gateway.stats.requests == 1
    assert await gateway.charged() == (1, 0)


OF_A_CALL = {"forward", "relay"}


def waiting_in() -> set[str]:
    """Functions that a task is in which is at a call upstream, or at its answer."""
    names = set()
    for task in asyncio.all_tasks():
        of_task = set()
        coroutine = task.get_coro()
        while coroutine is not None:
            of_task.add(getattr(coroutine, "__name__", ""))
            coroutine = getattr(coroutine, "cr_await", None)
        names |= of_task if of_task & OF_A_CALL else set()
    return names


@pytest.mark.parametrize("outcome", ["drained", "cut"])
async def test_shutdown_waits_for_what_is_drained_and_no_longer_than_for_others(
    open_gateway: Open, outcome: str
) -> None:
    time = HeldTime()
    drain_seconds = 60.0 if outcome == "drained" else 0.2
    gateway = await opened(open_gateway, time=time, **{"server.drain_seconds": drain_seconds})
    await leave(gateway, CHAT, "x-simulate-delay-ms: 1")
    await until(lambda: drained(gateway) == 1)
    stopping = asyncio.ensure_future(gateway.stop())
    if outcome == "drained":
        await until(lambda: gateway.worker.listener.draining)
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert not stopping.done()
        time.release()
    await stopping
    await until(lambda: gateway.stats.in_flight == 0)
    assert gateway.stats.cut_by_client == (outcome == "cut")
    (event,) = await asyncio.to_thread(gateway._events)
    assert (event["outcome"], event["estimated"]) == ("client_gone", outcome == "cut")
    assert [record["outcome"] for record in gateway.records()] == ["client_gone"]
    assert (gateway.in_flight, drained(gateway)) == (0, 0)


@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_while_an_answer_is_made_ready_for_the_cache_in_a_thread(open_gateway: Open, how: str) -> None:
    text = b"x" * 4_000
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text] * 100
    events += [
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":77,"total_tokens":80}}\n\n',
        b"data: [DONE]\n\n",
    ]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await taken.wait()
        writer.write(b"".join(events))
        await writer.drain()
        # It has said all, and does not hang up.
        await reader.read()
        raise ConnectionResetError

    upstream = ScriptedUpstream(script)
    taken, held = asyncio.Event(), threading.Event()
    async with upstream as base_url, AsyncExitStack() as stack:
        gateway = await open_gateway(
            **{"upstream.base_url": base_url, "streams.on_disconnect": how, "upstream.total_timeout_seconds": 3.0}
        )
        stack.callback(held.set)
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes(BODIES["shared stream"]))
            await reader.readuntil(b"\r\n\r\n")
            # Every thread is taken: whoever needs one waits.
            for _ in range(64):
                asyncio.get_running_loop().run_in_executor(None, held.wait)
            taken.set()
            await reader.readuntil(text)
            await until(lambda: "to_thread" in waiting_in())
        if how == "cancel":
            await until(lambda: upstream.left == 1)
        held.set()
        await until(lambda: gateway.in_flight == 0)
        await until(lambda: upstream.left == 1)
        (event,) = await gateway.events()
        assert (event["outcome"], event["estimated"], event["output_tokens"]) == ("ok", False, 77)
        assert await gateway.charged() == (1, 80)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_leaving_at_any_byte_of_a_stream(open_gateway: Open, how: str, seed: int) -> None:
    gateway = await open_gateway(**{"streams.on_disconnect": how})
    chance = random.Random(seed)

    async def one(number: int) -> None:
        shared = chance.random() < 0.5
        body = {**(SHARED if shared else CHAT), "stream": True, "seed": number}
        if chance.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        data = gateway.request_bytes(body, "x-simulate-chunk-ms: 3", f"x-simulate-split: {chance.randrange(1, 90)}")
        async with gateway.connection() as (reader, writer):
            writer.write(data)
            if (most := chance.choice([1, 700, chance.randrange(900, 6_000), None])) is None:
                assert (await read_answer(reader)).data.endswith(b"0\r\n\r\n")
                return
            data = b""
            while len(data) < most and not data.endswith(b"0\r\n\r\n"):
                data += await reader.read(most - len(data))

    await asyncio.gather(*(one(number) for number in range(40)))
    events = await gateway.events()
    assert len(events) == len(gateway.records()) == gateway.stats.requests == 40
    assert {event["outcome"] for event in events} == {"ok", "client_gone"}
    exact_ones = [event for event in events if not event["estimated"]]
    used = sum(event["input_tokens"] + event["output_tokens"] for event in exact_ones)
    requests, tokens = await gateway.charged()
    assert requests == 40
    # Given back while others hold some of the same bucket, tokens come back in part.
    assert tokens >= used
    if how == "drain":
        assert len(exact_ones) == 40
        assert gateway.stats.cut_by_client == 0
        assert used == gateway.stats.input_tokens + gateway.stats.output_tokens
    else:
        assert {event["outcome"] for event in events if event["estimated"]} == {"client_gone"}
        assert tokens >= used + RESERVED * (40 - len(exact_ones))
        assert 0 < gateway.stats.cut_by_client <= 40 - len(exact_ones)
    assert drained(gateway) == 0
    assert await gateway.mismatches() == []
    await gateway.works()


KINDS = {
    **{name: (body, ()) for name, body in BODIES.items()},
    "an error of upstream": (CHAT, ("x-simulate-status: 400",)),
    "an error of upstream in a stream": (BODIES["stream"], ("x-simulate-error-event-after: 2",)),
    "too large": ({**CHAT, "n": 100, "max_tokens": 16_000}, ()),
}


async def test_a_client_that_stays_is_served_as_ever(gateway: Gateway) -> None:
    seen, before = [], Counter()
    for most in (0, 5):
        object.__setattr__(gateway.worker.services.policy, "max_draining", most)
        heads = {}
        for name, (body, wishes) in KINDS.items():
            async with gateway.connection() as (reader, writer):
                writer.write(gateway.request_bytes({"n": 2, "max_tokens": 500 + most, **body}, *wishes))
                answer = await read_answer(reader)
            heads[name] = (answer.status, answer.clean, sorted(answer.headers))
        told = Counter(event["outcome"] for event in await gateway.events())
        seen.append((heads, told - before))
        before = told
    assert seen[0] == seen[1]
    heads, told = seen[0]
    assert told == {"ok": 3, "cached": 1, "upstream_error": 2}
    assert {"x-ratelimit-remaining-tokens", "cache-status", "x-tollgate-attempts"} < set(heads["plain"][2])
