"""Proves the ledger's tables against each other and against the spool, and makes the daily totals anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import date

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, delete, func, insert, or_, select

from proxy.adapters.spool_state import SpoolLook
from proxy.adapters.sql.engine import reading, writing
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.tables import audit_log, spool_offsets, usage_daily, usage_events
from proxy.adapters.sql.usage import counted_from_events, mismatches_in, total_of, utc_day
from proxy.core.books import Findings, Misdated, OffsetAstray
from proxy.core.ids import uuid7, uuid7_ms
from proxy.ports import Clock

__all__ = ["SqlBooks"]

_DAY_MS = 86_400_000
_MOST_OF_A_DAY = 20
_SEGMENT = re.compile(r"[0-9a-f]{16}/[0-9]{8}", re.ASCII)
_LOWEST = bytes(10)

_AT_ONCE = 500

LookAtSpool = Callable[[Mapping[str, int]], SpoolLook]
"""Takes the offset of every segment the database knows."""


class SqlBooks:
    """The books of an SQL database and one machine's spool; implements `core.books.Books`.

    `actor` is who the audit log names.
    """

    def __init__(self, engine: Engine, look_at_spool: LookAtSpool, clock: Clock, actor: str = "cli") -> None:
        self._engine = engine
        self._look_at_spool = look_at_spool
        self._clock = clock
        self._actor = actor

    def verify(self) -> Findings:
        """Prove everything at one instant of the database; the spool is looked at after it. Raises `StoreAway`."""
        with reading(self._engine, "ledger", "verify") as connection:
            mismatches = mismatches_in(connection)
            misdated = [each for day in _days(connection) for each in _misdated(connection, day)]
            known = {name: int(offset) for name, offset in connection.execute(select(spool_offsets))}
            events = connection.execute(select(func.count()).select_from(usage_events)).scalar_one()
            cost_pico_usd = total_of(connection, usage_events.c.cost_pico_usd)
        look = self._look_at_spool(known)
        # A segment may be kept for one of its requests after the events of the others have come and gone.
        open_requests = len(look.open_ids) - self._have_events(look.open_ids)
        spool = replace(look.state, open_requests=open_requests)
        return Findings(events, cost_pico_usd, mismatches, misdated, [*_impossible(known), *look.astray], spool)

    def _have_events(self, event_ids: frozenset[str]) -> int:
        found = 0
        ordered = sorted(event_ids)
        with reading(self._engine, "ledger", "verify") as connection:
            for at in range(0, len(ordered), _AT_ONCE):
                some = ordered[at : at + _AT_ONCE]
                days = {_day_of(each, 0) for each in some}
                here = usage_events.c.day.in_(days) & usage_events.c.event_id.in_(some)
                found += connection.execute(select(func.count()).select_from(usage_events).where(here)).scalar_one()
        return found

    def rebuild(self) -> int:
        """Make `usage_daily` anew from `usage_events`; returns its rows. Shippers wait. Raises `StoreAway`."""
        columns = [*usage_daily.primary_key.columns.keys(), *MEASURES]
        with writing(self._engine, "ledger", "rebuild") as connection:
            differing = len({mismatch.group for mismatch in mismatches_in(connection)})
            connection.execute(delete(usage_daily))
            connection.execute(insert(usage_daily).from_select(columns, counted_from_events()))
            rows: int = connection.execute(select(func.count()).select_from(usage_daily)).scalar_one()
            details = msgspec.json.encode({"rows": rows, "differed": differing}).decode()
            connection.execute(
                insert(audit_log).values(
                    at_ms=self._clock.now_ms(),
                    actor=self._actor,
                    action="ledger.rebuild",
                    subject=usage_daily.name,
                    details=details,
                )
            )
        return rows


def _days(connection: Connection) -> list[date]:
    return list(connection.execute(select(usage_events.c.day).distinct().order_by(usage_events.c.day)).scalars())


def _misdated(connection: Connection, day: date) -> Iterator[Misdated]:
    """Events of a day whose ids sort outside of it: a UUIDv7 begins with its time."""
    first_ms = (day - date(1970, 1, 1)).days * _DAY_MS
    event_id: ColumnElement[str] = usage_events.c.event_id
    if connection.dialect.name == "postgresql":
        # Languages have orders of their own: in Danish `aa` comes after `z`.
        event_id = event_id.collate("C")
    outside = or_(event_id < uuid7(first_ms, _LOWEST), event_id >= uuid7(first_ms + _DAY_MS, _LOWEST))
    query = select(usage_events.c.event_id, usage_events.c.at_ms).where(usage_events.c.day == day, outside)
    found = 0
    for text, at_ms in connection.execute(query.order_by(event_id)):
        made_on = _day_of(text, at_ms)
        if made_on != day and found < _MOST_OF_A_DAY:
            found += 1
            yield Misdated(day, text, made_on)


def _day_of(event_id: str, at_ms: int) -> date:
    """The day an id belongs to; that of `at_ms` for one that tells none."""
    try:
        return utc_day(uuid7_ms(event_id))
    except ValueError:
        return utc_day(at_ms)


def _impossible(known: dict[str, int]) -> Iterator[OffsetAstray]:
    for name, offset in sorted(known.items()):
        if not _SEGMENT.fullmatch(name):
            yield OffsetAstray(name, offset, "that is not the name of a segment")
        elif offset < 0:
            yield OffsetAstray(name, offset, "it is negative")
