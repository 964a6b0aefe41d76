"""A proxy as networks have it: CONNECT for HTTPS, absolute targets for HTTP, everything led to one place."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

__all__ = ["ForwardProxy"]


class ForwardProxy:
    """Leads every call to one local port, whatever it is for, and keeps the heads it was sent."""

    def __init__(self, target_port: int, *, refuses: bool = False) -> None:
        self._target_port = target_port
        self._refuses = refuses
        self.heads: list[bytes] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving = 0
        self._ended = asyncio.Event()

    @property
    def lines(self) -> list[bytes]:
        """The first line of each head."""
        return [head.split(b"\r\n")[0] for head in self.heads]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        while self._serving:
            await self._ended.wait()
            self._ended.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving += 1
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._lead(reader, writer)
        finally:
            writer.close()
            self._serving -= 1
            self._ended.set()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._refuses:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        there, out = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._writers.add(out)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            method, target, rest = head.split(b" ", 2)
            out.write(b" ".join((method, b"/" + target.split(b"/", 3)[3], rest)))
        await asyncio.gather(_pass(reader, out), _pass(there, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()
