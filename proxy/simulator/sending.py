"""Sending a plain answer: whole, or as its faults would have it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from aiohttp import web
from multidict import CIMultiDict

from proxy.simulator.clock import Time
from proxy.simulator.connection import cut, wait_for_leave
from proxy.simulator.faults import Faults
from proxy.simulator.writing import Writer

__all__ = ["send_plain"]


async def send_plain(
    request: web.BaseRequest,
    pieces: Iterable[bytes],
    length: int | None,
    headers: CIMultiDict[str],
    faults: Faults,
    time: Time,
) -> web.StreamResponse:
    """Send `pieces`, `length` bytes in all (None: chunked). Raises `ConnectionResetError` when the client left.

    A fault that breaks it off, or holds it back, leaves what was announced unsent.
    """
    response = web.StreamResponse(headers=headers)
    if faults.gzip:
        pieces, length = _packed(pieces, response)
    response.content_length = length
    await response.prepare(request)
    if faults.hang_after_head:
        await wait_for_leave(request, time)
        raise ConnectionResetError
    writer = Writer(response, faults, time)
    left = None if faults.cut_after is None else (length or 2) // 2
    for piece in pieces:
        await writer.write(piece if left is None else piece[:left])
        if left is not None and (left := left - len(piece)) <= 0:
            await writer.flush()
            cut(request)
            return response
    await writer.flush()
    return response


def _packed(pieces: Iterable[bytes], response: web.StreamResponse) -> tuple[Iterable[bytes], int]:
    packed = zlib.compress(b"".join(pieces), wbits=31)
    response.headers["Content-Encoding"] = "gzip"
    return (packed,), len(packed)
