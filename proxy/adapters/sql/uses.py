"""Which teams used which models lately: read at each start, so it may not take longer for a ledger that is longer."""

from __future__ import annotations

from sqlalchemy import Engine, func, select

from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.tables import usage_daily

__all__ = ["MOST_USES", "latest_uses"]

MOST_USES = 200
_LOOKED_AT = 20_000
"""Rows of daily totals, the newest, that uses are looked for in."""


def latest_uses(engine: Engine) -> list[tuple[str, str, str]]:
    """Team, model and endpoint of what was used lately, the latest first, `MOST_USES` at most. Raises `StoreAway`."""
    daily = usage_daily.c
    # Nothing but columns of the primary key, whose index is read from its end.
    newest = (
        select(daily.day, daily.team, daily.model, daily.endpoint).order_by(daily.day.desc()).limit(_LOOKED_AT)
    ).subquery()
    use = (newest.c.team, newest.c.model, newest.c.endpoint)
    query = select(*use).group_by(*use).order_by(func.max(newest.c.day).desc(), *use).limit(MOST_USES)
    with reading(engine, "ledger", "uses") as connection:
        return [(team, model, endpoint) for team, model, endpoint in connection.execute(query)]
