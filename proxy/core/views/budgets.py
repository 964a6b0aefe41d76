"""Budgets as programs are shown them: exact amounts, in dollars as text and in nano-dollars as integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.core.budget import Budget, Period, span_of
from proxy.core.caps import usd_of
from proxy.core.views.instants import Instant, instant_of

__all__ = ["BudgetView", "budget_views"]

Usd = Annotated[str, Meta(description="Dollars, exact.", examples=["412.5015"])]


class BudgetView(msgspec.Struct, frozen=True, kw_only=True):
    """What may be spent in each day, in each month (of UTC) or in total, and where that stands now."""

    period: Period
    span: Annotated[str, Meta(description="The one it is now: `2026-11-21`, `2026-11` or `total`.")]
    ends: Annotated[Instant | None, Meta(description="When the next one begins; null: never.")]
    limit_usd: Annotated[Usd | None, Meta(description="Requests that would pass it are refused; null: none is.")]
    limit_nano_usd: int | None
    warn_usd: Annotated[Usd | None, Meta(description="Somebody is told, once in each span, when it is reached.")]
    warn_nano_usd: int | None
    spent_usd: Annotated[Usd | None, Meta(description="As far as the ledger has it; null: it was not asked.")]
    spent_nano_usd: int | None
    left_usd: Annotated[Usd | None, Meta(description="Null: without a limit, or not asked.")]
    left_nano_usd: int | None


def budget_views(
    budgets: Iterable[Budget],
    at_ms: int,
    spent_nano_usd: Mapping[tuple[str, str, Period], int] | None,
    team: str,
    kid: str = "",
) -> list[BudgetView]:
    """Budgets of a team, or of a key of it, at `at_ms`.

    `spent_nano_usd` is by team, key and period, as the ledger has it; None: it was not asked.
    """
    return [
        _view(budget, at_ms, None if spent_nano_usd is None else spent_nano_usd.get((team, kid, budget.period), 0))
        for budget in budgets
    ]


def _view(budget: Budget, at_ms: int, spent: int | None) -> BudgetView:
    span = span_of(budget.period, at_ms)
    limit = budget.limit_nano_usd
    left = None if limit is None or spent is None else max(0, limit - spent)
    return BudgetView(
        period=budget.period,
        span=span.id,
        ends=instant_of(span.end_ms),
        limit_usd=_usd(limit),
        limit_nano_usd=limit,
        warn_usd=_usd(budget.warn_nano_usd),
        warn_nano_usd=budget.warn_nano_usd,
        spent_usd=_usd(spent),
        spent_nano_usd=spent,
        left_usd=_usd(left),
        left_nano_usd=left,
    )


def _usd(nano_usd: int | None) -> str | None:
    return None if nano_usd is None else usd_of(nano_usd)
