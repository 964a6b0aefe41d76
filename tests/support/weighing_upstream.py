"""An upstream that weighs what it is sent and answers with as much as it is told: for bodies no test holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.support.served_apart import served_apart

__all__ = ["PIECE", "Answer", "Seen", "WeighingUpstream", "digest_of", "weighing_upstream"]

PIECE = bytes(range(256)) * 256
"""What large bodies are made of, over and over."""

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Seen:
    """One request."""

    method: str
    path_qs: str
    """As it was sent."""
    headers: dict[str, str]
    """By names in lower case; of several the last."""
    length: int
    sha256: str
    whole: bool
    """Its body came to its end."""
    head: bytes
    """The first bytes of its body."""


@dataclass
class WeighingUpstream:
    """Where it is, what it has seen, and what it answers by path; what is not there is answered `{}`."""

    base_url: str = ""
    arrived: list[str] = field(default_factory=list)
    """Paths of requests whose heads have come."""
    seen: list[Seen] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    early: dict[str, Answer] = field(default_factory=dict)
    """Given before the body is read."""


def digest_of(length: int) -> str:
    """Of a body of so many bytes made of `PIECE`."""
    digest = hashlib.sha256()
    for _ in range(length // len(PIECE)):
        digest.update(PIECE)
    digest.update(PIECE[: length % len(PIECE)])
    return digest.hexdigest()


@contextmanager
def weighing_upstream() -> Iterator[WeighingUpstream]:
    upstream = WeighingUpstream()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        upstream.arrived.append(path)
        if path in upstream.early:
            return await upstream.early[path](request)
        digest, length, head, whole = hashlib.sha256(), 0, b"", True
        try:
            async for chunk in request.content.iter_any():
                digest.update(chunk)
                length += len(chunk)
                head = (head + chunk)[:4_096] if len(head) < 4_096 else head
        except Exception:  # noqa: BLE001 - whatever broke it off
            whole = False
        headers = {name.lower(): value for name, value in request.headers.items()}
        upstream.seen.append(Seen(request.method, request.raw_path, headers, length, digest.hexdigest(), whole, head))
        if path in upstream.answers:
            return await upstream.answers[path](request)
        return web.Response(body=json.dumps({"bytes": length}).encode(), content_type="application/json")

    with served_apart(lambda: web.Server(handle, auto_decompress=False)) as upstream.base_url:
        yield upstream
