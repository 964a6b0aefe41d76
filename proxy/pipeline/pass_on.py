"""Give the client upstream's answer piece by piece, unheld and untouched; settled before its last byte goes out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import msgspec

from proxy.core.errors import UpstreamFailure, UpstreamFault, UpstreamKeyRefused
from proxy.core.event import Outcome
from proxy.core.headers import returnable, returned_as_it_is
from proxy.core.media_answer import Media, MediaAnswer
from proxy.core.usage import NO_USAGE
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.keep_alive import KeepAlive
from proxy.pipeline.own_headers import own_headers
from proxy.pipeline.services import Services
from proxy.pipeline.settle import CLIENT_CLOSED_REQUEST, settle, settle_broken, settle_refused
from proxy.ports import Downstream, UpstreamAnswer

__all__ = ["pass_as_it_is", "pass_media"]

_SSE = "text/event-stream"
_READ_ON_SECONDS = 5
_MAX_ID_CHARACTERS = 128
_NOT_MODIFIED = 304
_STREAM_HEADERS = (("Cache-Control", "no-cache, no-store"), ("X-Accel-Buffering", "no"))
_PLAIN_HEADERS = (("Cache-Control", "private, no-store"),)


async def pass_media(
    exchange: Exchange, media: Media, answer: UpstreamAnswer, client: Downstream, services: Services
) -> Reply:
    """Pass images or audio on, and settle with the usage that is found in it. Raises `UpstreamFailure`."""
    following = media.follow(answer.headers.get("Content-Type", ""))
    try:
        _note_id(exchange, answer)
        chunks = _timed(exchange, answer, services)
        streamed = _is_stream(answer)
        # The head of a stream goes out before its first event, which may take a minute to paint.
        first = b"" if streamed else await anext(chunks, b"")
        following.feed(first)
        if not following.acceptable:
            raise UpstreamFailure(exchange.upstream, UpstreamFault.CONTENT)
        headers = returnable(answer.headers.items(), error=False)
        if "Content-Length" in answer.headers and "Content-Encoding" not in answer.headers and not streamed:
            headers += (("Content-Length", answer.headers["Content-Length"]),)
        exchange.status = answer.status
        if streamed:
            exchange.error_event = lambda *error: b"" if following.done or following.errored else _error_event(*error)
        with _kept_alive(exchange, following, client, services) as kept:
            await kept.open(answer.status, (*headers, *_common(exchange, streamed=streamed)))
            return await _Passing(exchange, kept, services, holds=not streamed).run(first, chunks, following)
    except (ConnectionResetError, asyncio.CancelledError):
        await _settle_behind(exchange, answer, following, services)
        raise
    except UpstreamFailure as failure:
        services.telemetry.upstream_failed(exchange.upstream, failure.fault)
        raise
    finally:
        answer.close()


async def pass_as_it_is(exchange: Exchange, answer: UpstreamAnswer, client: Downstream, services: Services) -> Reply:
    """Pass on what is kept upstream, whatever it is and however encoded.

    Raises `UpstreamFailure`, `UpstreamKeyRefused`.
    """
    try:
        _note_id(exchange, answer)
        if answer.status == 401:
            raise UpstreamKeyRefused(exchange.upstream)
        if 300 <= answer.status < 400 and answer.status != _NOT_MODIFIED:
            # Redirects are not followed: they could lead our key anywhere.
            raise UpstreamFailure(exchange.upstream, UpstreamFault.CONTENT)
        headers = returned_as_it_is(answer.headers.items())
        if answer.status >= 400:
            body = await answer.read()
            settle_refused(exchange, services, answer.status)
            kept = tuple(header for header in headers if header[0].lower() != "content-length")
            return Reply(answer.status, (*kept, *_common(exchange, streamed=False)), body)
        streamed = _is_stream(answer)
        exchange.status = answer.status
        await client.open(answer.status, (*headers, *_common(exchange, streamed=streamed)))
        passing = _Passing(exchange, client, services, holds=not streamed)
        return await passing.run(b"", _timed(exchange, answer, services), None)
    except UpstreamFailure as failure:
        services.telemetry.upstream_failed(exchange.upstream, failure.fault)
        raise
    finally:
        answer.close()


class _Passing:
    """One answer on its way to the client, once its head is sent."""

    __slots__ = ("_client", "_exchange", "_held", "_holds", "_services")

    def __init__(self, exchange: Exchange, client: Downstream, services: Services, *, holds: bool) -> None:
        """`holds`: its last byte waits for the account. A stream's end is told by its own last event instead."""
        self._exchange = exchange
        self._client = client
        self._services = services
        self._holds = holds
        self._held = b""

    async def run(self, first: bytes, chunks: AsyncIterator[bytes], following: MediaAnswer | None) -> Reply:
        """Pass `first` and all that follows it on, and end the answer as what it is: whole, or broken off."""
        exchange, client = self._exchange, self._client
        try:
            await self._pass(first, following)
            async for chunk in chunks:
                if following is not None:
                    following.feed(chunk)
                await self._pass(chunk, following)
        except UpstreamFailure as failure:
            # A stream that has said all it had to say is whole, however its connection ended.
            if following is None or self._holds or not following.done:
                return await self._break_off(failure.fault, following)
        if following is not None and not following.whole:
            return await self._break_off(UpstreamFault.CONTENT, following)
        self._settle(following)
        if self._held:
            await client.write(self._held)
        await client.close()
        return Reply(exchange.status, body=None)

    async def _pass(self, chunk: bytes, following: MediaAnswer | None) -> None:
        if following is not None and following.done:
            self._settle(following)
        if not chunk:
            return
        exchange = self._exchange
        if not exchange.as_it_is:
            exchange.first_byte_ns = exchange.first_byte_ns or self._services.clock.monotonic_ns()
        if self._holds and not exchange.settled:
            held, self._held = self._held, chunk[-1:]
            chunk = held + chunk[:-1]
        elif self._held:
            chunk, self._held = self._held + chunk, b""
        if chunk:
            await self._client.write(chunk)

    def _settle(self, following: MediaAnswer | None) -> None:
        if not self._exchange.settled:
            _settle_metered(self._exchange, following, self._services)

    async def _break_off(self, fault: UpstreamFault, following: MediaAnswer | None) -> Reply:
        """End an answer that upstream did not finish so that no client can take it for whole."""
        exchange, failure = self._exchange, UpstreamFailure(self._exchange.upstream, fault)
        self._services.telemetry.upstream_failed(exchange.upstream, fault)
        exchange.running = exchange.running and not exchange.as_it_is
        settle_broken(exchange, self._services, failure)
        if following is not None and not (self._holds or following.errored):
            # An event that was passed in half is ended first, or the error would become a part of it.
            before = b"" if following.between_events else b"\n\n"
            message = "The upstream API broke off in the middle of this answer."
            await self._client.write(before + _error_event(message, f"upstream_{fault.value}"))
        self._client.abort()
        return Reply(exchange.status, body=None)


