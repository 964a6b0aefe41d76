"""Budgets in the bodies of requests: dollars as text, by period."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.budget import Period, nano_usd
from proxy.core.caps import BudgetChange
from proxy.core.money import BadAmount, parse_usd
from proxy.core.registry import BadValue
from proxy.web.admin.operation import Strict

__all__ = ["BudgetsBody", "budget_changes"]

Usd = Annotated[
    str, Meta(pattern=r"^[0-9]{1,7}([.][0-9]{1,9})?$", description="Dollars, exact.", examples=["500", "12.50"])
]


class BudgetBody(Strict, frozen=True, kw_only=True):
    """A budget for a period; an amount that is left out stays as it is, null takes it away."""

    limit_usd: Annotated[Usd | None, Meta(description="Requests that would pass it are refused.")] | UnsetType = UNSET
    warn_usd: Annotated[Usd | None, Meta(description="Somebody is told when it is reached.")] | UnsetType = UNSET


class BudgetsBody(Strict, frozen=True, kw_only=True):
    """Budgets by period; one that is left out stays as it is, null takes it away."""

    day: BudgetBody | UnsetType | None = UNSET
    month: BudgetBody | UnsetType | None = UNSET
    total: BudgetBody | UnsetType | None = UNSET


def budget_changes(body: BudgetsBody | UnsetType) -> dict[Period, BudgetChange]:
    """What a body changes, as the registry takes it. Raises `BadValue`."""
    if isinstance(body, UnsetType):
        return {}
    given = {Period(name): getattr(body, name) for name in msgspec.structs.asdict(body)}
    return {period: _change(budget) for period, budget in given.items() if budget is not UNSET}


def _change(budget: BudgetBody | None) -> BudgetChange:
    change: BudgetChange = {}
    for name in ("limit", "warn"):
        amount = None if budget is None else getattr(budget, f"{name}_usd")
        if amount is not UNSET:
            change["limit_nano_usd" if name == "limit" else "warn_nano_usd"] = _nano_usd(amount)
    return change


def _nano_usd(amount: str | None) -> int | None:
    try:
        return None if amount is None else nano_usd(parse_usd(amount))
    except BadAmount as error:
        # The pattern lets a line break at the end pass.
        raise BadValue("budgets", str(error)) from None
