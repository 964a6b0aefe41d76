"""The finished exchange as one record, for metrics and the log."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from proxy.core.bucket import Admitted, Gauge
from proxy.core.errors import BudgetUsedUp, LimitReached, ModelNotPriced, NeverAdmissible
from proxy.core.event import Outcome
from proxy.core.record import RequestRecord
from proxy.core.tiers import Limits
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["BUDGET", "Ending", "record_of", "report"]

BUDGET = "budget"
"""Stands for budgets where a dimension of limits is told."""

_NS_PER_MS = 1_000_000


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
    first = exchange.first_byte_ns
    principal = getattr(exchange, "principal", None)
    asked = getattr(exchange, "asked", None)
    admitted, shadow = getattr(exchange, "admitted", None), exchange.shadow
    standing = admitted.standing if admitted else None
    limits = admitted.reservation.scopes[0].schedule.limits_at(exchange.at_ms) if admitted else Limits()
    scope, dimension = _limited(ending.error)
    # A fault of ours is one after the account was written, too.
    failed = ending.outcome is Outcome.FAILED
    return RequestRecord(
        request_id=exchange.request_id,
        at_ms=exchange.at_ms,
        method=exchange.method,
        endpoint=exchange.endpoint,
        status=ending.status if failed else exchange.status or ending.status,
        outcome=exchange.outcome if exchange.settled and not failed else ending.outcome,
        duration_ms=total_ns / _NS_PER_MS,
        overhead_ms=max(0, total_ns - exchange.upstream_ns) / _NS_PER_MS,
        upstream_ms=exchange.upstream_ns / _NS_PER_MS,
        queued_ms=exchange.queued_ns / _NS_PER_MS,
        ttft_ms=(first - exchange.started_ns) / _NS_PER_MS if first is not None else None,
        team=principal.team.name if principal else "",
        key_id=principal.key.kid if principal else "",
        model=asked.model if asked else "",
        upstream=exchange.upstream,
        upstream_request_id=exchange.upstream_request_id,
        client_request_id=exchange.client_request_id,
        error_code=ending.error_code,
        cache=exchange.cache,
        cache_reason=exchange.cache_reason,
        attempts=exchange.attempts,
        tried=tuple(exchange.tried),
        usage=exchange.usage,
        cost_pico_usd=exchange.cost_pico_usd,
        saved_pico_usd=exchange.saved_pico_usd,
        estimated=exchange.estimated,
        unpriced=_is_unpriced(exchange, ending),
        limited_scope=scope,
        limited_dimension=dimension,
        shadow_limited=shadow.decision.dimension.value if shadow and not isinstance(shadow.decision, Admitted) else "",
        request_use_ratio=_use_ratio(standing.requests, limits.effective_request_capacity) if standing else None,
        token_use_ratio=_use_ratio(standing.tokens, limits.effective_token_capacity) if standing else None,
    )


def _is_unpriced(exchange: Exchange, ending: Ending) -> bool:
    """Whether it was sent, or would have been, at a price that nobody here knows."""
    sent = exchange.dispatched and exchange.price is None and exchange.asked.billed
    return sent or isinstance(ending.error, ModelNotPriced)


def _limited(error: Exception | None) -> tuple[str, str]:
    """The scope and the dimension of what refused it; both empty when no limit did."""
    match error:
        case LimitReached() | NeverAdmissible():
            return error.refusal.scope, error.refusal.dimension.value
        case BudgetUsedUp():
            return error.refusal.cap.scope, BUDGET
        case _:
            return "", ""


def _use_ratio(gauge: Gauge | None, capacity: int | None) -> float | None:
    return 1 - gauge.remaining / capacity if gauge and capacity else None
