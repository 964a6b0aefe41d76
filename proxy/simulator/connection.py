"""The connection to a client, below HTTP: waiting on it, breaking it."""

from __future__ import annotations

import socket
import struct

from aiohttp import web

from proxy.simulator.clock import Time

__all__ = ["client_left", "cut", "cut_inside", "reset", "say_garbage", "wait_for_leave"]

_LOOK_SECONDS = 0.05
_GARBAGE = b"220 simulated.invalid ESMTP\r\n\x00\xff\r\n\r\n"
_LINGER_NOT = struct.pack("ii", 1, 0)


def client_left(request: web.BaseRequest) -> bool:
    """Whether the connection is gone."""
    return request.transport is None or request.transport.is_closing()


async def wait_for_leave(request: web.BaseRequest, time: Time) -> None:
    """Return when the client has closed the connection.

    Looks every 50 ms, so that it works with and without the server's `handler_cancellation`.
    """
    while not client_left(request):
        await time.sleep(_LOOK_SECONDS)


def cut(request: web.BaseRequest) -> None:
    """End the connection after what was written, in the middle of the answer."""
    if request.transport is not None:
        request.transport.close()


def reset(request: web.BaseRequest) -> None:
    """End the connection with a TCP reset."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    transport.abort()


def cut_inside(request: web.BaseRequest, data: bytes) -> None:
    """End the connection in the middle of a chunk of HTTP, of which the first half of `data` was sent."""
    if request.transport is not None:
        request.transport.write(b"%x\r\n" % len(data) + data[: len(data) // 2])
        request.transport.close()


def say_garbage(request: web.BaseRequest) -> None:
    """Send bytes that are no HTTP, and end the connection."""
    if request.transport is not None:
        request.transport.write(_GARBAGE)
        request.transport.close()
