"""The finished exchange as one record, for metrics and the log."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from proxy.core.bucket import Admitted, Gauge
from proxy.core.errors import BudgetUsedUp, LimitReached, ModelNotPriced, NeverAdmissible
from proxy.core.event import Outcome
from proxy.core.record import RequestRecord
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["BUDGET", "Ending", "record_of", "report"]

BUDGET = "budget"
"""Stands for budgets where a dimension of limits is told."""

_NS_PER_MS = 1_000_000
_FAILED = Outcome.FAILED


class Ending(msgspec.Struct, frozen=True):
    """How an exchange ended, as its handler saw it; what settlement said goes before this, unless the fault is ours."""

    status: int
    outcome: Outcome = Outcome.OK
    error_code: str = ""
    error: Exception | None = None


def report(exchange: Exchange, ending: Ending, services: Services) -> None:
    """Count and log a finished exchange; one whose tokens are being counted, once they are."""
    record = record_of(exchange, ending, services)
    if exchange.counting is None or exchange.counting.done():
        services.telemetry.finished(record)
        return

    def counted(_: object) -> None:
        cost, saved = exchange.cost_pico_usd, exchange.saved_pico_usd
        services.telemetry.finished(replace(record, usage=exchange.usage, cost_pico_usd=cost, saved_pico_usd=saved))

    exchange.counting.add_done_callback(counted)


def record_of(exchange: Exchange, ending: Ending, services: Services) -> RequestRecord:
    """Sum up an exchange."""
    total_ns = services.clock.monotonic_ns() - exchange.started_ns
    first, error, shadow = exchange.first_byte_ns, ending.error, exchange.shadow
    principal = getattr(exchange, "principal", None)
    asked = getattr(exchange, "asked", None)
    admitted = getattr(exchange, "admitted", None)
    request_use_ratio, token_use_ratio = (None, None) if admitted is None else _use_ratios(admitted, exchange.at_ms)
    scope, dimension = ("", "") if error is None else _limited(error)
    # A fault of ours is one after the account was written, too.
    failed = ending.outcome is _FAILED
    # By position, in the order of the fields: to make it with so many names takes four times as long.
    return RequestRecord(
        exchange.request_id,
        exchange.at_ms,
        exchange.method,
        exchange.endpoint,
        ending.status if failed else exchange.status or ending.status,
        exchange.outcome if exchange.settled and not failed else ending.outcome,
        total_ns / _NS_PER_MS,
        max(0, total_ns - exchange.upstream_ns) / _NS_PER_MS,
        exchange.upstream_ns / _NS_PER_MS,
        exchange.queued_ns / _NS_PER_MS,
        None if first is None else (first - exchange.started_ns) / _NS_PER_MS,
        "" if principal is None else principal.team.name,
        "" if principal is None else principal.key.kid,
        "" if asked is None else asked.model,
        exchange.upstream,
        exchange.upstream_request_id,
        exchange.client_request_id,
        ending.error_code,
        exchange.cache,
        exchange.cache_reason,
        exchange.attempts,
        tuple(exchange.tried),
        exchange.usage,
        exchange.cost_pico_usd,
        exchange.saved_pico_usd,
        exchange.estimated,
        _is_unpriced(exchange, error),
        scope,
        dimension,
        "" if shadow is None or isinstance(shadow.decision, Admitted) else shadow.decision.dimension.value,
        token_use_ratio,
        request_use_ratio,
    )


def _is_unpriced(exchange: Exchange, error: Exception | None) -> bool:
    """Whether it was sent, or would have been, at a price that nobody here knows."""
    sent = exchange.dispatched and exchange.price is None and exchange.asked.billed
    return sent or isinstance(error, ModelNotPriced)


def _limited(error: Exception) -> tuple[str, str]:
    """The scope and the dimension of what refused it; both empty when no limit did."""
    match error:
        case LimitReached() | NeverAdmissible():
            return error.refusal.scope, error.refusal.dimension.value
        case BudgetUsedUp():
            return error.refusal.cap.scope, BUDGET
        case _:
            return "", ""


def _use_ratios(admitted: Admitted, at_ms: int) -> tuple[float | None, float | None]:
    """Used parts of the team's own buckets after an admission: of requests, and of tokens."""
    standing = admitted.standing
    limits = admitted.reservation.scopes[0].schedule.limits_at(at_ms)
    return (
        _use_ratio(standing.requests, limits.effective_request_capacity),
        _use_ratio(standing.tokens, limits.effective_token_capacity),
    )


def _use_ratio(gauge: Gauge | None, capacity: int | None) -> float | None:
    return 1 - gauge.remaining / capacity if gauge and capacity else None
