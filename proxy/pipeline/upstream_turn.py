"""The turn upstream: waited for before each call, and settled with what the call has used."""

from __future__ import annotations

import asyncio

from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services
from proxy.pipeline.tour import Stop

__all__ = ["take_turn"]

_NOTED_NS = 1_000_000
"""Less than a millisecond is no wait, but how long it takes to ask."""


async def take_turn(
    exchange: Exchange, stop: Stop, services: Services, deadline: asyncio.Timeout | None = None
) -> None:
    """Wait until this request may be sent where `stop` says. Raises `Overloaded`, `StoreAway`.

    The wait is no part of the time that upstream took, nor of `deadline`, which bounds that. The turn of the call
    before, which brought nothing, is settled with nothing used.
    """
    clock, team = services.clock, exchange.principal.team
    if exchange.turn is not None:
        exchange.turn.settle(0)
        exchange.turn = None
    tokens = exchange.reserved_input_tokens + exchange.reserved_output_tokens
    until = deadline.when() if deadline is not None else None

    def stop_the_clock() -> None:
        if deadline is not None:
            deadline.reschedule(None)

    model = stop.site.candidate.name_of(exchange.asked.model) or exchange.asked.model
    begun_ns = clock.monotonic_ns()
    try:
        exchange.turn = await stop.key.call.turn(team.name, team.weight, tokens, stop_the_clock, model)
    finally:
        waited_ns = clock.monotonic_ns() - begun_ns
        if waited_ns >= _NOTED_NS:
            exchange.queued_ns += waited_ns
            exchange.upstream_ns -= waited_ns
        if deadline is not None and until is not None and deadline.when() is None:
            deadline.reschedule(until + waited_ns / 1e9)
