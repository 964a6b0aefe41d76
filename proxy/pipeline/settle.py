"""Write the account: limiter, cost and ledger, exactly once for every admitted request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from proxy.core.bucket import Admitted, Cost
from proxy.core.budget import nano_usd
from proxy.core.count import Said
from proxy.core.errors import BodyTooLarge, InvalidRequest, Overloaded, TollgateError
from proxy.core.event import Outcome, UsageEvent
from proxy.core.pricing import cost_pico_usd
from proxy.core.usage import NO_USAGE, Usage
from proxy.pipeline.count import Uncounted, end_when_counted, own_count
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = [
    "CLIENT_CLOSED_REQUEST",
    "settle",
    "settle_broken",
    "settle_collapsed",
    "settle_hit",
    "settle_refused",
    "step_back",
]

CLIENT_CLOSED_REQUEST = 499
"""The status in ledger and log of a request whose client left before there was one (nginx's number for it)."""
_LET_GO = frozenset({Outcome.CLIENT_GONE, Outcome.UNAVAILABLE})
"""Endings that are not upstream's: nobody knows when it noticed."""


def settle(
    exchange: Exchange,
    services: Services,
    *,
    status: int,
    outcome: Outcome,
    usage: Usage | None,
    counted_output_tokens: int = 0,
    said: Said | None = None,
    service_tier: str | None = None,
) -> None:
    """Settle with upstream's `usage`, or, where it gave none, with our own count. The second call does nothing.

    `said`: what the answer has said so far; without it `counted_output_tokens` stands.
    """
    if exchange.settled:
        return
    exchange.estimated = usage is None
    # An answer that broke off before it named its tier was most likely served at the one that was asked for.
    tier = service_tier or exchange.asked.service_tier
    left = None
    if usage is None:
        usage, left = own_count(exchange, services, said, counted_output_tokens, tier)
    tokens = usage.total_tokens
    if outcome in _LET_GO and exchange.estimated:
        # Upstream may run on after we have let go of it: what was reserved stays charged, and decays.
        tokens = max(tokens, exchange.admitted.reservation.cost.tokens)
    _write(exchange, services, status, outcome, usage, Cost(1, tokens), tier, left)


def settle_broken(exchange: Exchange, services: Services, error: BaseException) -> None:
    """Settle a request that `error` ended, with whatever of it has run."""
    if exchange.settled:
        return
    stream = exchange.stream
    outcome, status = _ending(error, services)
    if stream is not None:
        settle(
            exchange,
            services,
            status=exchange.status,
            outcome=outcome,
            usage=stream.usage,
            counted_output_tokens=stream.counted_output_tokens,
            said=stream.transcript.said() if stream.usage is None else None,
            service_tier=stream.service_tier,
        )
    elif exchange.running:
        # Of a plain answer nothing is known until it has come: it is taken for as large as was reserved.
        settle(
            exchange,
            services,
            status=status,
            outcome=outcome,
            usage=None,
            counted_output_tokens=exchange.reserved_output_tokens,
        )
    else:
        # What is ours to blame, and what was never sent, costs the team nothing, not even its turn.
        spent = exchange.dispatched or exchange.collapsed
        turns = 0 if outcome in {Outcome.UNAVAILABLE, Outcome.FAILED} or not spent else 1
        turns = min(turns, exchange.admitted.reservation.cost.requests)
        _write(exchange, services, exchange.status or status, outcome, NO_USAGE, Cost(turns, 0), None)


def _ending(error: BaseException, services: Services) -> tuple[Outcome, int]:
    """How an exchange ended that `error` ended, and with what status if none was given yet."""
    match error:
        case asyncio.CancelledError() if services.shutdown.over:
            return Outcome.UNAVAILABLE, services.status_of(Overloaded("shutting down"))
        case ConnectionResetError() | asyncio.CancelledError():
            return Outcome.CLIENT_GONE, CLIENT_CLOSED_REQUEST
        case BodyTooLarge() | InvalidRequest():
            # A body that was on its way upstream as it came.
            return Outcome.REJECTED, services.status_of(error)
        case Overloaded():
            return Outcome.UNAVAILABLE, services.status_of(error)
        case TollgateError():
            return Outcome.UPSTREAM_ERROR, services.status_of(error)
        case _:
            return Outcome.FAILED, 500


def settle_refused(exchange: Exchange, services: Services, status: int) -> None:
    """Settle a request that upstream answered with an error: a turn is spent, no tokens are."""
    _write(exchange, services, status, Outcome.UPSTREAM_ERROR, NO_USAGE, Cost(1, 0), None)


def settle_hit(exchange: Exchange, services: Services) -> None:
    """Write the event of an answer from the cache: it cost nothing, and saved what it cost when it was made."""
    hit = exchange.hit
    if hit is None or exchange.settled:
        return
    exchange.saved_pico_usd = hit.cost_pico_usd
    # Not what was reserved: that may be more, for an answer that came from elsewhere while it was being asked for.
    _settle_limits(exchange, services, Cost(services.policy.hits_cost_requests, 0))
    _record(exchange, services, hit.status, Outcome.CACHED, Usage(hit.input_tokens, hit.output_tokens))


def settle_collapsed(exchange: Exchange, leader: Exchange, services: Services) -> None:
    """Settle a request that is answered with what `leader` is: as a hit, or as refused where upstream refused."""
    if exchange.settled:
        return
    _settle_limits(exchange, services, exchange.admitted.reservation.cost)
    if leader.outcome is not Outcome.OK:
        _record(exchange, services, leader.status, leader.outcome, NO_USAGE)
        return
    exchange.saved_pico_usd, exchange.estimated = leader.cost_pico_usd, leader.estimated
    event = _note(exchange, services, leader.status, Outcome.CACHED, leader.usage)
    exchange.counting = leader.counting
    if leader.counting is None or leader.counting.done():
        services.ledger.end(event)
    else:
        # What it saved is what the other one cost, which is not known yet.
        leader.counting.add_done_callback(partial(_end_as_counted, exchange, leader, services, event))


def _end_as_counted(exchange: Exchange, leader: Exchange, services: Services, event: UsageEvent, _: object) -> None:
    exchange.usage, exchange.saved_pico_usd = leader.usage, leader.cost_pico_usd
    services.ledger.end(replace(event, usage=leader.usage, saved_pico_usd=leader.cost_pico_usd))


def step_back(exchange: Exchange, services: Services) -> None:
    """Undo an admission whose request is about to be admitted anew, for more."""
    _settle_limits(exchange, services, Cost(0, 0))
    exchange.shadow = None


def _write(
    exchange: Exchange,
    services: Services,
    status: int,
    outcome: Outcome,
    usage: Usage,
    actual: Cost,
    service_tier: str | None,
    left: Uncounted | None = None,
) -> None:
    if exchange.price is not None:
        exchange.cost_pico_usd = cost_pico_usd(exchange.price, usage, service_tier)
    if left is None:
        _settle_limits(exchange, services, actual)
        _record(exchange, services, status, outcome, usage)
        return
    on_counted: Callable[[Exchange, Services, Cost, int], None] = _charge_what_is_missing
    if exchange.admitted.reservation.spend is not None:
        # A budget is settled once, with what the ledger will say. Whoever counts tells how it went in any case.
        on_counted = _settle_limits
    else:
        _settle_limits(exchange, services, actual)
    _record(exchange, services, status, outcome, usage, left, partial(on_counted, exchange, services, actual))


def _charge_what_is_missing(exchange: Exchange, services: Services, charged: Cost, counted_tokens: int) -> None:
    """Charge what the limits were charged too little; what they were charged too much decays."""
    missing = counted_tokens - charged.tokens
    if missing > 0:
        reservation = exchange.admitted.reservation
        services.limiter.charge(reservation.team, reservation.scopes, Cost(0, missing))


def _settle_limits(exchange: Exchange, services: Services, actual: Cost, counted_tokens: int = 0) -> None:
    """Account for what was used, and give the places back: before all else, so that nothing can keep them.

    Budgets are given the cost as it is for the ledger.
    """
    if counted_tokens > actual.tokens:
        actual = Cost(actual.requests, counted_tokens)
    reservation = exchange.admitted.reservation
    services.limiter.settle(reservation, actual, nano_usd(exchange.cost_pico_usd))
    if exchange.turn is not None:
        exchange.turn.settle(actual.tokens)
    if services.turns is not None:
        services.turns.settled(reservation.team)
    if exchange.shadow is not None and isinstance(exchange.shadow.decision, Admitted):
        services.limiter.settle(exchange.shadow.decision.reservation, actual)


def _record(
    exchange: Exchange,
    services: Services,
    status: int,
    outcome: Outcome,
    usage: Usage,
    left: Uncounted | None = None,
    on_counted: Callable[[int], None] = lambda _: None,
) -> None:
    if exchange.drained and outcome is not Outcome.FAILED:
        # Whatever upstream brought, nobody was there to have it.
        outcome = Outcome.CLIENT_GONE
    event = _note(exchange, services, status, outcome, usage)
    if not exchange.dispatched and outcome is not Outcome.CACHED:
        return  # it was never sent: nothing for the ledger
    if left is None:
        services.ledger.end(event)
    else:
        end_when_counted(exchange, services, event, left, on_counted)


def _note(exchange: Exchange, services: Services, status: int, outcome: Outcome, usage: Usage) -> UsageEvent:
    """Keep how it ended, and sum it up for the ledger."""
    exchange.status, exchange.outcome, exchange.usage = status, outcome, usage
    exchange.settled = True
    # By place, in the order of the fields: by name it takes four times as long.
    return UsageEvent(
        exchange.event_id,
        exchange.at_ms,
        exchange.request_id,
        exchange.principal.team.name,
        exchange.principal.key.kid,
        exchange.endpoint,
        exchange.asked.model,
        exchange.upstream,
        status,
        outcome,
        usage,
        exchange.cost_pico_usd,
        exchange.saved_pico_usd,
        exchange.price.price_id if exchange.price else None,
        exchange.estimated,
        exchange.attempts,
        (services.clock.monotonic_ns() - exchange.started_ns) // 1_000_000,
    )
