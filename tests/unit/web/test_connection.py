"""A connection of a listener by itself: who is waited for, and who waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from proxy.core.errors import BodyTimedOut
from proxy.core.misuse import Cut, Malformed
from proxy.web.bounds import Bounds
from proxy.web.downstream import AiohttpDownstream
from proxy.web.server import OpenAIServer

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


@pytest.mark.parametrize("asks", [True, False])
async def test_a_client_that_waits_to_be_asked_for_its_body_is_not_slow(asks: bool) -> None:
    """Whoever sends `Expect: 100-continue` is silent because of us, until it is asked."""
    asked, noted = asyncio.Event(), Noted()

    async def handler(request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(5 * SHORT)
        asked.set()
        return await received(request)

    async with talking(handler, noted, body_timeout_seconds=SHORT) as (reader, writer):
        expect = b"Expect: 100-continue\r\n" if asks else b""
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nConnection: close\r\n%s\r\n" % expect)
        await asked.wait()
        if asks:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(BODY)
            assert (await whole(reader)).endswith(b"\r\n\r\n10")
            assert noted.seen == []
        else:
            assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 408 Request Timeout\r\n"
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
    noted = Noted()
    body = b"x" * 5_000_000

    async def handler(request: web.BaseRequest) -> web.Response:
        await asyncio.sleep(5 * SHORT)
        return await received(request)

    async with talking(handler, noted, body_timeout_seconds=SHORT) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        writer.write(body)
        assert (await whole(reader)).endswith(b"\r\n\r\n5000000")
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
    noted = Noted()
    done = asyncio.Event()

    async def flow(response: web.StreamResponse, _: asyncio.Transport) -> None:
        for _ in range(100):
            await response.write(b"x" * 100_000)
        done.set()

    async with talking(lambda request: streaming(request, flow), noted, write_timeout_seconds=1.0) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            while await reader.read(500_000):  # noqa: ASYNC110 - the client is slow of its own
                await asyncio.sleep(0.1)
    assert done.is_set()
    assert noted.seen == []
