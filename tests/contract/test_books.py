"""The account is proved, and what does not tie out is named, on each database."""

import json
from datetime import date, timedelta
from functools import partial

import pytest
from sqlalchemy import event as on
from sqlalchemy import insert, select, text

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.spool import SpoolWriter
from proxy.adapters.spool_state import look_at_spool
from proxy.adapters.sql.books import SqlBooks
from proxy.adapters.sql.engine import open_engine, reading, writing
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.tables import audit_log, spool_offsets, usage_daily, usage_events
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.books import Misdated, OffsetAstray, SpoolState
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.pricing import PriceBook
from proxy.core.registry import Mismatch
from proxy.core.usage import Usage

DAY_MS = 86_400_000
AT_MS = 20_000 * DAY_MS + 5_000  # 2024-10-04
GROUP = ("2024-10-04", "growth", "k" * 12, "m", "openai", "chat")
IDLE = SpoolState(0, 0, 0, 0, ())


class SetClock:
    def now_ms(self):
        return AT_MS

    def monotonic_ns(self):
        return 0


class Telemetry:
    def store_failed(self, store, operation):
        raise AssertionError((store, operation))


def who(number, at_ms):
    return {
        "event_id": uuid7(at_ms, number.to_bytes(10, "big")),
        "at_ms": at_ms,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "m",
        "upstream": "openai",
    }


def dispatch(number, at_ms=AT_MS):
    return Dispatch(**who(number, at_ms), reserved_input_tokens=10, reserved_output_tokens=20, price_id=None)


def event(number, at_ms=AT_MS, cost_pico_usd=29, **fields):
    usage = Usage(input_tokens=5, output_tokens=2)
    ended = {"status": 200, "outcome": Outcome.OK, "usage": usage, "cost_pico_usd": cost_pico_usd}
    return UsageEvent(**who(number, at_ms), **ended | fields)


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    return SqlLedgerStore(engine)


@pytest.fixture
def books(engine, tmp_path):
    return SqlBooks(engine, partial(look_at_spool, tmp_path / "spool"), SetClock(), actor="cli:ada")


def forge(engine, statement, *rows):
    with writing(engine, "test", "forge") as connection:
        connection.execute(statement, *rows)


def rows_of(engine, table):
    with reading(engine, "test", "rows") as connection:
        return [dict(row) for row in connection.execute(select(table).order_by(*table.primary_key)).mappings()]


def test_books_of_nothing_tie_out(books):
    findings = books.verify()
    assert findings.tie_out
    assert (findings.events, findings.cost_pico_usd, findings.spool) == (0, 0, IDLE)


def test_books_that_tie_out_tell_the_exact_sum(books, store):
    days = [AT_MS + DAY_MS * (number % 3) for number in range(30)]
    store.take_over(
        [event(number, at_ms, 10**15 + number) for number, at_ms in enumerate(days)], f"{'a' * 16}/00000001", 90
    )
    findings = books.verify()
    assert findings.tie_out
    assert (findings.events, findings.cost_pico_usd) == (30, 30 * 10**15 + sum(range(30)))


@pytest.mark.parametrize("by", [1, -1, 10**12])
def test_a_cost_that_was_changed_is_named_by_its_row(books, store, engine, by):
    store.take_over([event(number) for number in range(3)], f"{'a' * 16}/00000001", 90)
    forge(engine, usage_daily.update().values(cost_pico_usd=usage_daily.c.cost_pico_usd + by))
    findings = books.verify()
    assert not findings.tie_out
    assert findings.mismatches == [Mismatch(GROUP, "cost_pico_usd", 87 + by, 87)]


def test_an_event_that_was_changed_is_a_difference_of_its_day(books, store, engine):
    store.take_over([event(1)], f"{'a' * 16}/00000001", 90)
    forge(engine, usage_events.update().values(output_tokens=3))
    assert books.verify().mismatches == [Mismatch(GROUP, "output_tokens", 2, 3)]


def test_an_event_that_was_removed_is_a_difference_of_its_day(books, store, engine):
    store.take_over([event(1)], f"{'a' * 16}/00000001", 90)
    forge(engine, usage_events.delete())
    findings = books.verify()
    assert Mismatch(GROUP, "requests", 1, 0) in findings.mismatches
    assert findings.events == 0


def test_a_fraction_is_no_amount(tmp_path, books, store, engine):
    """SQLite keeps one in a column of integers, and rounds it away in a sum of them."""
    store.take_over([event(1)], f"{'a' * 16}/00000001", 90)
    if engine.dialect.name == "postgresql":
        # Postgres rounds it as it is written: 30 in the place of 29.
        forge(engine, text("UPDATE usage_daily SET cost_pico_usd = 29.5"))
        assert books.verify().mismatches == [Mismatch(GROUP, "cost_pico_usd", 30, 29)]
        return
    forge(engine, text("UPDATE usage_daily SET cost_pico_usd = 29.5"))
    assert [each.measure for each in books.verify().mismatches] == ["cost_pico_usd"]


