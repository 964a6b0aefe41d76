"""Bring upstream's answer to the client: whole, or piece by piece; settled before its last byte goes out."""

from __future__ import annotations

import asyncio
from functools import partial

import msgspec

from proxy.core.answer import AnswerStream
from proxy.core.errors import UpstreamFailure, UpstreamFault, UpstreamKeyRefused
from proxy.core.event import Outcome
from proxy.core.headers import returnable
from proxy.core.sse import EventTooLongError
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.keep import Copy, keep, keep_stream, stream_room_bytes
from proxy.pipeline.keep_alive import KeepAlive, is_between_events
from proxy.pipeline.own_headers import own_headers
from proxy.pipeline.services import Services
from proxy.pipeline.settle import settle, settle_broken, settle_refused
from proxy.ports import Downstream, UpstreamAnswer

__all__ = ["relay", "replay"]

_SSE = "text/event-stream"
_MAX_ID_CHARACTERS = 128
_STREAM_HEADERS = (("Cache-Control", "no-cache, no-store"), ("X-Accel-Buffering", "no"))
_PLAIN_HEADERS = (("Cache-Control", "private, no-store"),)


async def relay(exchange: Exchange, answer: UpstreamAnswer, client: Downstream, services: Services) -> Reply:
    """Give the client upstream's answer. Raises `UpstreamFailure`, `UpstreamKeyRefused`, `ConnectionResetError`."""
    theirs = answer.headers.get("x-request-id", "")
    exchange.upstream_request_id = theirs if _is_plain_id(theirs) else ""
    try:
        if answer.status >= 400:
            return await _relay_error(exchange, answer, services)
        if answer.status >= 300:
            # Redirects are not followed: they could lead our key anywhere.
            raise UpstreamFailure(exchange.upstream, UpstreamFault.CONTENT)
        listen = exchange.kind.listen if exchange.asked.stream else None
        if listen is not None and answer.headers.get("Content-Type", "").lower().startswith(_SSE):
            stream, relay_stream = listen(exchange.asked), _relay_stream
            if services.policy.keep_alive_seconds:
                exchange.between_events = partial(is_between_events, stream)
                relay_stream = _relay_stream if exchange.shared else _relay_kept_alive
            return await relay_stream(exchange, answer, stream, client, services)
        return await _relay_plain(exchange, answer, services)
    except UpstreamFailure as failure:
        services.telemetry.upstream_failed(exchange.upstream, failure.fault)
        raise
    finally:
        answer.close()


def replay(exchange: Exchange) -> Reply:
    """Give the client the answer the cache had, under this request's own id."""
    hit = exchange.hit
    if hit is None:
        raise LookupError("nothing to replay")
    age_seconds = max(0, exchange.at_ms - hit.stored_at_ms) // 1_000
    own = _STREAM_HEADERS if exchange.asked.stream else _PLAIN_HEADERS
    return Reply(hit.status, (*hit.headers, *own, *own_headers(exchange), ("Age", str(age_seconds))), hit.body)


async def _relay_error(exchange: Exchange, answer: UpstreamAnswer, services: Services) -> Reply:
    if answer.status == 401:
        raise UpstreamKeyRefused(exchange.upstream)
    body = await _read(exchange, answer, services)
    settle_refused(exchange, services, answer.status)
    headers = (*returnable(answer.headers.items(), error=True), *_PLAIN_HEADERS, *_own(exchange))
    if not _is_error_body(body):
        # A gateway's page, say: the client is given an error it can read.
        headers, body = (*headers, ("Content-Type", "application/json")), _stand_in(answer.status)
    return Reply(answer.status, headers, body)


async def _relay_plain(exchange: Exchange, answer: UpstreamAnswer, services: Services) -> Reply:
    body = await _read(exchange, answer, services)
    completion = exchange.kind.read(body)
    if completion.usage is None and not _is_object(body):
        # A page of some machine on the way, or half an answer: an SDK would fail on it without a word of the cause.
        raise UpstreamFailure(exchange.upstream, UpstreamFault.CONTENT)
    settle(
        exchange,
        services,
        status=answer.status,
        outcome=Outcome.OK,
        usage=completion.usage,
        # What goes on out of sight is taken for as large as was reserved.
        counted_output_tokens=exchange.reserved_output_tokens
        if completion.unfinished
        else completion.counted_output_tokens,
        said=completion.said,
        service_tier=completion.service_tier,
    )
    kept = returnable(answer.headers.items(), error=False)
    stored = completion.storable and await keep(exchange, services, answer.status, kept, body)
    return Reply(answer.status, (*kept, *_PLAIN_HEADERS, *_own(exchange, stored=stored)), body)


async def _relay_kept_alive(
    exchange: Exchange, answer: UpstreamAnswer, stream: AnswerStream, client: Downstream, services: Services
) -> Reply:
    seconds = services.policy.keep_alive_seconds
    kept = KeepAlive(client, seconds, lambda: is_between_events(stream), services.spawn)
    try:
        return await _relay_stream(exchange, answer, stream, kept, services)
    finally:
        kept.end()


