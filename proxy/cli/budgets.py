"""Budgets on the command line: their options, and how they stand in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import click

from proxy.core.budget import BadBudget, Budget, Period, parse_budget
from proxy.core.caps import BudgetChange, usd_of

__all__ = ["budget_changes", "budget_options", "budgets_cell"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Given = tuple[int | None, Period]
_NONE = "none/"


class _Amount(click.ParamType[_Given]):
    """An amount for a period (`500usd/month`), or where it can be taken away, `none/month`."""

    name = "budget"

    def __init__(self, *, clearable: bool) -> None:
        self._clearable = clearable

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _Given:
        if isinstance(value, tuple):
            return value
        try:
            if self._clearable and value.startswith(_NONE):
                return None, Period(value.removeprefix(_NONE))
            return parse_budget(value)
        except BadBudget as error:
            self.fail(str(error), param, ctx)
        except ValueError:
            self.fail(f"{value[:40]!r} is for no period: day, month or total", param, ctx)


def budget_options(*, clearable: bool = True) -> Callable[[_Command], _Command]:
    """The two options of budgets, each as often as there are periods; `none/month` takes a clearable one away."""
    amount = _Amount(clearable=clearable)
    none = "|none/PERIOD" if clearable else ""

    def decorate(command: _Command) -> _Command:
        command = click.option(
            "--warn-at",
            type=amount,
            multiple=True,
            metavar=f"USD/PERIOD{none}",
            help="Spending at which somebody is told: 400usd/month.",
        )(command)
        return click.option(
            "--budget",
            type=amount,
            multiple=True,
            metavar=f"USD/PERIOD{none}",
            help="What may be spent: 500usd/month, 20usd/day, 10000usd/total (UTC).",
        )(command)

    return decorate


def budget_changes(options: dict[str, Any]) -> dict[Period, BudgetChange]:
    """Take what was said of budgets out of the options, by period."""
    changes: dict[Period, BudgetChange] = {}
    for amount, period in _each("--budget", options.pop("budget")):
        changes.setdefault(period, {})["limit_nano_usd"] = amount
    for amount, period in _each("--warn-at", options.pop("warn_at")):
        changes.setdefault(period, {})["warn_nano_usd"] = amount
    return changes


def _each(flag: str, given: Iterable[_Given]) -> Iterable[_Given]:
    seen: set[Period] = set()
    for amount, period in given:
        if period in seen:
            raise click.UsageError(f"{flag} is given twice for a {period}")
        seen.add(period)
        yield amount, period


def budgets_cell(
    budgets: Iterable[Budget], spent_nano_usd: Mapping[tuple[str, str, Period], int], team: str, kid: str = ""
) -> str | None:
    """Budgets in a table's cell: what is spent, and of what."""
    told = []
    for budget in budgets:
        spent = usd_of(spent_nano_usd.get((team, kid, budget.period), 0))
        of = "" if budget.limit_nano_usd is None else f" of {usd_of(budget.limit_nano_usd)}"
        warns = "" if budget.warn_nano_usd is None else f", warns at {usd_of(budget.warn_nano_usd)}"
        told.append(f"{spent}{of}/{budget.period}{warns}")
    return "; ".join(told) or None
