"""Takes batches of events over into the database, each event once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import repeat
from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple
from sqlalchemy import Connection, CursorResult, Engine, Table, delete, select

from proxy.adapters.sql.engine import reading, writing
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.tables import spool_offsets, usage_daily, usage_events
from proxy.adapters.sql.usage import utc_day
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7_ms

__all__ = ["SqlLedgerStore"]

# Far above what a request can use, and low enough that no sum of a day leaves 64 bits for one absurd number: a batch
# must never be refused for what an upstream claims.
_MOST_TOKENS = 1 << 40
_MOST_PICO_USD = 1 << 56
_MOST_SMALL = (1 << 15) - 1
# Where a sum has 64 bits, a batch of absurd numbers is cut to them: what cannot be bound would hold up all the rest.
_MOST_SUM = (1 << 63) - 1
_MOST_CHARACTERS = 256
_DAY_MS = 86_400_000

_Row = tuple[Any, ...]
"""An event, or a daily total: its values in the order of the table's columns."""

_PLACES = {name: place for place, name in enumerate(usage_events.c.keys())}
_DAILY_KEY = tuple(column.name for column in usage_daily.primary_key)

# The statements are text, and said once: SQLAlchemy takes longer to put one together than the database to run it.
_ADD = f"ON CONFLICT ({', '.join(_DAILY_KEY)}) DO UPDATE SET " + ", ".join(
    f"{name} = usage_daily.{name} + excluded.{name}" for name in MEASURES
)
_MOVE = "ON CONFLICT (segment) DO UPDATE SET offset_bytes = excluded.offset_bytes"
_KEEP = "ON CONFLICT (day, event_id) DO NOTHING"
_KNOWN = "SELECT event_id FROM usage_events WHERE day = ? AND event_id IN (SELECT value FROM json_each(?))"


