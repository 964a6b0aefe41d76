"""Reading the body of a request: JSON whole, a form as it comes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from aiohttp import web

from proxy.simulator.multipart import KEPT_BYTES, Form, FormReader

__all__ = ["Received", "receive"]


@dataclass(frozen=True, slots=True)
class Received:
    """A body, or what is left of it: a form past a few hundred KiB is not kept."""

    body: bytes
    length: int
    sha256: str
    form: Form | None = None


async def receive(request: web.Request) -> Received:
    """Read the body to its end. Raises `Refusal` 400 for a form that is malformed."""
    if request.content_type != "multipart/form-data":
        body = await request.read()
        return Received(body, len(body), hashlib.sha256(body).hexdigest())
    reader = FormReader(request.headers["Content-Type"])
    digest, length, kept = hashlib.sha256(), 0, bytearray()
    async for data in request.content.iter_any():
        digest.update(data)
        reader.feed(data)
        length += len(data)
        if length <= KEPT_BYTES:
            kept += data
    whole = bytes(kept) if length <= KEPT_BYTES else b""
    return Received(whole, length, digest.hexdigest(), reader.finish())
