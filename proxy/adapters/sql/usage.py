"""Reports from the daily totals, and the check that they agree with the events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

from sqlalchemy import Column, ColumnElement, Connection, Engine, RowMapping, Select, func, select

from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.tables import usage_daily, usage_events
from proxy.core.names import is_name
from proxy.core.registry import Axis, Mismatch, TeamUnknown, UsageRow
from proxy.core.usage import Usage

__all__ = ["SqlUsageReports", "counted_from_events", "exact_sums", "mismatches_in", "total_of", "utc_day"]

_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

_DAILY_KEY = tuple(usage_daily.primary_key.columns)
_HALF_BITS = 32
_AT_ONCE = 1_000
"""Rows that are fetched from the database at a time."""

_AXES: Mapping[Axis, Column[object]] = {
    Axis.DAY: usage_daily.c.day,
    Axis.TEAM: usage_daily.c.team,
    Axis.KEY: usage_daily.c.key_id,
    Axis.MODEL: usage_daily.c.model,
    Axis.UPSTREAM: usage_daily.c.upstream,
    Axis.ENDPOINT: usage_daily.c.endpoint,
}


def utc_day(at_ms: int) -> date:
    """The UTC day of a unix time in milliseconds; the first or the last one there is for a clock beyond them."""
    return date.fromordinal(max(1, min(_EPOCH_ORDINAL + at_ms // _DAY_MS, date.max.toordinal())))


class SqlUsageReports:
    """The reports of an SQL database; implements `core.registry.UsageReports`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> Sequence[UsageRow]:
        """Totals of the whole UTC days that [since_ms, until_ms) touches, sorted by group; no axes: one row.

        Raises `TeamUnknown` for what is no name of a team, `StoreAway`.
        """
        return list(self.each_usage(by, since_ms, until_ms, team))

    def each_usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> Iterator[UsageRow]:
        """Yield the rows of `usage` as the database gives them, with little of it in memory. Raises as `usage` does."""
        query = self._totals(by, since_ms, until_ms, team)
        axes = [_AXES[axis] for axis in by]
        with (
            reading(self._engine, "ledger", "usage") as connection,
            # Closed before the transaction is, also where nobody reads to the end.
            connection.execution_options(yield_per=_AT_ONCE).execute(query.order_by(*axes)) as rows,
        ):
            wide = _is_wide(self._engine.dialect.name)
            yield from (_report_row(len(axes), row, wide=wide) for row in rows)

    def count_usage(
        self, by: Sequence[Axis], since_ms: int | None = None, until_ms: int | None = None, team: str | None = None
    ) -> int:
        """How many rows `usage` would have at this moment. Raises as `usage` does."""
        query = self._totals(by, since_ms, until_ms, team)
        with reading(self._engine, "ledger", "usage") as connection:
            return connection.execute(select(func.count()).select_from(query.subquery())).scalar_one()

    def _totals(
        self, by: Sequence[Axis], since_ms: int | None, until_ms: int | None, team: str | None
    ) -> Select[*tuple[Any, ...]]:
        axes = [_AXES[axis] for axis in by]
        sums = [each for name in MEASURES for each in _wide_sum(usage_daily.c[name], self._engine.dialect.name)]
        query = select(*axes, *sums).group_by(*axes)
        if since_ms is not None:
            query = query.where(usage_daily.c.day >= utc_day(since_ms))
        if until_ms is not None:
            query = query.where(usage_daily.c.day <= utc_day(until_ms - 1))
        if team is not None:
            if not is_name(team):
                raise TeamUnknown(team)
            query = query.where(usage_daily.c.team == team)
        return query

    def verify(self) -> Sequence[Mismatch]:
        """Compare the daily totals with the events they are made of; empty when the books agree.

        Raises `StoreAway`.
        """
        with reading(self._engine, "ledger", "verify") as connection:
            return mismatches_in(connection)


def mismatches_in(connection: Connection) -> list[Mismatch]:
    """Where the daily totals are not the group-by of the events."""
    daily = select(*_DAILY_KEY, *(usage_daily.c[name] for name in MEASURES))
    found = {_group(_DAILY_KEY, row): row for row in connection.execute(daily).mappings()}
    true = {_group(_DAILY_KEY, row): row for row in connection.execute(counted_from_events()).mappings()}
    return [
        Mismatch(group, name, _number(found.get(group), name), _number(true.get(group), name))
        for group in sorted(found.keys() | true.keys())
        for name in MEASURES
        if not _same(found.get(group), true.get(group), name)
    ]


def counted_from_events() -> Select[tuple[object, ...]]:
    """What the rows of `usage_daily` must be: its key, then every measure."""
    group = [usage_events.c[column.name] for column in _DAILY_KEY]
    return select(*group, *(measure.sum().label(name) for name, measure in MEASURES.items())).group_by(*group)


def total_of(connection: Connection, column: Column[int], *of: ColumnElement[bool]) -> int:
    """The exact sum of a column over its whole table, or over the rows that all of `of` are true of."""
    dialect = connection.dialect.name
    row = connection.execute(select(*_wide_sum(column, dialect)).where(*of)).one()
    (total,) = _numbers(row, wide=_is_wide(dialect))
    return total


def exact_sums(
    connection: Connection, column: Column[int], group: Sequence[ColumnElement[Any]], *of: ColumnElement[bool]
) -> dict[tuple[Any, ...], int]:
    """The exact sums of a column over the rows that all of `of` are true of, by group."""
    dialect = connection.dialect.name
    rows = connection.execute(select(*group, *_wide_sum(column, dialect)).where(*of).group_by(*group))
    at = len(group)
    return {tuple(row[:at]): _numbers(row[at:], wide=_is_wide(dialect))[0] for row in rows}


def _is_wide(dialect: str) -> bool:
    """Whether a sum that may leave 64 bits is asked for in two halves, because there is no type for the whole."""
    return dialect == "sqlite"


def _wide_sum(column: Column[int], dialect: str) -> list[ColumnElement[int]]:
    if not _is_wide(dialect):
        return [func.sum(column).label(column.name)]
    high = func.sum(column.bitwise_rshift(_HALF_BITS))
    low = func.sum(column.bitwise_and((1 << _HALF_BITS) - 1))
    return [high.label(f"{column.name}_high"), low.label(column.name)]


def _numbers(sums: Sequence[Any], *, wide: bool) -> list[int]:
    # A sum is a Decimal on Postgres, and NULL over no rows.
    if not wide:
        return [int(each or 0) for each in sums]
    return [((high or 0) << _HALF_BITS) + (low or 0) for high, low in zip(sums[::2], sums[1::2], strict=True)]


def _report_row(axes: int, row: Sequence[Any], *, wide: bool) -> UsageRow:
    numbers = dict(zip(MEASURES, _numbers(row[axes:], wide=wide), strict=True))
    usage = Usage(**{kind: numbers.pop(kind) for kind in Usage.__struct_fields__})
    return UsageRow(group=tuple(map(str, row[:axes])), usage=usage, **numbers)


def _group(columns: Sequence[Column[object]], row: RowMapping) -> tuple[str, ...]:
    return tuple(str(row[column.name]) for column in columns)


def _number(row: RowMapping | None, name: str) -> int:
    # A sum is a Decimal on Postgres, and NULL over no rows.
    return int(row[name] or 0) if row is not None else 0


def _same(found: RowMapping | None, true: RowMapping | None, name: str) -> bool:
    # SQLite keeps a fraction in a column of integers, if it is told to.
    whole = not any(row is not None and isinstance(row[name], float) for row in (found, true))
    return whole and _number(found, name) == _number(true, name)
