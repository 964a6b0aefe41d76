"""Reports from the daily totals, and the check that they agree with the events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date

from sqlalchemy import Column, Engine, RowMapping, func, select

from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.tables import usage_daily, usage_events
from proxy.core.registry import Axis, Mismatch, UsageRow
from proxy.core.usage import Usage

__all__ = ["SqlUsageReports", "utc_day"]

_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

_AXES: Mapping[Axis, Column[object]] = {
    Axis.DAY: usage_daily.c.day,
    Axis.TEAM: usage_daily.c.team,
    Axis.KEY: usage_daily.c.key_id,
    Axis.MODEL: usage_daily.c.model,
    Axis.UPSTREAM: usage_daily.c.upstream,
    Axis.ENDPOINT: usage_daily.c.endpoint,
}


def utc_day(at_ms: int) -> date:
    """The UTC day of a unix time in milliseconds."""
    return date.fromordinal(_EPOCH_ORDINAL + at_ms // _DAY_MS)


class SqlUsageReports:
    """The reports of an SQL database; implements `core.registry.UsageReports`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> Sequence[UsageRow]:
        """Totals of the whole UTC days that [since_ms, until_ms) touches, sorted by group; no axes: one row.

        Raises `StoreAway`.
        """
        axes = [_AXES[axis] for axis in by]
        query = select(*axes, *(func.sum(usage_daily.c[name]).label(name) for name in MEASURES))
        if since_ms is not None:
            query = query.where(usage_daily.c.day >= utc_day(since_ms))
        if until_ms is not None:
            query = query.where(usage_daily.c.day <= utc_day(until_ms - 1))
        if team is not None:
            query = query.where(usage_daily.c.team == team)
        with reading(self._engine, "ledger", "usage") as connection:
            rows = connection.execute(query.group_by(*axes).order_by(*axes)).mappings().all()
        return [_report_row(axes, row) for row in rows]

    def verify(self) -> Sequence[Mismatch]:
        """Compare the daily totals with the events they are made of; empty when the books agree.

        Raises `StoreAway`.
        """
        keys = list(usage_daily.primary_key.columns)
        daily = select(*keys, *(usage_daily.c[name] for name in MEASURES))
        group = [usage_events.c[column.name] for column in keys]
        events = select(*group, *(measure.sum().label(name) for name, measure in MEASURES.items())).group_by(*group)
        with reading(self._engine, "ledger", "verify") as connection:
            found = {_group(keys, row): row for row in connection.execute(daily).mappings()}
            true = {_group(keys, row): row for row in connection.execute(events).mappings()}
        return [
            Mismatch(group, name, _number(found.get(group), name), _number(true.get(group), name))
            for group in sorted(found.keys() | true.keys())
            for name in MEASURES
            if _number(found.get(group), name) != _number(true.get(group), name)
        ]


def _report_row(axes: Sequence[Column[object]], row: RowMapping) -> UsageRow:
    usage = Usage(**{kind: _number(row, kind) for kind in Usage.__slots__})
    others = [name for name in MEASURES if name not in Usage.__slots__]
    return UsageRow(group=_group(axes, row), usage=usage, **{name: _number(row, name) for name in others})


def _group(columns: Sequence[Column[object]], row: RowMapping) -> tuple[str, ...]:
    return tuple(str(row[column.name]) for column in columns)


def _number(row: RowMapping | None, name: str) -> int:
    # A sum is a Decimal on Postgres, and NULL over no rows.
    return int(row[name] or 0) if row is not None else 0
