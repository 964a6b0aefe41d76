"""Send it upstream, again if that may help, until the head of an answer has come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from proxy.core.chat import ask_for_usage
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.event import Dispatch
from proxy.core.headers import as_it_is, forwardable
from proxy.core.pricing import service_tier_of
from proxy.core.retry import asked_wait_ms, is_retryable, next_wait_ms
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services
from proxy.pipeline.upstream_turn import take_turn
from proxy.ports import Body, UpstreamAnswer, UpstreamRequest

__all__ = ["dispatch", "forward"]


def dispatch(exchange: Exchange, services: Services) -> None:
    """Choose who is asked, and write the begin record: the ledger has it from here on. Raises `Overloaded`."""
    principal = exchange.principal
    route = services.upstreams.route(exchange.asked.model, random.random())  # noqa: S311 - spreads load, guards nothing
    services.ledger.begin(
        Dispatch(
            event_id=exchange.event_id,
            at_ms=exchange.at_ms,
            request_id=exchange.request_id,
            team=principal.team.name,
            key_id=principal.key.kid,
            endpoint=exchange.endpoint,
            model=exchange.asked.model,
            upstream=route[0].name,
            reserved_input_tokens=exchange.reserved_input_tokens,
            reserved_output_tokens=exchange.reserved_output_tokens,
            price_id=exchange.price.price_id if exchange.price else None,
            service_tier=service_tier_of(exchange.asked.service_tier),
        )
    )
    exchange.route, exchange.upstream = route, route[0].name
    exchange.dispatched = True


async def forward(exchange: Exchange, services: Services) -> UpstreamAnswer:
    """Return an answer whose head has come; its body is unread. Raises `UpstreamFailure`, `Overloaded`.

    No byte has gone to the client yet, which is what makes trying again safe for it.
    """
    asked, policy, clock = exchange.asked, services.policy.retry, services.clock
    asking = asked.stream and not asked.include_usage and services.policy.ask_for_stream_usage
    headers = forwardable(exchange.headers.items())
    if exchange.as_it_is:
        headers += as_it_is(exchange.headers)
    body: bytes | Body = ask_for_usage(asked) if asking else asked.raw
    request = UpstreamRequest(
        method=exchange.method,
        path_qs=f"{exchange.path}?{exchange.query}" if exchange.query else exchange.path,
        headers=headers,
        body=exchange.body(asked.model) if exchange.body is not None else body,
        as_it_is=exchange.as_it_is,
    )
    begun_ns = clock.monotonic_ns()
    try:
        # An upload takes as long as its client does; silence has a bound of its own.
        async with asyncio.timeout(None if exchange.as_it_is else policy.total_deadline_ms / 1_000) as deadline:
            while True:
                await take_turn(exchange, exchange.route[0].keys[0], services, deadline)
                exchange.attempts += 1
                elapsed_ms = (clock.monotonic_ns() - begun_ns) // 1_000_000
                came = await _attempt(exchange, services, request, elapsed_ms)
                if not isinstance(came, _Wait):
                    return came
                await asyncio.sleep(came.wait_ms / 1_000)
    except TimeoutError:
        services.telemetry.upstream_failed(exchange.upstream, UpstreamFault.TIMEOUT)
        raise UpstreamFailure(exchange.upstream, UpstreamFault.TIMEOUT) from None
    finally:
        exchange.upstream_ns += clock.monotonic_ns() - begun_ns


@dataclass(frozen=True, slots=True)
class _Wait:
    wait_ms: int


async def _attempt(
    exchange: Exchange, services: Services, request: UpstreamRequest, elapsed_ms: int
) -> UpstreamAnswer | _Wait:
    """Call once: an answer to give to the client, or the wait before the next call."""
    name, telemetry = exchange.upstream, services.telemetry
    exchange.running = True
    try:
        answer = await exchange.route[0].keys[0].send(request)
        exchange.running = answer.status < 300
        code = await _error_code(answer) if answer.status >= 400 else None
    except UpstreamFailure as failure:
        # One that kept silent is likely still at work; one that broke off before it answered is not.
        exchange.running = failure.fault is UpstreamFault.TIMEOUT and exchange.running
        telemetry.upstream_failed(name, failure.fault)
        wait_ms = _wait(exchange, services, failure.fault, elapsed_ms, {}, None)
        if wait_ms is None or not _can_be_sent_again(request):
            raise
        telemetry.retried(name, failure.fault)
        return _Wait(wait_ms)
    if answer.status < 400:
        return answer
    if answer.status in _UPSTREAM_TO_BLAME or answer.status >= 500:
        telemetry.upstream_failed(name, f"status_{answer.status}")
    wait_ms = _wait(exchange, services, answer.status, elapsed_ms, answer.headers, code)
    if wait_ms is None or not _can_be_sent_again(request):
        return answer
    answer.close()
    telemetry.retried(name, f"status_{answer.status}")
    return _Wait(wait_ms)


def _can_be_sent_again(request: UpstreamRequest) -> bool:
    return isinstance(request.body, bytes) or request.body.replayable


def _wait(
    exchange: Exchange,
    services: Services,
    failure: int | UpstreamFault,
    elapsed_ms: int,
    headers: Mapping[str, str],
    code: str | None,
) -> int | None:
    if not is_retryable(failure, headers, code):
        return None
    asked_ms = asked_wait_ms(headers, services.clock.now_ms())
    jitter = random.random()  # noqa: S311 - spreads retries out, guards nothing
    return next_wait_ms(services.policy.retry, exchange.attempts, elapsed_ms, asked_ms, jitter)


class _Error(msgspec.Struct):
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | None = None


_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_UPSTREAM_TO_BLAME = frozenset({401, 403, 408, 429})
"""Of the 4xx, those that say something about our account or about upstream, not about the client's request."""


async def _error_code(answer: UpstreamAnswer) -> str | None:
    try:
        body = await answer.read()
    except BaseException:
        answer.close()
        raise
    try:
        error = _decode_error(body).error
    except (msgspec.MsgspecError, RecursionError):
        return None
    return error.code if error else None
