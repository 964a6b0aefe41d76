"""Takes batches of events over into the database, each event once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, delete, select

from proxy.adapters.sql.engine import insert_into, reading, writing
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.tables import spool_offsets, usage_daily, usage_events
from proxy.adapters.sql.usage import utc_day
from proxy.core.event import UsageEvent
from proxy.core.ids import uuid7_ms
from proxy.core.usage import Usage

__all__ = ["SqlLedgerStore"]

# Far above what a request can use, and low enough that no sum of a day leaves 64 bits for one absurd number: a batch
# must never be refused for what an upstream claims.
_MOST_TOKENS = 1 << 40
_MOST_PICO_USD = 1 << 56
_MOST_SMALL = (1 << 15) - 1
# Where a sum has 64 bits, a batch of absurd numbers is cut to them: what cannot be bound would hold up all the rest.
_MOST_SUM = (1 << 63) - 1
_MOST_CHARACTERS = 256

_Row = dict[str, Any]

_DAILY_KEY = tuple(column.name for column in usage_daily.primary_key)


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
            rows.setdefault(row["event_id"], row)
        with writing(self._engine, "ledger", "take_over") as connection:
            new = _add_events(connection, list(rows.values()))
            if new:
                _add_to_daily(connection, [rows[event_id] for event_id in new])
            moved = insert_into(connection, spool_offsets).values(segment=segment, offset_bytes=offset)
            connection.execute(
                moved.on_conflict_do_update(
                    index_elements=[spool_offsets.c.segment], set_={"offset_bytes": moved.excluded.offset_bytes}
                )
            )
        return len(new)

    def forget(self, writer: str) -> None:
        """Drop the offsets of a writer whose segments are about to be deleted."""
        with writing(self._engine, "ledger", "forget") as connection:
            connection.execute(delete(spool_offsets).where(spool_offsets.c.segment.startswith(f"{writer}/")))


def _add_events(connection: Connection, rows: list[_Row]) -> list[str]:
    if not rows:
        return []
    insert = insert_into(connection, usage_events)
    given: list[_Row] | _Row = rows
    if connection.dialect.name == "postgresql":
        from proxy.adapters.sql.postgres import rows_of  # noqa: PLC0415 - the driver is not in the base install

        insert = insert.from_select(usage_events.c.keys(), rows_of(usage_events))
        given = {column.name: [row[column.name] for row in rows] for column in usage_events.c}
    new = insert.on_conflict_do_nothing(index_elements=[usage_events.c.day, usage_events.c.event_id])
    return list(connection.execute(new.returning(usage_events.c.event_id), given).scalars())


def _add_to_daily(connection: Connection, rows: list[_Row]) -> None:
    totals: dict[tuple[object, ...], dict[str, int]] = {}
    for row in rows:
        total = totals.setdefault(tuple(row[name] for name in _DAILY_KEY), dict.fromkeys(MEASURES, 0))
        for name, measure in MEASURES.items():
            total[name] += measure.value(row)
    insert = insert_into(connection, usage_daily)
    added = {name: usage_daily.c[name] + insert.excluded[name] for name in MEASURES}
    if connection.dialect.name == "sqlite":
        totals = {key: {name: _within(each, _MOST_SUM) for name, each in sums.items()} for key, sums in totals.items()}
    connection.execute(
        insert.on_conflict_do_update(index_elements=list(usage_daily.primary_key), set_=added),
        # In one order everywhere, so that two workers never wait for each other in a circle.
        [dict(zip(_DAILY_KEY, key, strict=True)) | totals[key] for key in sorted(totals, key=str)],
    )


def _row(event: UsageEvent) -> _Row:
    usage: _Row = {kind: _within(getattr(event.usage, kind), _MOST_TOKENS) for kind in Usage.__struct_fields__}
    return usage | {
        "day": utc_day(_made_ms(event)),
        "event_id": _text(event.event_id),
        "at_ms": event.at_ms,
        "request_id": _text(event.request_id),
        "team": event.team,
        "key_id": event.key_id,
        "endpoint": _text(event.endpoint),
        "model": _text(event.model),
        "upstream": _text(event.upstream),
        "status": _within(event.status, _MOST_SMALL),
        "outcome": event.outcome.value,
        "cost_pico_usd": _within(event.cost_pico_usd, _MOST_PICO_USD),
        "saved_pico_usd": _within(event.saved_pico_usd, _MOST_PICO_USD),
        "price_id": event.price_id,
        "estimated": event.estimated,
        "attempts": _within(event.attempts, _MOST_SMALL),
        "duration_ms": _within(event.duration_ms, _MOST_TOKENS),
    }


def _made_ms(event: UsageEvent) -> int:
    """When the id was made: the same for a begin record and for its event, whatever their times say."""
    try:
        return uuid7_ms(event.event_id)
    except ValueError:
        return event.at_ms


def _within(number: int, most: int) -> int:
    return max(-most, min(number, most))


def _text(text: str) -> str:
    # Postgres cannot hold the character NUL, and no more than 2,700 bytes of a row in an index: clients send both.
    return text[:_MOST_CHARACTERS].replace("\x00", "\N{REPLACEMENT CHARACTER}")
