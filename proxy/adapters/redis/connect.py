"""From an address to a wire that has introduced itself."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import cast

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent, RedisFailure, Reply, Why
from proxy.adapters.redis.wire import Argument, Bounds, Wire

__all__ = ["Unowned", "ask", "ask_once", "connect"]

CONNECT_SECONDS = 2.0
"""For name, handshakes and introduction together."""


class Unowned:
    """An owner that cares for nothing: for wires that live for one question."""

    def answered(self, wire: Wire) -> None:
        """Nothing to do."""

    def refused(self, wire: Wire, reply: ErrorReply) -> None:
        """Nothing to do."""

    def overdue(self, wire: Wire, commands: int) -> None:
        """Nothing to do."""

    def lost(self, wire: Wire) -> None:
        """Nothing to do."""


async def ask(wire: Wire, *args: Argument) -> Reply:
    """Send one command and wait for its reply. Raises `RedisFailure`."""
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    wire.send(future, args)
    return await future


async def connect(
    address: Address, make: Callable[[], Wire], *, primary_only: bool = False, seconds: float = CONNECT_SECONDS
) -> Wire:
    """Open a connection, authenticate, choose the database and see that the server answers.

    `primary_only`: refuse a server that says it is a replica. Raises `NeverSent` where there is no connection to be
    had, `ErrorReply` where the server refuses us. Never leaves a connection behind when it fails.
    """
    wire: Wire | None = None
    try:
        async with asyncio.timeout(seconds):
            wire = await _open(address, make)
            # The deadline of a command is none for key derivation and a busy accept queue.
            usual = wire.deadline_seconds
            wire.hold_to(seconds)
            await _introduce(wire, address, primary_only=primary_only)
            wire.hold_to(usual)
    except BaseException as error:
        if wire is not None:
            wire.abort()
        if isinstance(error, ErrorReply) or not isinstance(error, OSError | UnicodeError | RedisFailure):
            raise
        raise NeverSent(Why.AWAY, f"{address}: {_reason(error)}") from error
    return wire


async def _open(address: Address, make: Callable[[], Wire]) -> Wire:
    loop = asyncio.get_running_loop()
    if address.path:
        _, wire = await loop.create_unix_connection(make, address.path)
        return wire
    if address.tls is None:
        transport, wire = await loop.create_connection(make, address.host, address.port)
    else:
        transport, wire = await loop.create_connection(
            make, address.host, address.port, ssl=address.tls, ssl_shutdown_timeout=1.0
        )
    if (raw := transport.get_extra_info("socket")) is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return wire


async def _introduce(wire: Wire, address: Address, *, primary_only: bool) -> None:
    if address.username or address.password:
        try:
            await ask(wire, "AUTH", *([address.username] if address.username else []), address.password)
        except ErrorReply as error:
            # Only the code: a server that knows no AUTH would repeat the password.
            raise ErrorReply(error.code, f"{address} refuses our credentials") from None
    if address.db:
        await ask(wire, "SELECT", address.db)
    try:
        await ask(wire, "CLIENT", "SETNAME", address.client_name)
    except ErrorReply as error:
        # A name is a courtesy, and a user's rights may not reach so far.
        if error.code != "NOPERM":
            raise
    if primary_only:
        try:
            role = cast("list[Reply]", await ask(wire, "ROLE"))[0]
        except ErrorReply as error:
            if error.code != "NOPERM":
                raise
            role = b"master"
        if role != b"master":
            raise NeverSent(Why.AWAY, "is no primary")
    await ask(wire, "PING")


async def ask_once(address: Address, *args: Argument, seconds: float = CONNECT_SECONDS) -> Reply:
    """Connect, ask, hang up. Raises `RedisFailure`."""
    loop = asyncio.get_running_loop()
    wire = await connect(address, lambda: Wire(Unowned(), Bounds(deadline_seconds=seconds), loop), seconds=seconds)
    try:
        return await ask(wire, *args)
    finally:
        wire.abort()
        await wire.gone.wait()


def _reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, NeverSent):
        return error.where
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        # asyncio's own text repeats the address.
        return os.strerror(error.errno)
    return str(getattr(error, "strerror", None) or type(error).__name__)