class SqlLedgerStore:
    """The ledger's tables, as the spool's shipper writes them. Synchronous; every method raises `StoreAway`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def offset(self, segment: str) -> int:
        """How far the segment has been taken over, in bytes; 0 for one never seen."""
        query = select(spool_offsets.c.offset_bytes).where(spool_offsets.c.segment == segment)
        with reading(self._engine, "ledger", "offset") as connection:
            return int(connection.execute(query).scalar() or 0)

    def take_over(self, events: Sequence[UsageEvent], segment: str, offset: int) -> int:
        """Add the events that are not there yet, their daily totals, and the offset, in one transaction.

        Returns how many were new. Doing it again changes nothing.
        """
        rows: dict[str, _Row] = {}
        for row in map(_row, events):
            rows.setdefault(row[_EVENT_ID], row)
        with writing(self._engine, "ledger", "take_over") as connection:
            new = _add_events(connection, rows) if rows else []
            if new:
                _add_to_daily(connection, new)
            _insert(connection, spool_offsets, [(segment, offset)], _MOVE)
        return len(new)

    def forget(self, writer: str) -> None:
        """Drop the offsets of a writer whose segments are about to be deleted."""
        with writing(self._engine, "ledger", "forget") as connection:
            connection.execute(delete(spool_offsets).where(spool_offsets.c.segment.startswith(f"{writer}/")))


def _add_events(connection: Connection, rows: dict[str, _Row]) -> list[_Row]:
    """Add the events that are not there yet, and return them."""
    if connection.dialect.name == "postgresql":
        added = _insert(connection, usage_events, list(rows.values()), f"{_KEEP} RETURNING event_id")
        return [rows[event_id] for event_id in added.scalars()]
    # Nobody else writes before this transaction ends: what is not there is not there when it is added.
    known = _known(connection, rows)
    new = [row for event_id, row in rows.items() if event_id not in known]
    if new:
        _insert(connection, usage_events, new, _KEEP)
    return new


def _known(connection: Connection, rows: dict[str, _Row]) -> set[str]:
    by_day: dict[str, list[str]] = {}
    for event_id, row in rows.items():
        by_day.setdefault(row[_DAY], []).append(event_id)
    known: set[str] = set()
    for day, event_ids in by_day.items():
        given = (day, msgspec.json.encode(event_ids).decode())
        known.update(connection.exec_driver_sql(_KNOWN, given).scalars())
    return known


def _add_to_daily(connection: Connection, rows: list[_Row]) -> None:
    added: dict[_Row, list[tuple[int, ...]]] = {}
    for row in rows:
        adds = _CACHED_ADDS if row[_OUTCOME] == _CACHED else _USED_ADDS
        added.setdefault(_daily_key(row), []).append(adds(row + _CONSTANTS))
    totals = {key: map(sum, zip(*each, strict=True)) for key, each in added.items()}
    if connection.dialect.name == "sqlite":
        totals = {key: map(_within, sums, repeat(_MOST_SUM)) for key, sums in totals.items()}
    # In one order everywhere, so that two workers never wait for each other in a circle.
    _insert(connection, usage_daily, [(*key, *totals[key]) for key in sorted(totals)], _ADD)


def _insert(connection: Connection, table: Table, rows: list[_Row], otherwise: str) -> CursorResult[Any]:
    """Insert rows, one at least; `otherwise`: what becomes of those that are there."""
    if connection.dialect.name == "postgresql":
        from proxy.adapters.sql.postgres import as_one, insert_rows  # noqa: PLC0415 - the driver is not always there

        return connection.exec_driver_sql(f"{insert_rows(table)} {otherwise}", as_one(rows))
    names = table.c.keys()
    values = ", ".join("?" * len(names))
    # Names of the schema alone.
    statement = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({values}) {otherwise}"  # noqa: S608 - as said
    return connection.exec_driver_sql(statement, rows)


def _row(event: UsageEvent) -> _Row:
    tokens = astuple(event.usage)
    if max(tokens) > _MOST_TOKENS or min(tokens) < -_MOST_TOKENS:
        tokens = tuple(_within(number, _MOST_TOKENS) for number in tokens)
    return (
        _day(_made_ms(event) // _DAY_MS),
        _text(event.event_id),
        event.at_ms,
        _text(event.request_id),
        event.team,
        event.key_id,
        _text(event.endpoint),
        _text(event.model),
        _text(event.upstream),
        _within(event.status, _MOST_SMALL),
        str(event.outcome),
        *tokens,
        _within(event.cost_pico_usd, _MOST_PICO_USD),
        _within(event.saved_pico_usd, _MOST_PICO_USD),
        event.price_id,
        int(event.estimated),
        _within(event.attempts, _MOST_SMALL),
        _within(event.duration_ms, _MOST_TOKENS),
    )


def _adds(*, cached: bool) -> Callable[[_Row], tuple[int, ...]]:
    """What an event adds to each measure, as a function of its row with `_CONSTANTS` behind it."""
    places: dict[str | int, int] = {constant: len(_PLACES) + constant for constant in _CONSTANTS}
    places.update(_PLACES)
    return itemgetter(*(places[measure.added(cached=cached)] for measure in MEASURES.values()))


_CONSTANTS = (0, 1)
_CACHED = Outcome.CACHED.value
_CACHED_ADDS = _adds(cached=True)
_USED_ADDS = _adds(cached=False)
_daily_key: Callable[[_Row], _Row] = itemgetter(*(_PLACES[name] for name in _DAILY_KEY))
_DAY, _EVENT_ID, _OUTCOME = _PLACES["day"], _PLACES["event_id"], _PLACES["outcome"]


@lru_cache(maxsize=64)
def _day(number: int) -> str:
    """A date as both databases read it; days are counted from 1970."""
    return utc_day(number * _DAY_MS).isoformat()


def _made_ms(event: UsageEvent) -> int:
    """When the id was made: the same for a begin record and for its event, whatever their times say."""
    try:
        return uuid7_ms(event.event_id)
    except ValueError:
        return event.at_ms


def _within(number: int, most: int) -> int:
    return number if -most <= number <= most else max(-most, min(number, most))


def _text(text: str) -> str:
    # Postgres cannot hold the character NUL, and no more than 2,700 bytes of a row in an index: clients send both.
    return text[:_MOST_CHARACTERS].replace("\x00", "\N{REPLACEMENT CHARACTER}")