async def _relay_stream(
    exchange: Exchange, answer: UpstreamAnswer, stream: AnswerStream, client: Downstream, services: Services
) -> Reply:
    exchange.stream, exchange.status = stream, answer.status
    exchange.error_event = lambda *error: b"" if stream.done or stream.errored else stream.error_event(*error)
    kept = returnable(answer.headers.items(), error=False)
    copy = Copy(stream_room_bytes(services.policy) if exchange.address is not None else 0)
    now_ns = services.clock.monotonic_ns
    await client.open(answer.status, (*kept, *_STREAM_HEADERS, *_own(exchange)))
    try:
        waited_from_ns = now_ns()
        async for chunk in answer.chunks():
            exchange.upstream_ns += now_ns() - waited_from_ns
            passed = stream.feed(chunk)
            copy.add(chunk)
            if stream.done and not exchange.settled:
                # SDKs hang up at [DONE]: the account and the cache come before it.
                _settle_stream(exchange, services, stream)
                if stream.storable:
                    await keep_stream(exchange, services, answer.status, kept, copy)
            if passed:
                exchange.first_byte_ns = exchange.first_byte_ns or now_ns()
                await client.write(passed)
            waited_from_ns = now_ns()
        exchange.upstream_ns += now_ns() - waited_from_ns
    except (UpstreamFailure, EventTooLongError) as error:
        if not stream.done:
            fault = error.fault if isinstance(error, UpstreamFailure) else UpstreamFault.CONTENT
            return await _break_off(exchange, client, services, stream, fault)
    else:
        if not (stream.complete or stream.errored):
            return await _break_off(exchange, client, services, stream, UpstreamFault.BROKEN)
        _settle_stream(exchange, services, stream)
        if rest := stream.rest():
            await client.write(rest)
    return await _end(exchange, client, services, stream)


async def _end(exchange: Exchange, client: Downstream, services: Services, stream: AnswerStream) -> Reply:
    """Close a stream as complete, unless upstream ended it with an error of its own: that must not look whole."""
    if stream.errored:
        services.telemetry.upstream_failed(exchange.upstream, UpstreamFault.CONTENT)
    if stream.errored and not stream.done:
        client.abort()
    else:
        await client.close()
    return Reply(exchange.status, body=None)


def _settle_stream(exchange: Exchange, services: Services, stream: AnswerStream) -> None:
    settle(
        exchange,
        services,
        status=exchange.status,
        outcome=Outcome.UPSTREAM_ERROR if stream.errored else Outcome.OK,
        usage=stream.usage,
        counted_output_tokens=stream.counted_output_tokens,
        said=stream.transcript.said() if stream.usage is None else None,
        service_tier=stream.service_tier,
    )


async def _break_off(
    exchange: Exchange, client: Downstream, services: Services, stream: AnswerStream, fault: UpstreamFault
) -> Reply:
    """End a stream that upstream did not finish so that no client can take it for whole."""
    services.telemetry.upstream_failed(exchange.upstream, fault)
    settle_broken(exchange, services, UpstreamFailure(exchange.upstream, fault))
    error = stream.error_event("The upstream API broke off in the middle of this answer.", f"upstream_{fault.value}")
    # An event that was passed in half is ended first, or the error would become a part of it.
    before = b"\n\n" if stream.passed_in_half else b""
    await client.write(before + error)
    client.abort()
    return Reply(exchange.status, body=None)


async def _read(exchange: Exchange, answer: UpstreamAnswer, services: Services) -> bytes:
    arrived = answer.arrived()
    if arrived is not None:
        return arrived
    begun_ns = services.clock.monotonic_ns()
    try:
        # What is left of the deadline that the calls began under.
        async with asyncio.timeout(services.policy.retry.total_deadline_ms / 1_000 - exchange.upstream_ns / 1e9):
            return await answer.read()
    except TimeoutError:
        raise UpstreamFailure(exchange.upstream, UpstreamFault.TIMEOUT) from None
    finally:
        exchange.upstream_ns += services.clock.monotonic_ns() - begun_ns


def _own(exchange: Exchange, *, stored: bool = False) -> tuple[tuple[str, str], ...]:
    """This request's own headers, unless several listen: each of them adds its own then."""
    return () if exchange.shared else own_headers(exchange, stored=stored)


def _is_plain_id(text: str) -> bool:
    """Whether it may stand in a header and a log line as it is."""
    return text.isascii() and text.isprintable() and len(text) <= _MAX_ID_CHARACTERS


def _is_error_body(body: bytes) -> bool:
    return b'"error"' in body and _is_object(body)


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(msgspec.json.decode(body), dict)
    except ValueError:
        return False


def _stand_in(status: int) -> bytes:
    """An error in OpenAI's shape for one that came in none."""
    message = f"The upstream API answered with status {status} and no readable error."
    return msgspec.json.encode({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
