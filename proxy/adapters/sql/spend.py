"""What teams and keys have spent, read out of the ledger for their budgets."""

from __future__ import annotations

import asyncio
from datetime import date, timedelta

from sqlalchemy import BigInteger, ColumnElement, Connection, Engine, func, literal_column, select

from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.tables import usage_daily, usage_events
from proxy.adapters.sql.usage import exact_sums, total_of, utc_day
from proxy.core.budget import MINUTE_MS, Span, nano_usd
from proxy.core.decision import TEAM_SCOPE
from proxy.ports import Spent

__all__ = ["SqlSpendLedger"]

_DAY_MS = 86_400_000
_MOST_DAYS = 100
# Not a parameter: Postgres would take the one it groups by for another than the one it selects.
_MINUTE_MS = literal_column(str(MINUTE_MS), BigInteger)


class SqlSpendLedger:
    """The ledger of an SQL database, as budgets read it; implements `ports.SpendLedger`.

    What is older than the boundary is the daily totals less the events since: both are of one instant, so that no
    event is missed or counted twice, and the events that are read are those of one team since the boundary. An event
    that is still in a spool is not there yet. Each call takes a thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def spent(self, team: str, scope: str, span: Span, boundary: int) -> Spent:
        """What a team (`team`) or one of its keys (`key:<kid>`) has spent in a span. Raises `StoreAway`."""
        return await asyncio.to_thread(self.read, team, scope, span, boundary)

    def read(self, team: str, scope: str, span: Span, boundary: int) -> Spent:
        """Read it on the caller's own thread. Raises `StoreAway`."""
        daily = [usage_daily.c.team == team]
        since = [usage_events.c.team == team]
        if scope != TEAM_SCOPE:
            kid = scope.partition(":")[2]
            # A key is of one team for good: so there is but one index that it could be found by.
            daily = [usage_daily.c.key_id == kid]
            since.append(usage_events.c.key_id == kid)
        first_ms = max(boundary * MINUTE_MS, span.start_ms)
        daily.append(usage_daily.c.day >= utc_day(span.start_ms))
        since.append(usage_events.c.at_ms >= first_ms)
        if span.end_ms is not None:
            daily.append(usage_daily.c.day <= utc_day(span.end_ms - 1))
            since.append(usage_events.c.at_ms < span.end_ms)
        minute = usage_events.c.at_ms // _MINUTE_MS
        with reading(self._engine, "ledger", "spent") as connection:
            in_all = total_of(connection, usage_daily.c.cost_pico_usd, *daily)
            since.append(_days(connection, first_ms))
            minutes = exact_sums(connection, usage_events.c.cost_pico_usd, [minute], *since)
        return Spent(
            nano_usd(in_all - sum(minutes.values())),
            boundary,
            {int(at): nano_usd(pico_usd) for (at,), pico_usd in sorted(minutes.items()) if pico_usd},
        )


def _days(connection: Connection, first_ms: int) -> ColumnElement[bool]:
    """Of the days since `first_ms`: each by itself, which an index by day and team answers, unless they are many."""
    # An event is of the day in which its id was made, a moment before or after the time that it tells.
    first = utc_day(first_ms - _DAY_MS)
    last: date = connection.execute(select(func.max(usage_events.c.day))).scalar() or first
    if (last - first).days >= _MOST_DAYS:
        return usage_events.c.day >= first
    return usage_events.c.day.in_([first + timedelta(days) for days in range((last - first).days + 1)])
