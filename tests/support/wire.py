"""A connection of a listener, its protocol alone: bytes go in by hand, and what is written is kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from proxy.web.answer import Answer
from proxy.web.bounds import Bounds, Watcher
from proxy.web.connection import Connection
from proxy.web.protocol import Streamed
from proxy.web.server import OpenAIServer

__all__ = ["Handler", "Wire", "connected", "said", "turns"]

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse | Answer | Streamed | None]]


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.closed = False
        self.unsent_bytes = 0
        """What is said to be not sent yet."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def write(self, data: bytes) -> None:
        self.pieces.append(bytes(data))

    def writelines(self, pieces: list[bytes]) -> None:
        self.pieces += pieces

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading

    def can_write_eof(self) -> bool:
        return False


@contextlib.asynccontextmanager
async def connected(
    handler: Handler, *, draining: bool = False, watcher: Watcher | None = None
) -> AsyncIterator[tuple[Connection, Wire]]:
    """A connection to a server that has no other."""
    server = OpenAIServer(handler, max_body_bytes=10_000_000, bounds=Bounds(), watcher=watcher)
    server.draining = draining
    connection, wire = Connection(server, Bounds()), Wire()
    connection.connection_made(wire)
    await turns()
    try:
        yield connection, wire
    finally:
        connection.connection_lost(None)
        await server.shutdown(0)


async def turns(count: int = 20) -> None:
    """Let everything that is ready run, and what becomes ready by that."""
    for _ in range(count):
        await asyncio.sleep(0)


async def said(handler: Handler, *reads: bytes, draining: bool = False) -> tuple[bytes, Wire]:
    """What is written to a client that sends `reads`, one after the other."""
    async with connected(handler, draining=draining) as (connection, wire):
        for data in reads:
            connection.data_received(data)
            # Of many that come together each takes one.
            await turns(20 + data.count(b"\r\n\r\n"))
        return b"".join(wire.pieces), wire