@pytest.mark.parametrize("days", [-1, 1, 400])
def test_an_event_under_another_day_is_named(books, store, engine, days):
    store.take_over([event(number) for number in range(3)], f"{'a' * 16}/00000001", 90)
    wrong = date(2024, 10, 4) + timedelta(days=days)
    astray = event(1).event_id
    forge(engine, usage_events.update().where(usage_events.c.event_id == astray).values(day=wrong))
    findings = books.verify()
    assert findings.misdated == [Misdated(wrong, astray, date(2024, 10, 4))]
    assert not findings.tie_out


@pytest.mark.parametrize("at_ms", [20_000 * DAY_MS, 20_001 * DAY_MS - 1])
def test_the_first_and_the_last_instant_belong_to_their_day(books, store, at_ms):
    first, last = uuid7(at_ms, bytes(10)), uuid7(at_ms, b"\xff" * 10)
    events = [
        UsageEvent(**who(1, at_ms) | {"event_id": each}, status=200, outcome=Outcome.OK) for each in (first, last)
    ]
    store.take_over(events, f"{'a' * 16}/00000001", 90)
    findings = books.verify()
    assert (findings.events, findings.tie_out) == (2, True)


def test_the_language_of_the_database_moves_no_event(books, store, engine):
    """In Danish `aa` comes after `z`: an id of the next day would sort into this one, which ends at 019384aa-b400."""
    day_ms, next_day_ms = 20_058 * DAY_MS, 1_733_097_947_136
    late = event(1, next_day_ms)
    assert late.event_id.startswith("019384b0-0000")
    store.take_over([late], f"{'a' * 16}/00000001", 90)
    wrong = date(1970, 1, 1) + timedelta(days=day_ms // DAY_MS)
    statements = []
    if engine.dialect.name == "postgresql":
        on.listen(
            engine, "before_cursor_execute", lambda _connection, _cursor, statement, *_: statements.append(statement)
        )
        with reading(engine, "test", "languages") as connection:
            danish = connection.execute(text("SELECT 1 FROM pg_collation WHERE collname = 'da-x-icu'")).scalar()
        if danish:
            forge(engine, text('ALTER TABLE usage_events ALTER event_id TYPE varchar COLLATE "da-x-icu"'))
    forge(engine, usage_events.update().values(day=wrong))
    assert books.verify().misdated == [Misdated(wrong, late.event_id, wrong + timedelta(days=1))]
    # Not every server was built with languages; what is asked is asked of all of them.
    assert engine.dialect.name == "sqlite" or any('event_id COLLATE "C"' in each for each in statements)


def test_an_id_that_tells_no_day_has_that_of_its_time(books, store):
    plain = UsageEvent(**who(1, AT_MS) | {"event_id": "no-uuid"}, status=200, outcome=Outcome.OK)
    store.take_over([plain], f"{'a' * 16}/00000001", 90)
    assert books.verify().tie_out


@pytest.mark.parametrize(
    ("segment", "offset", "reason"),
    [("w/1", 8, "not the name"), (f"{'a' * 16}/00000001", -1, "negative"), ("", 0, "not the name")],
)
def test_an_offset_that_cannot_be_is_named(books, engine, segment, offset, reason):
    forge(engine, insert(spool_offsets).values(segment=segment, offset_bytes=offset))
    (astray,) = books.verify().astray
    assert (astray.segment, astray.offset_bytes) == (segment, offset)
    assert reason in astray.reason


def test_an_offset_of_another_machines_segment_is_left_alone(books, engine):
    forge(engine, insert(spool_offsets).values(segment=f"{'b' * 16}/00000007", offset_bytes=10**9))
    assert books.verify().tie_out


@pytest.fixture
def writer(tmp_path):
    writer = SpoolWriter(tmp_path / "spool")
    yield writer
    writer.close()


def test_what_waits_in_the_spool_is_told_and_no_fault(books, store, writer, tmp_path):
    writer.begin(dispatch(1))
    writer.end(event(1))
    (segment,) = writer.segments()
    store.take_over([event(1)], segment.name, segment.size_bytes)
    assert books.verify().spool == SpoolState(1, 0, 0, 0, ())
    before = segment.size_bytes
    writer.begin(dispatch(2))
    # A begin alone is nothing to be taken over.
    assert books.verify().spool == SpoolState(1, 0, 0, 1, ())
    writer.end(event(2))
    assert books.verify().spool == SpoolState(1, writer.segments()[0].size_bytes - before, 1, 0, ())
    assert books.verify().tie_out


def test_a_request_whose_event_has_come_and_gone_is_not_open(books, store, writer):
    """Its begin stands in a segment that is kept for another; its end was taken over and deleted."""
    writer.begin(dispatch(1))
    store.take_over([event(1)], writer.segments()[0].name, 8)
    assert books.verify().spool.open_requests == 0


def test_offsets_are_held_to_the_segments_that_are_here(books, engine, writer):
    writer.end(event(1))
    writer.end(event(2))
    (segment,) = writer.segments()
    forge(engine, insert(spool_offsets).values(segment=segment.name, offset_bytes=segment.size_bytes + 1))
    (astray,) = books.verify().astray
    assert astray == OffsetAstray(segment.name, segment.size_bytes + 1, f"the segment has {segment.size_bytes} bytes")
    forge(engine, spool_offsets.update().values(offset_bytes=segment.size_bytes - 1))
    (astray,) = books.verify().astray
    assert "within the record" in astray.reason


def test_damage_is_named(books, writer, tmp_path):
    writer.end(event(1))
    whole = writer.used_bytes
    writer.end(event(2))
    writer.end(event(3))
    (segment,) = writer.segments()
    content = bytearray(segment.path.read_bytes())
    content[whole + 20] ^= 0x55
    segment.path.write_bytes(content)
    findings = books.verify()
    assert findings.spool.damaged == (segment.name,)
    assert not findings.tie_out
    segment.path.write_bytes(bytes(content[:whole]))
    (tmp_path / "spool" / "damaged").mkdir()
    (tmp_path / "spool" / "damaged" / "kept.spool").touch()
    assert books.verify().spool.damaged == ("kept.spool",)


async def test_looking_keeps_nobody_from_recovering(books, store, tmp_path, engine):
    dead = SpoolWriter(tmp_path / "spool")
    dead.begin(dispatch(1))
    dead.close()
    assert books.verify().spool.open_requests == 1
    ledger = SpoolLedger(tmp_path / "spool", store, PriceBook([]), Telemetry(), SetClock())
    look = partial(look_at_spool, tmp_path / "spool")
    assert look({}).state.writers == 2
    assert await ledger.recover() == 1
    await ledger.close()
    assert books.verify().spool == IDLE


def test_totals_are_made_anew_from_the_events_and_that_is_audited(books, store, engine):
    events = [event(number, AT_MS + DAY_MS * (number % 3), cost_pico_usd=number) for number in range(30)]
    events += [event(40, outcome=Outcome.CACHED, saved_pico_usd=7), event(41, estimated=True, cost_pico_usd=2**56)]
    store.take_over(events, f"{'a' * 16}/00000001", 90)
    true, kept = rows_of(engine, usage_daily), rows_of(engine, usage_events)
    forge(engine, usage_daily.update().values(cost_pico_usd=1))
    forge(engine, usage_daily.delete().where(usage_daily.c.day == date(2024, 10, 5)))
    forge(engine, insert(usage_daily), [true[0] | {"team": "nobody"}])
    assert not books.verify().tie_out
    assert books.rebuild() == len(true) == 3
    assert books.verify().tie_out
    assert rows_of(engine, usage_daily) == true
    assert rows_of(engine, usage_events) == kept
    (entry,) = rows_of(engine, audit_log)
    assert (entry["actor"], entry["action"], entry["subject"]) == ("cli:ada", "ledger.rebuild", "usage_daily")
    assert json.loads(entry["details"]) == {"rows": 3, "differed": 4}


def test_a_rebuild_that_cannot_be_audited_does_not_happen(books, store, engine):
    store.take_over([event(1)], f"{'a' * 16}/00000001", 90)
    forge(engine, usage_daily.update().values(cost_pico_usd=1))
    forge(engine, text("DROP TABLE audit_log"))
    with pytest.raises(Exception, match="ledger"):
        books.rebuild()
    assert [row["cost_pico_usd"] for row in rows_of(engine, usage_daily)] == [1]


def test_totals_beyond_64_bits_are_exact(books, store, engine):
    """On SQLite too, whose own sum would end at nine million dollars."""
    most = 1 << 56
    events = [event(number, AT_MS + DAY_MS * (number % 9), cost_pico_usd=most) for number in range(300)]
    store.take_over(events, f"{'a' * 16}/00000001", 90)
    (total,) = SqlUsageReports(engine).usage([])
    assert total.cost_pico_usd == 300 * most > 1 << 63
    findings = books.verify()
    assert (findings.cost_pico_usd, findings.tie_out) == (300 * most, True)
