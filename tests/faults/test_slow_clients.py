"""Clients that take their time: each state of a connection has a bound of its own, and what is cut is accounted for."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from proxy.web import full
from tests.faults.conftest import CHAT, PATIENCE_SECONDS, Gateway, Open, ScriptedUpstream, read_answer, until

GOOD = json.dumps(CHAT).encode()
PATIENT = {
    "server.header_timeout_seconds": 60.0,
    "server.body_timeout_seconds": 60.0,
    "server.write_timeout_seconds": 60.0,
    "server.idle_timeout_seconds": 60.0,
}
SHORT = 0.2


def chunked(gateway: Gateway) -> bytes:
    return gateway.request_bytes(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the server closes."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        return await reader.read(-1)


def cuts(gateway: Gateway) -> dict[str, float]:
    reasons = ("head_timeout", "body_timeout", "write_timeout", "too_many")
    found = {reason: gateway.metric("tollgate_connections_cut_total", reason=reason) for reason in reasons}
    return {reason: count for reason, count in found.items() if count}


async def slow(open_gateway: Open, **changes: object) -> Gateway:
    return await open_gateway(**PATIENT | {f"server.{name}": value for name, value in changes.items()})


async def test_a_head_that_drips_is_told_so(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, header_timeout_seconds=SHORT)
    head = gateway.request_bytes().partition(b"\r\n\r\n")[0]
    async with gateway.connection() as (reader, writer):
        dripping = asyncio.create_task(drip(writer, head))
        answer = await read_answer(reader)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-request-id"].startswith("req_")
        assert await closed(reader) == b""
        dripping.cancel()
    assert cuts(gateway) == {"head_timeout": 1}
    await gateway.works()


async def drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for at in range(len(data)):
        writer.write(data[at : at + 1])
        await asyncio.sleep(SHORT / 10)


async def test_a_head_that_drips_behind_a_served_request_is_no_other(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, header_timeout_seconds=SHORT)
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes())
        assert (await read_answer(reader)).status == 200
        writer.write(b"POST /v1/chat")
        assert (await read_answer(reader)).status == 408
        assert await closed(reader) == b""
    assert cuts(gateway) == {"head_timeout": 1}


async def test_a_head_that_hangs_behind_a_request_in_flight_waits_for_its_turn(open_gateway: Open) -> None:
    release = asyncio.Event()

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(b"HTTP/1.1 418 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**PATIENT | {"server.header_timeout_seconds": SHORT, "upstream.base_url": url})
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes())
            await until(lambda: gateway.in_flight == 1)
            writer.write(b"POST /v1/chat")
            await until(lambda: cuts(gateway) == {"head_timeout": 1})
            release.set()
            data = await closed(reader)
    assert data.startswith(b"HTTP/1.1 418")
    assert data.count(b"HTTP/1.") == 2
    assert b" 408 " in data


async def test_a_body_that_stops_is_told_so_and_costs_nothing(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, body_timeout_seconds=SHORT)
    for head, part in ((gateway.request_bytes(), b""), (chunked(gateway), b"10\r\n")):
        async with gateway.connection() as (reader, writer):
            writer.write(head[:-1] if not part else head + part)
            answer = await read_answer(reader)
            assert (answer.status, answer.error["code"]) == (408, "request_timeout")
            assert answer.headers["connection"] == "close"
            writer.write_eof()
            assert await closed(reader) == b""
    assert cuts(gateway) == {"body_timeout": 2}
    assert gateway.stats.requests == 0
    assert await gateway.charged() == (0, 0)
    assert [record["status"] for record in gateway.records()] == [408, 408]
    await gateway.works()


async def test_a_body_that_drips_comes_in(open_gateway: Open) -> None:
    """Each piece is in time, all together are not: it is silence that is bounded."""
    gateway = await slow(open_gateway, body_timeout_seconds=2.0)
    head = chunked(gateway)
    async with gateway.connection() as (reader, writer):
        writer.write(head)
        for at in range(0, len(GOOD), 8):
            piece = GOOD[at : at + 8]
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await asyncio.sleep(0.2)
        writer.write(b"0\r\n\r\n")
        assert (await read_answer(reader)).status == 200
    assert cuts(gateway) == {}


async def test_a_client_that_does_not_take_its_answer_has_left(open_gateway: Open) -> None:
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * 60_000)
        try:
            while True:
                writer.write(b"%x\r\n%s\r\n" % (len(event), event))
                await writer.drain()
        except ConnectionError:
            left.set()
            raise

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**PATIENT | {"server.write_timeout_seconds": SHORT, "upstream.base_url": url})
        async with gateway.connection() as (_, writer):
            writer.transport.pause_reading()
            writer.write(gateway.request_bytes({**CHAT, "stream": True}))
            await until(lambda: cuts(gateway) == {"write_timeout": 1})
            async with asyncio.timeout(PATIENCE_SECONDS):
                await left.wait()
            (event,) = await gateway.events()
    assert event["outcome"] == "client_gone"
    assert gateway.total("tollgate_requests_total", outcome="client_gone") == 1


async def test_a_client_that_takes_its_answer_slowly_gets_it_whole(open_gateway: Open) -> None:
    size = 2_000_000

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        event = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % (b"x" * (size // 40))
        end = b"data: [DONE]\n\n"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n" % (len(event), event) * 40)
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))
        await writer.drain()

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**PATIENT | {"server.write_timeout_seconds": 3.0, "upstream.base_url": url})
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes({**CHAT, "stream": True}, "Connection: close"))
            taken = b""
            while piece := await reader.read(size // 20):
                taken += piece
                await asyncio.sleep(0.1)
    assert taken.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert taken.count(b"x") > size - 10
    assert cuts(gateway) == {}


async def test_an_idle_connection_is_let_go_in_order(open_gateway: Open) -> None:
    # One that has asked is not idle, but for the moment before that is read.
    gateway = await slow(open_gateway, idle_timeout_seconds=3 * SHORT)
    async with gateway.connection() as (reader, _):
        assert await closed(reader) == b""
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes())
        assert (await read_answer(reader)).status == 200
        assert await closed(reader) == b"", "closed, not reset"
    assert cuts(gateway) == {}


async def test_a_long_answer_is_not_an_idle_connection(open_gateway: Open) -> None:
    release = asyncio.Event()

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        writer.write(b"HTTP/1.1 418 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")

    short = dict.fromkeys(PATIENT, 2 * SHORT)
    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**short | {"upstream.base_url": url})
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes())
            await asyncio.sleep(5 * SHORT)
            assert gateway.in_flight == 1
            release.set()
            assert (await read_answer(reader)).status == 418


async def test_one_connection_too_many_is_told_so(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, max_connections=2)
    async with gateway.connection() as (first, one), gateway.connection() as (_, two):
        for writer in (one, two):
            writer.write(b"GET /v1/models HTTP/1.1\r\n")
        await until(lambda: gateway.worker.listener.open_connections == 2)
        answer = await gateway.raw(gateway.request_bytes())
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        assert answer.error["type"] == "service_unavailable_error"
        assert (answer.headers["connection"], answer.headers["retry-after"]) == ("close", "1")
        assert answer.headers["x-request-id"].startswith("req_")
        one.write(b"Host: a\r\n\r\n")
        assert (await read_answer(first)).status == 401, "those who were there are served"
    assert cuts(gateway) == {"too_many": 1}
    await until(lambda: gateway.worker.listener.open_connections == 0)
    await gateway.works()


async def test_connections_that_are_refused_have_a_bound_too(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Or each would be ended after a while for saying nothing.
    monkeypatch.setattr(full, "_PATIENCE_SECONDS", 3_600)
    gateway = await slow(open_gateway, max_connections=1)
    async with gateway.connection(), gateway.connection() as (_, second):
        await until(lambda: gateway.worker.listener.open_connections == 2)
        async with gateway.connection() as (reader, _):
            assert await closed(reader) == b""
        second.write(b"x")
        assert gateway.worker.listener.open_connections == 2
    await until(lambda: gateway.worker.listener.open_connections == 0)


async def test_a_refused_connection_that_says_nothing_is_ended(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, max_connections=1)
    async with gateway.connection(), gateway.connection() as (reader, _):
        assert await closed(reader) == b""


async def test_a_refused_client_hears_why_though_it_goes_on_sending(open_gateway: Open) -> None:
    """Closing on bytes that were not read would reset the connection, and take the answer with it."""
    gateway = await slow(open_gateway)
    async with gateway.connection() as (reader, writer):
        writer.write(b"BREW / HTTP/1.1\r\n\r\n")
        for _ in range(20):
            writer.write(b"x" * 50_000)
            await asyncio.sleep(0)
        answer = await read_answer(reader)
        assert answer.status == 400
        assert await closed(reader) == b""
    assert gateway.metric("tollgate_malformed_requests_total", reason="request") == 1


async def test_what_is_no_request_is_counted_by_reason(open_gateway: Open) -> None:
    gateway = await slow(open_gateway)
    sent = {
        "request": b"BREW / HTTP/1.1\r\n\r\n",
        "framing": gateway.request_bytes().replace(b"Content-Length: ", b"Content-Length: 0000000000000000000"),
        "head_too_large": gateway.request_bytes(None, "x: " + "a" * 70_000),
        "too_many_headers": gateway.request_bytes(None, *(f"x-{n}: a" for n in range(200))),
        "expectation": gateway.request_bytes(None, "Expect: more"),
    }
    name = "tollgate_malformed_requests_total"
    assert {reason: gateway.worker.metrics.registry.get_sample_value(name, {"reason": reason}) for reason in sent} == (
        dict.fromkeys(sent, 0.0)
    )
    for reason, data in sent.items():
        assert (await gateway.raw(data)).status in {400, 417, 431}
        assert gateway.metric(name, reason=reason) == 1, reason
    assert gateway.total(name) == len(sent)


async def test_bodies_of_all_have_room_for_so_much_and_no_more(open_gateway: Open) -> None:
    gateway = await slow(open_gateway, max_held_bytes=100_000)
    large = GOOD.ljust(60_000)
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(large)[:-1])
        room = gateway.worker.listener._handler.__self__._room
        await until(lambda: room.held_bytes == len(large) - 1)
        for _ in range(3):
            answer = await gateway.raw(gateway.request_bytes(large))
            assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
            assert "retry-after" in answer.headers
        await gateway.works()
        writer.write(large[-1:])
        assert (await read_answer(reader)).status == 200
    for _ in range(5):
        assert (await gateway.raw(gateway.request_bytes(large))).status == 200, "what was held is given back"
    async with gateway.connection() as (_, writer):
        writer.write(gateway.request_bytes(large)[:-1])
        await until(lambda: gateway.in_flight == 1)
    await until(lambda: gateway.in_flight == 0)
    assert (await gateway.raw(gateway.request_bytes(large))).status == 200, "by whoever leaves, too"
    packed = gzip.compress(GOOD.ljust(99_000))
    answer = await gateway.raw(gateway.request_bytes(packed, "Content-Encoding: gzip"))
    assert answer.status == 200
    packed = gzip.compress(GOOD.ljust(100_000))
    assert (await gateway.raw(gateway.request_bytes(packed, "Content-Encoding: gzip"))).status == 503