def _error_event(message: str, code: str) -> bytes:
    error = {"message": message, "type": "server_error", "param": None, "code": code}
    return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


async def _settle_behind(
    exchange: Exchange, answer: UpstreamAnswer, following: MediaAnswer, services: Services
) -> None:
    """Read on, when the client has left, to the usage that stands behind all images: they are made, and billed.

    Bounded in time; what is not found by then is estimated. Of a stream more may be in the making, and is stopped.
    """
    if exchange.settled or _is_stream(answer) or following.whole or services.shutdown.over:
        return
    try:
        async with asyncio.timeout(_READ_ON_SECONDS):
            async for chunk in answer.chunks():
                following.feed(chunk)
    except (UpstreamFailure, TimeoutError):
        return
    if following.metered is not None:
        exchange.status = exchange.status or CLIENT_CLOSED_REQUEST
        _settle_metered(exchange, following, services, Outcome.CLIENT_GONE)


def _settle_metered(
    exchange: Exchange, following: MediaAnswer | None, services: Services, outcome: Outcome = Outcome.OK
) -> None:
    metered = following.metered if following is not None else None
    if metered is None or not metered.priceable:
        # No figure of ours would be right.
        exchange.price = None
    usage = NO_USAGE if metered is None else metered.usage
    settle(exchange, services, status=exchange.status, outcome=outcome, usage=usage)


@contextmanager
def _kept_alive(
    exchange: Exchange, following: MediaAnswer, client: Downstream, services: Services
) -> Iterator[Downstream]:
    """The client, told between the events of a silent stream that it goes on, where the operator says so."""
    seconds = services.policy.keep_alive_seconds
    if seconds:
        exchange.between_events = lambda: following.between_events
    if not seconds or exchange.shared:
        yield client
        return
    kept = KeepAlive(client, seconds, lambda: following.between_events, services.spawn)
    try:
        yield kept
    finally:
        kept.end()


def _common(exchange: Exchange, *, streamed: bool) -> tuple[tuple[str, str], ...]:
    # Where several may listen, each of them adds its own.
    own = () if exchange.shared else own_headers(exchange)
    return (*(_STREAM_HEADERS if streamed else _PLAIN_HEADERS), *own)


def _is_stream(answer: UpstreamAnswer) -> bool:
    return answer.headers.get("Content-Type", "").lower().startswith(_SSE)


def _note_id(exchange: Exchange, answer: UpstreamAnswer) -> None:
    theirs = answer.headers.get("x-request-id", "")
    fits = theirs.isascii() and theirs.isprintable() and len(theirs) <= _MAX_ID_CHARACTERS
    exchange.upstream_request_id = theirs if fits else ""


async def _timed(exchange: Exchange, answer: UpstreamAnswer, services: Services) -> AsyncIterator[bytes]:
    """Pass the chunks, adding up the time spent waiting for them."""
    clock = services.clock
    waited_from_ns = clock.monotonic_ns()
    async for chunk in answer.chunks():
        exchange.upstream_ns += clock.monotonic_ns() - waited_from_ns
        yield chunk
        waited_from_ns = clock.monotonic_ns()
    exchange.upstream_ns += clock.monotonic_ns() - waited_from_ns
