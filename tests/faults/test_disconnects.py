"""Clients that leave, at any moment, and clients that stay and do not read."""

import asyncio
import random
from collections import Counter

import pytest

from tests.faults.conftest import CHAT, TEAM, Gateway, HeldTime, Open, ScriptedUpstream, at_rest, read_answer, until

STREAM = {**CHAT, "stream": True}
RESERVED_INPUT = 7  # 27 characters, the role included
RESERVED_OUTPUT = 1_024
PROMPT = 13  # by the tokenizer: 3 for the message, 1 for its role, 6 for its text, 3 before the answer
RESERVED = RESERVED_INPUT + RESERVED_OUTPUT


async def gone(gateway: Gateway) -> dict:
    """The one event of a request whose client left, after everything that must hold of it."""
    (event,) = await gateway.events()
    assert event["outcome"] == "client_gone"
    assert event["team"] == TEAM
    assert gateway.in_flight == 0
    assert gateway.total("tollgate_requests_total") == 1
    assert gateway.total("tollgate_requests_total", team=TEAM, outcome="client_gone") == 1
    (record,) = gateway.records()
    assert (record["outcome"], record["status"]) == ("client_gone", event["status"])
    assert record["cost_pico_usd"] == event["cost_pico_usd"]
    assert await gateway.mismatches() == []
    return event


@pytest.mark.parametrize("body", [CHAT, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("wish", ["x-simulate-hang: 1", "x-simulate-delay-ms: 600000"])
async def test_before_the_head(gateway: Gateway, body: dict, wish: str) -> None:
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes(body, wish))
        await until(lambda: gateway.stats.in_flight == 1)
    await until(lambda: gateway.stats.cut_by_client == 1)
    event = await gone(gateway)
    assert (event["status"], event["estimated"], event["attempts"]) == (499, True, 1)
    assert (event["input_tokens"], event["output_tokens"]) == (RESERVED_INPUT, RESERVED_OUTPUT)
    assert await gateway.charged() == (1, RESERVED)
    await gateway.works()


async def test_during_a_plain_answer_that_takes_its_time(gateway: Gateway) -> None:
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes(CHAT, "x-simulate-ttft-ms: 600000"))
        await until(lambda: gateway.stats.in_flight == 1)
    await until(lambda: gateway.stats.cut_by_client == 1)
    event = await gone(gateway)
    assert (event["status"], event["estimated"]) == (499, True)
    assert await gateway.charged() == (1, RESERVED)


async def test_after_the_head_of_a_stream(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(STREAM, "x-simulate-ttft-ms: 600000"))
        await reader.readuntil(b"\r\n\r\n")
    await until(lambda: gateway.stats.cut_by_client == 1)
    event = await gone(gateway)
    assert (event["status"], event["estimated"], event["output_tokens"]) == (200, True, 0)
    assert await gateway.charged() == (1, RESERVED)


async def test_in_mid_stream_is_charged_what_ran(open_gateway: Open) -> None:
    gateway = await open_gateway(time=HeldTime(free=4))  # before each piece of text but the first
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(STREAM, "x-simulate-chunk-ms: 50"))
        for _ in range(6):
            await reader.readuntil(b"\n\n")
    await until(lambda: gateway.stats.cut_by_client == 1)
    (seen,) = gateway.stats.records
    event = await gone(gateway)
    assert (event["status"], event["estimated"]) == (200, True)
    assert 5 <= event["output_tokens"] < seen.output_tokens == 16, "a role and five pieces of text were read"
    assert event["input_tokens"] == PROMPT
    assert event["cost_pico_usd"] > 0
    assert await gateway.charged() == (1, RESERVED), "upstream may run on: what was reserved stays"


async def test_right_after_the_last_event_is_no_disconnect(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(STREAM))
        await reader.readuntil(b"data: [DONE]\n\n")
    (event,) = await gateway.events()
    (seen,) = gateway.stats.records
    assert (event["status"], event["outcome"], event["estimated"]) == (200, "ok", False)
    assert (event["input_tokens"], event["output_tokens"]) == (seen.input_tokens, seen.output_tokens)
    assert await gateway.charged() == (1, seen.input_tokens + seen.output_tokens)
    assert gateway.stats.cut_by_client == 0


@pytest.mark.parametrize("sent", [0, 1, 40])
async def test_while_uploading(gateway: Gateway, sent: int) -> None:
    head, blank, body = gateway.request_bytes().partition(b"\r\n\r\n")
    async with gateway.connection() as (_, writer):
        writer.write(head + blank + body[:sent])
        await until(lambda: gateway.in_flight == 1)
    await gateway.settled()
    assert gateway.stats.requests == 0
    assert await gateway.events() == []
    assert await gateway.charged() == (0, 0)
    (record,) = gateway.records()
    assert (record["outcome"], record["status"]) == ("client_gone", 499)
    await gateway.works()


async def test_before_the_request_is_whole(gateway: Gateway) -> None:
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes()[:40])
    await gateway.noticed()
    await gateway.works()
    assert len(gateway.records()) == 1


