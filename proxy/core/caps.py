"""Budgets as they are kept, changed, and asked for at one instant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

from msgspec.structs import replace

from proxy.core.budget import LARGEST_BUDGET_NANO_USD, Budget, Cap, Period, Span, span_of
from proxy.core.decision import TEAM_SCOPE
from proxy.core.money import format_usd

__all__ = [
    "BadBudgetChange",
    "BudgetChange",
    "BudgetReached",
    "caps_of",
    "changed_budgets",
    "key_scope",
    "owner_of",
    "period_of",
    "usd_of",
]

_PERIODS = tuple(Period)
_KEY = "key:"


class BadBudgetChange(ValueError):
    """The change would leave no budget that can be held."""


class BudgetChange(TypedDict, total=False):
    """Amounts of one budget in nano-dollars; None takes one away, one that is left out stays as it is."""

    limit_nano_usd: int | None
    warn_nano_usd: int | None


@dataclass(frozen=True, slots=True)
class BudgetReached:
    """A budget whose warning was reached."""

    team: str
    key_id: str
    """Empty: the budget is the team's own."""
    cap: Cap
    at_ms: int


def key_scope(kid: str) -> str:
    """The scope of a key's own budgets."""
    return _KEY + kid


def owner_of(scope: str) -> str:
    """The id of the key whose budgets are meant; empty for the team's own."""
    return "" if scope == TEAM_SCOPE else scope.removeprefix(_KEY)


def usd_of(nano_usd: int) -> str:
    """An amount in dollars, exactly: with cents, and with as many more places as it has."""
    whole, _, decimals = format_usd(nano_usd * 1_000, 9).partition(".")
    return f"{whole}.{decimals.rstrip('0').ljust(2, '0')}"


def caps_of(budgets: Iterable[Budget], scope: str, at_ms: int) -> tuple[Cap, ...]:
    """The budgets of a scope, each in its span that holds `at_ms`."""
    return tuple(
        Cap(scope, span_of(budget.period, at_ms), budget.limit_nano_usd, budget.warn_nano_usd) for budget in budgets
    )


def period_of(span: Span) -> Period:
    """The period that a span is one of."""
    if span.end_ms is None:
        return Period.TOTAL
    return Period.DAY if span.id.count("-") == 2 else Period.MONTH


def changed_budgets(budgets: Iterable[Budget], changes: Mapping[Period, BudgetChange]) -> tuple[Budget, ...]:
    """The budgets after a change, one at most for each period, shortest first. Raises `BadBudgetChange`."""
    found = {budget.period: budget for budget in budgets}
    for period, change in changes.items():
        changed = replace(found.get(period, Budget(period)), **change)
        _check(changed)
        if changed == Budget(period):
            found.pop(period, None)
        else:
            found[period] = changed
    return tuple(found[period] for period in _PERIODS if period in found)


def _check(budget: Budget) -> None:
    limit, warn = budget.limit_nano_usd, budget.warn_nano_usd
    for amount in (limit, warn):
        if amount is not None and not 0 <= amount <= LARGEST_BUDGET_NANO_USD:
            raise BadBudgetChange(f"an amount is from 0 to {LARGEST_BUDGET_NANO_USD} nano-dollars")
    if warn == 0:
        raise BadBudgetChange("a warning at nothing is always reached")
    if limit is not None and warn is not None and warn > limit:
        raise BadBudgetChange(f"the warning of a {budget.period} is above its limit, and would never be reached")
