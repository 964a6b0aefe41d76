"""Into the cache and out of it: an answer is kept once, as a plain one, and told in the form that is asked for.

The bytes of a stream are not kept beside it: they are some ten times the answer, where they were cut says nothing, and
half of them may be padding. A stream from the cache tells the same completion in fewer and larger pieces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from proxy.core.replay import Form, NotTellable
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Policy, Services
from proxy.ports import CachedAnswer

__all__ = ["Copy", "keep", "keep_stream", "stream_room_bytes", "tell"]

Headers = tuple[tuple[str, str], ...]
_CONTENT_TYPE = {Form.PLAIN: "application/json", Form.STREAM: "text/event-stream; charset=utf-8"}
_ON_LOOP_BYTES = 262_144
"""More is converted in a thread: it takes milliseconds, which others on this loop would wait."""


_STREAM_TO_ANSWER = 16
"""How many times an answer its stream may be: 10 is usual, the half of it frames and ids, and padding comes on top."""


def stream_room_bytes(policy: Policy) -> int:
    """What is held of a stream, for the cache and for those who come late: what the largest entry takes to tell."""
    return _STREAM_TO_ANSWER * policy.cache_entry_max_bytes


class Copy:
    """What has come of a stream, for the cache; None once it is more than there is room for."""

    __slots__ = ("_pieces", "_room_bytes")

    def __init__(self, room_bytes: int) -> None:
        self._room_bytes = room_bytes
        self._pieces: list[bytes] | None = []

    def add(self, piece: bytes) -> None:
        """Take the next bytes as they came from upstream."""
        self._room_bytes -= len(piece)
        if self._room_bytes < 0:
            self._pieces = None
        elif self._pieces is not None:
            self._pieces.append(piece)

    def whole(self) -> bytes | None:
        """Return all of it."""
        return None if self._pieces is None else b"".join(self._pieces)


async def tell(entry: CachedAnswer, exchange: Exchange) -> CachedAnswer | None:
    """Return an entry in the form a request asks for, or None where it cannot be told in that form."""
    asked, telling = exchange.asked, exchange.kind.telling
    if not asked.stream:
        return entry if entry.form is Form.PLAIN else None
    write = telling.stream_of if entry.form is Form.PLAIN else telling.retold
    try:
        body = await _converted(lambda kept: write(kept, include_usage=asked.include_usage), entry.body)
    except NotTellable:
        return None
    return replace(entry, form=Form.STREAM, headers=_as(Form.STREAM, entry.headers), body=body)


async def keep_stream(exchange: Exchange, services: Services, status: int, headers: Headers, copy: Copy) -> bool:
    """Keep what a whole stream told, in both forms where that can be; False when it was not kept."""
    stream = copy.whole()
    if exchange.address is None or stream is None:
        return False
    try:
        body = await _converted(exchange.kind.telling.plain_of, stream)
    except NotTellable:
        return await keep(exchange, services, status, headers, stream, Form.STREAM)
    return await keep(exchange, services, status, _as(Form.PLAIN, headers), body)


async def keep(
    exchange: Exchange, services: Services, status: int, headers: Headers, body: bytes, form: Form = Form.PLAIN
) -> bool:
    """Keep an answer that may be given again; False when it was not kept. Uses the right in `exchange.fill` up."""
    if exchange.address is None or status != 200 or len(body) > services.policy.cache_entry_max_bytes:
        return False
    entry = CachedAnswer(
        status=status,
        headers=headers,
        body=body,
        model=exchange.asked.model,
        stored_at_ms=services.clock.now_ms(),
        ttl_ms=services.policy.cache_ttl_ms,
        input_tokens=exchange.usage.input_tokens,
        output_tokens=exchange.usage.output_tokens,
        cost_pico_usd=exchange.cost_pico_usd,
        form=form,
    )
    exchange.kept = entry
    fill, exchange.fill = exchange.fill, None
    exchange.stored = fill is not None and await fill.store(entry)
    return exchange.stored


async def _converted(convert: Callable[[bytes], bytes], body: bytes) -> bytes:
    return convert(body) if len(body) <= _ON_LOOP_BYTES else await asyncio.to_thread(convert, body)


def _as(form: Form, headers: Headers) -> Headers:
    others = ((name, value) for name, value in headers if name.lower() != "content-type")
    return (("Content-Type", _CONTENT_TYPE[form]), *others)