async def test_between_two_calls_upstream_nothing_is_running(open_gateway: Open) -> None:
    gateway = await open_gateway(**{"upstream.max_backoff_ms": 3_600_000})
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes(CHAT, "x-simulate-status: 503", "x-simulate-retry-after: 300"))
        await until(lambda: gateway.total("tollgate_upstream_errors_total") == 1)
    event = await gone(gateway)
    assert (event["status"], event["estimated"], event["attempts"]) == (499, False, 1)
    assert (event["input_tokens"], event["output_tokens"], event["cost_pico_usd"]) == (0, 0, 0)
    assert await gateway.charged() == (1, 0)
    assert gateway.stats.requests == 1


async def test_while_waiting_for_a_turn_nothing_has_been_sent(open_gateway: Open) -> None:
    gateway = await open_gateway(**{"upstream.requests_per_minute": 1, "upstream.pacing_queue": 1})
    await gateway.works()
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes())
        await until(lambda: gateway.total("tollgate_queued_requests") == 1)
        async with gateway.post() as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "server_is_overloaded"
    _, *later = await gateway.events()
    told = [(event["outcome"], event["status"], event["attempts"], event["cost_pico_usd"]) for event in later]
    assert told == [("client_gone", 499, 0, 0), ("unavailable", 503, 0, 0)]
    requests, _ = await gateway.charged()
    assert requests == 2, "what was refused for our own pace cost no turn"
    assert gateway.stats.requests == 1


async def test_one_that_does_not_read_holds_up_upstream_and_nobody_else(open_gateway: Open) -> None:
    sent = 0
    piece = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"%s"}}]}' % (b"x" * 4_000) + b"\n\n"

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        while sent < 400_000_000:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with ScriptedUpstream(pour) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        async with gateway.connection() as (reader, writer):
            reader._transport.pause_reading()
            writer.write(gateway.request_bytes(STREAM))
            assert await at_rest(lambda: sent) < 40_000_000, "buffers are full, and upstream waits"
            async with gateway.session.get(f"{gateway.worker.base_url}/nowhere") as response:
                assert response.status == 404
            held = sent
            reader._transport.resume_reading()
            await reader.readexactly(held)
            await until(lambda: sent > held)  # it goes on where it stopped
        await until(lambda: gateway.in_flight == 0)
        (event,) = await gateway.events()
        assert (event["outcome"], event["status"]) == ("client_gone", 200)
        assert event["output_tokens"] > held // 5_000


async def test_one_that_never_reads_a_plain_answer(gateway: Gateway) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "echo:" + "x" * 90_000}]}
    async with gateway.connection() as (reader, writer):
        reader._transport.pause_reading()
        writer.write(gateway.request_bytes(body))
        await until(lambda: len(gateway.records()) == 1)
        await gateway.works()
    events = await gateway.events()
    assert [event["outcome"] for event in events] == ["ok", "ok"], "it was paid for before its last byte went out"


MOMENTS = ("at once", "in the upload", "when it is known", "when it is upstream", "in the answer", "never")


async def test_fifty_that_leave_when_they_like(gateway: Gateway) -> None:
    chance = random.Random(7)
    when = [*MOMENTS, *chance.choices(MOMENTS, k=44)]

    async def one(number: int) -> None:
        listens = when[number] == "in the answer"
        body = STREAM if listens or chance.random() < 0.6 else CHAT
        pace = f"x-simulate-chunk-ms: {600_000 if listens else 2}"
        data = gateway.request_bytes(body, pace, f"x-number: {number}")
        async with gateway.connection() as (reader, writer):
            writer.write(data[:-20] if when[number] == "in the upload" else data)
            match when[number]:
                case "in the upload" | "when it is known":
                    await until(lambda: gateway.in_flight > 0)
                case "when it is upstream":
                    await until(lambda: gateway.stats.in_flight > 0)
                case "in the answer":
                    await reader.readexactly(chance.choice([1, 200, 500]))
                case "never":
                    await read_answer(reader)

    await asyncio.gather(*(one(number) for number in range(len(when))))
    await gateway.noticed()
    events = await gateway.events()
    sent = [record for record in gateway.records() if record["attempts"]]
    assert len(sent) == len(events)
    # Some left while the connection upstream was being made: charged, because nobody can tell how far it got.
    assert 0 < gateway.stats.requests <= len(events)
    found = Counter(event["outcome"] for event in events)
    assert found.keys() == {"ok", "client_gone"}
    assert found["ok"] >= when.count("never")
    assert found["client_gone"] >= when.count("in the answer")
    assert sorted(event["request_id"] for event in events) == sorted(record["request_id"] for record in sent)
    assert gateway.stats.cut_by_client <= found["client_gone"]
    requests, tokens = await gateway.charged()
    assert requests == len(events)
    assert tokens >= sum(event["input_tokens"] + event["output_tokens"] for event in events)
    assert await gateway.mismatches() == []
    await gateway.works()
