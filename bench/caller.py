"""A client that is nearly free: one connection of HTTP/1.1, requests as bytes, answers told of and thrown away."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class CallFailed(Exception):
    """A connection ended, or what came was no answer of known length."""


class Caller(asyncio.Protocol):
    """Asks one thing at a time; `told(caller, status)` is called when all of the answer is there.

    `failed(error)` is called when there will be no answer.
    """

    def __init__(self, told: Callable[[Caller, int], None], failed: Callable[[CallFailed], None]) -> None:
        self._told = told
        self._failed = failed
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self.asking = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = transport  # type: ignore[assignment]  # of a stream, always

    def connection_lost(self, exc: Exception | None) -> None:
        """Say so where an answer is outstanding."""
        self._transport = None
        if self.asking:
            self._failed(CallFailed(f"connection lost: {exc}"))

    def ask(self, request: bytes) -> None:
        """Send a request."""
        self.asking = True
        if self._transport is None:
            self._failed(CallFailed("connection lost before it was asked"))
        else:
            self._transport.write(request)

    def close(self) -> None:
        """Leave."""
        self.asking = False
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Wait until all of it is there."""
        received = self._received
        received += data
        end = received.find(b"\r\n\r\n")
        if end < 0 or not self.asking:
            return
        length = LENGTH.search(received, 0, end + 2)
        if length is None:
            self._failed(CallFailed(bytes(received[:end]).decode("latin-1")))
            return
        if len(received) < end + 4 + int(length[1]):
            return
        status = int(received[9:12])
        received.clear()
        self.asking = False
        self._told(self, status)


async def connect(port: int, told: Callable[[Caller, int], None], failed: Callable[[CallFailed], None]) -> Caller:
    """One connection to a loopback port."""
    _, caller = await asyncio.get_running_loop().create_connection(lambda: Caller(told, failed), "127.0.0.1", port)
    return caller
