"""Budgets in the database: read with whom they belong to, changed in one transaction with all else of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, delete, insert, select

from proxy.adapters.sql.changes import Changes
from proxy.adapters.sql.rows import budget_values, budgets_in
from proxy.adapters.sql.tables import budgets, usage_daily
from proxy.adapters.sql.usage import exact_sums, utc_day
from proxy.core.budget import Budget, Period, nano_usd, span_of
from proxy.core.caps import BadBudgetChange, BudgetChange, changed_budgets
from proxy.core.registry import BadValue

__all__ = ["SqlBudgets", "changed", "keep_budgets", "told_budgets"]


class SqlBudgets(Changes):
    """What the registry tells of all budgets at once."""

    def budgets_spent(self, at_ms: int, team: str | None = None) -> Mapping[tuple[str, str, Period], int]:
        """What was spent of every budget in its span that holds `at_ms`, in nano-dollars, as far as the ledger has it.

        By team, id of the key (empty for the team's own) and period; of one team or at all. Raises `StoreAway`.
        """
        found: dict[tuple[str, str, Period], int] = {}
        daily = usage_daily.c
        with self._look("budgets_spent") as connection:
            for period in Period:
                first = utc_day(span_of(period, at_ms).start_ms)
                of = [budgets.c.period == period.value, *([] if team is None else [budgets.c.team == team])]
                for owner, names, column in (
                    (budgets.c.kid == "", (daily.team,), budgets.c.team),
                    (budgets.c.kid != "", (daily.team, daily.key_id), budgets.c.kid),
                ):
                    among = select(column).where(owner, *of)
                    rows = exact_sums(connection, daily.cost_pico_usd, names, names[-1].in_(among), daily.day >= first)
                    for group, pico_usd in rows.items():
                        found[(*group, "")[0], (*group, "")[1], period] = nano_usd(pico_usd)
        return found

    def spent_by_team(self, at_ms: int) -> Mapping[tuple[str, Period], int]:
        """What the ledger has of the day and the month that hold `at_ms`, in pico-dollars, by team. Raises `StoreAway`.

        A day or month of a team without a row is not in it.
        """
        daily, span = usage_daily.c, span_of(Period.MONTH, at_ms)
        this_month = daily.day.between(utc_day(span.start_ms), utc_day((span.end_ms or at_ms + 1) - 1))
        found: dict[tuple[str, Period], int] = {}
        with self._look("spent_by_team") as connection:
            # Each added up where it is: the days of a month are thirty times as many rows.
            for period, days in ((Period.DAY, daily.day == utc_day(at_ms)), (Period.MONTH, this_month)):
                rows = exact_sums(connection, daily.cost_pico_usd, [daily.team], days)
                found.update({(team, period): pico_usd for (team,), pico_usd in rows.items()})
        return found

    def team_budgets(self) -> Mapping[str, Sequence[Budget]]:
        """The budgets of every team that has one of its own. Raises `StoreAway`."""
        with self._look("team_budgets") as connection:
            return {team: own for (team, _), own in budgets_in(connection, budgets.c.kid == "").items()}


def changed(before: Sequence[Budget], changes: Mapping[Period, BudgetChange]) -> tuple[Budget, ...]:
    """The budgets after a change. Raises `BadValue`."""
    try:
        return changed_budgets(before, changes)
    except BadBudgetChange as error:
        raise BadValue("budgets", str(error)) from None


def keep_budgets(connection: Connection, team: str, kids: Iterable[str], after: Sequence[Budget]) -> None:
    """Have these be the budgets of a team (an empty id) or of keys of it, and no others."""
    kids = list(kids)
    for kid in kids:
        connection.execute(delete(budgets).where(budgets.c.team == team, budgets.c.kid == kid))
    rows = [{"team": team, "kid": kid} | budget_values(budget) for kid in kids for budget in after]
    if rows:
        connection.execute(insert(budgets), rows)


def told_budgets(after: Iterable[Budget], periods: Iterable[Period]) -> dict[str, dict[str, int | None]]:
    """What the audit log says of the budgets of these periods."""
    found = {budget.period: budget for budget in after}
    return {
        period.value: {"limit_nano_usd": budget.limit_nano_usd, "warn_nano_usd": budget.warn_nano_usd}
        for period in periods
        for budget in [found.get(period, Budget(period))]
    }
