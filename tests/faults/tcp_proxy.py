"""A TCP proxy between a client and a server that can delay, swallow or cut what comes back, and the replies only.

What the client sends always arrives: so a test can have a command carried out and its reply lost.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

__all__ = ["TcpProxy", "run_tcp_proxy"]


class TcpProxy:
    """One listener on loopback, in front of a port or a unix socket; faults hold for all connections."""

    def __init__(self, target: tuple[str, int] | str, tls: ssl.SSLContext | None = None) -> None:
        """`tls`: speak it to the client; the server is spoken to in the clear."""
        self._target = target
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._replies_flow = asyncio.Event()
        self._replies_flow.set()
        self.port = 0
        self.delay_seconds = 0.0
        """How long each piece of a reply is kept."""
        self.drops_replies = False
        """Whether replies are read and thrown away."""
        self.refuses = False
        """Whether new connections are closed at once."""
        self.accepted = 0
        self.request_bytes = 0
        self.dropped_bytes = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def hold_replies(self) -> None:
        """Keep replies back until `release_replies`."""
        self._replies_flow.clear()

    def release_replies(self) -> None:
        """Pass on what was kept, in order."""
        self._replies_flow.set()

    def cut(self) -> None:
        """Reset every connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            if not self.refuses:
                await self._relay(reader, writer)
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._target, str):
                server_reader, server_writer = await asyncio.open_unix_connection(self._target)
            else:
                server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            return
        ends = {writer, server_writer}
        self._writers |= ends
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._requests(reader, server_writer))
                group.create_task(self._replies(server_reader, writer))
        finally:
            self._writers -= ends
            server_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                self.request_bytes += len(data)
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                await self._replies_flow.wait()
                if self.drops_replies:
                    self.dropped_bytes += len(data)
                    continue
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def run_tcp_proxy(target: tuple[str, int] | str, tls: ssl.SSLContext | None = None) -> AsyncIterator[TcpProxy]:
    """A proxy that is up inside the block and leaves nothing behind it."""
    proxy = TcpProxy(target, tls)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
