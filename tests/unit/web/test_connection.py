"""A connection of a listener by itself: who is waited for, and who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest
from aiohttp import web

from proxy.core.errors import BodyTimedOut
from proxy.core.misuse import Cut, Malformed
from proxy.web.bounds import Bounds
from proxy.web.connection import Connection
from proxy.web.downstream import AiohttpDownstream
from proxy.web.server import OpenAIServer
from tests.support.wire import connected, turns

SHORT = 0.1
BODY = b"x" * 10


class Noted:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.seen: list[Malformed | Cut] = []

    def malformed(self, reason: Malformed) -> None:
        self.seen.append(reason)

    def cut(self, reason: Cut) -> None:
        self.seen.append(reason)


@contextlib.asynccontextmanager
async def talking(
    handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], noted: Noted, **bounds: float
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    server = OpenAIServer(handler, max_body_bytes=10_000_000, bounds=Bounds(**bounds), watcher=noted)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", listener.sockets[0].getsockname()[1])
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        listener.close()
        await server.shutdown(1.0)


async def received(request: web.BaseRequest) -> web.Response:
    try:
        body = await AiohttpDownstream(request, (), 10_000_000).receive()
    except BodyTimedOut:
        return web.Response(status=408)
    return web.Response(text=str(len(body)))


async def whole(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(20):
        return await reader.read(-1)


def looks(connection: Connection) -> Iterator[float]:
    """Look at a connection as if more time had passed each time than anybody is given."""
    now = asyncio.get_running_loop().time()
    while True:
        now += 1_000
        connection.look(now)
        yield now


@pytest.mark.parametrize("asks", [True, False])
async def test_a_client_that_waits_to_be_asked_for_its_body_is_not_slow(asks: bool) -> None:
    """Whoever sends `Expect: 100-continue` is silent because of us, until it is asked."""
    asks_now, noted = asyncio.Event(), Noted()

    async def handler(request: web.BaseRequest) -> web.Response:
        await asks_now.wait()
        return await received(request)

    async with connected(handler, watcher=noted) as (connection, wire):
        expect = b"Expect: 100-continue\r\n" if asks else b""
        connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n%s\r\n" % expect)
        await turns()
        next(looks(connection))
        asks_now.set()
        await turns()
        if asks:
            assert b"".join(wire.pieces) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.data_received(BODY)
            await turns()
            assert b"".join(wire.pieces).endswith(b"\r\n\r\n10")
            assert noted.seen == []
        else:
            assert b"".join(wire.pieces).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
            assert noted.seen == [Cut.BODY_TIMEOUT]


async def test_a_client_that_was_asked_for_its_body_and_sends_none_is_slow() -> None:
    noted = Noted()
    async with talking(received, noted, body_timeout_seconds=SHORT) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 408 Request Timeout\r\n"
    assert noted.seen == [Cut.BODY_TIMEOUT]


async def test_before_http_1_1_nobody_waits_to_be_asked() -> None:
    noted = Noted()
    async with talking(received, noted, body_timeout_seconds=SHORT) as (reader, writer):
        writer.write(b"POST / HTTP/1.0\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.0 408 Request Timeout\r\n"
    assert noted.seen == [Cut.BODY_TIMEOUT]


async def test_a_body_that_nobody_takes_is_not_slow() -> None:
    """A handler that passes it on to somebody slow has the server stop reading, and its client wait."""
    takes_now, noted = asyncio.Event(), Noted()
    piece = b"x" * 1_000_000

    async def handler(request: web.BaseRequest) -> web.Response:
        await takes_now.wait()
        return await received(request)

    async with connected(handler, watcher=noted) as (connection, wire):
        connection.data_received(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000000\r\n\r\n")
        connection.data_received(piece)
        await turns()
        next(looks(connection))
        takes_now.set()
        for _ in range(4):
            await turns()
            connection.data_received(piece)
        await turns()
        assert b"".join(wire.pieces).endswith(b"\r\n\r\n5000000")
        assert noted.seen == []


async def streaming(
    request: web.BaseRequest, go_on: Callable[[web.StreamResponse, asyncio.Transport], Awaitable[None]]
) -> web.StreamResponse:
    """An answer whose client reads nothing, so that what is written stays here."""
    response = web.StreamResponse()
    await response.prepare(request)
    wire = request.transport
    while not wire.get_write_buffer_size():
        await response.write(b"x" * 32_768)
        await asyncio.sleep(0)
    await go_on(response, wire)
    return response


async def test_a_stream_of_which_nothing_is_taken_is_cut_though_it_goes_on() -> None:
    """It is little that is written, so that nothing stops the writing for a long time."""
    ended, noted = asyncio.Event(), Noted()

    async def drip(response: web.StreamResponse, _: asyncio.Transport) -> None:
        try:
            while True:
                await response.write(b"x")
                await asyncio.sleep(SHORT / 10)
        finally:
            ended.set()

    async with talking(lambda request: streaming(request, drip), noted, write_timeout_seconds=SHORT) as (_, writer):
        writer.transport.pause_reading()
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        async with asyncio.timeout(20):
            await ended.wait()
    assert noted.seen == [Cut.WRITE_TIMEOUT]


async def test_a_stream_that_is_taken_bit_by_bit_is_not_cut() -> None:
    noted, begun = Noted(), asyncio.Event()
    requests: list[web.BaseRequest] = []

    async def flow(response: web.StreamResponse, _: asyncio.Transport) -> None:
        begun.set()
        for _ in range(300):
            await response.write(b"x" * 100_000)

    def handler(request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        requests.append(request)
        return streaming(request, flow)

    def taken() -> int:
        return requests[0].writer.output_size - requests[0].transport.get_write_buffer_size()

    async with talking(handler, noted) as (reader, writer), asyncio.timeout(60):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        await begun.wait()
        looking, rounds = looks(requests[0].protocol), 0
        while taken() < 25_000_000:
            before = taken()
            next(looking)
            while taken() == before:
                assert await reader.read(500_000)
            rounds += 1
        assert rounds > 5
        assert noted.seen == []
        # And when nothing more is taken it is.
        for _ in range(2):
            next(looking)
        assert noted.seen == [Cut.WRITE_TIMEOUT]
