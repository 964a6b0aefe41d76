"""What a team is shown of itself, with a key of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from proxy.core.bucket import Gauge, Scope, Standing
from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.principal import CacheMode
from proxy.core.registry import UsageRow
from proxy.core.views.budgets import BudgetView
from proxy.core.views.instants import Instant
from proxy.core.views.usage import Usd

__all__ = [
    "KeyInUseView",
    "MeView",
    "RoomView",
    "SpentView",
    "TierInUseView",
    "UsageNowView",
    "room_view",
    "spent_view",
]

Model = Annotated[str | None, Meta(description="Of a limit on one model: the name clients ask for.")]


class GaugeView(msgspec.Struct, frozen=True, kw_only=True):
    """Where a bucket stands in one dimension."""

    limit: Annotated[int, Meta(description="Per minute.")]
    remaining: int
    reset_ms: Annotated[int, Meta(description="Until the bucket is full.")]


class RoomView(msgspec.Struct, frozen=True, kw_only=True):
    """One limit a request has to pass, and what is left of it; null is no limit."""

    of: Literal["team", "key", "model"]
    model: Model
    requests: GaugeView | None
    tokens: GaugeView | None
    max_parallel: int | None


class TierInUseView(msgspec.Struct, frozen=True, kw_only=True):
    """The team's tier."""

    name: str
    since: Instant
    changes: Annotated[Instant | None, Meta(description="When its next phase begins.")]


class KeyInUseView(msgspec.Struct, frozen=True, kw_only=True):
    """The key that was used to ask; never the key itself."""

    id: str
    label: str
    expires: Instant | None
    secret_ends: Annotated[
        Instant | None, Meta(description="When the secret that was used stops, having been rotated.")
    ]
    max_wait_ms: Annotated[
        int | None, Meta(description="How long requests wait for their turn unless they say otherwise; null: not.")
    ]


class SpentView(msgspec.Struct, frozen=True, kw_only=True):
    """What the team used, in all."""

    requests: int
    cached: int
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_usd: Usd
    cost_pico_usd: int
    saved_usd: Usd
    saved_pico_usd: int
    saved_input_tokens: int
    saved_output_tokens: int


class UsageNowView(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger says; it is some seconds behind."""

    as_of: Instant
    today: Annotated[SpentView, Meta(description="Since midnight (UTC).")]
    month: Annotated[SpentView, Meta(description="Since the first of the month (UTC).")]


class MeView(msgspec.Struct, frozen=True, kw_only=True):
    """A team, as it sees itself."""

    object: Literal["tollgate.me"] = "tollgate.me"
    team: str
    key: KeyInUseView
    tier: TierInUseView
    limits: list[RoomView]
    models: Annotated[list[str] | None, Meta(description="Those this key may use; null: all.")]
    cache: CacheMode
    usage: Annotated[UsageNowView | None, Meta(description="Null: the ledger did not answer.")]
    base_url: Annotated[str | None, Meta(description="What an SDK takes as its base URL.")]
    budgets: Annotated[list[BudgetView], Meta(description="Of the team; what is spent is some seconds behind.")] = []
    key_budgets: Annotated[list[BudgetView], Meta(description="Of the key, beside its team's.")] = []


def room_view(scope: Scope, standing: Standing) -> RoomView:
    """A limit and where it stands."""
    of, _, name = scope.name.partition(":")
    return RoomView(
        of="key" if of == "key" else "model" if of == "model" else "team",
        model=name if of == "model" else None,
        requests=_gauge(standing.requests),
        tokens=_gauge(standing.tokens),
        max_parallel=scope.max_parallel,
    )


def spent_view(rows: Sequence[UsageRow]) -> SpentView:
    """The sum of some rows of a usage report."""
    cost, saved = sum(row.cost_pico_usd for row in rows), sum(row.saved_pico_usd for row in rows)
    return SpentView(
        requests=sum(row.requests for row in rows),
        cached=sum(row.cached for row in rows),
        input_tokens=sum(row.usage.input_tokens for row in rows),
        cached_input_tokens=sum(row.usage.cached_input_tokens for row in rows),
        output_tokens=sum(row.usage.output_tokens for row in rows),
        reasoning_tokens=sum(row.usage.reasoning_tokens for row in rows),
        cost_usd=format_usd(cost, PICO_DIGITS),
        cost_pico_usd=cost,
        saved_usd=format_usd(saved, PICO_DIGITS),
        saved_pico_usd=saved,
        saved_input_tokens=sum(row.saved_input_tokens for row in rows),
        saved_output_tokens=sum(row.saved_output_tokens for row in rows),
    )


def _gauge(gauge: Gauge | None) -> GaugeView | None:
    if gauge is None:
        return None
    return GaugeView(limit=gauge.limit, remaining=gauge.remaining, reset_ms=gauge.reset_ms)
