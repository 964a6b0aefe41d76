import asyncio
import contextlib
import random
from collections import Counter

import pytest
from msgspec import structs
from sqlalchemy import func, select

from proxy.adapters.ledger import SpoolLedger, interrupted
from proxy.adapters.spool import SpoolWriter, read_slice
from proxy.adapters.sql.engine import open_engine, reading, writing
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.tables import spool_offsets, usage_daily, usage_events
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.errors import Overloaded, StoreAway
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.pricing import PriceBook, ServiceTier
from proxy.core.registry import Axis, Mismatch
from proxy.core.usage import Usage

DAY_MS = 86_400_000
AT_MS = 20_000 * DAY_MS + 5_000  # 2024-10-04
PRICES = PriceBook.from_mapping(
    {"as_of": "2024-01-01", "models": {"m": {"prices": {"default": {"input": 3, "output": 7}}}}}
)


class SetClock:
    def __init__(self):
        self.ms = AT_MS

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


class CountingTelemetry:
    """Keeps the counts and has no registry to show them in."""

    def __init__(self):
        self.failures = Counter()

    def started(self):
        pass

    def finished(self, record):
        pass

    def retried(self, upstream, reason):
        pass

    def upstream_failed(self, upstream, kind):
        pass

    def store_failed(self, store, operation):
        self.failures[store, operation] += 1


def event_id(number, at_ms=AT_MS):
    return uuid7(at_ms, number.to_bytes(10, "big"))


def dispatch(number, at_ms=AT_MS, **fields):
    values = {
        "event_id": event_id(number, at_ms),
        "at_ms": at_ms,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "m",
        "upstream": "openai",
        "reserved_input_tokens": 10,
        "reserved_output_tokens": 20,
        "price_id": "m@2024-01-01",
    }
    return Dispatch(**values | fields)


def event(number, at_ms=AT_MS, **fields):
    values = {
        "event_id": event_id(number, at_ms),
        "at_ms": at_ms,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "m",
        "upstream": "openai",
        "status": 200,
        "outcome": Outcome.OK,
        "usage": Usage(input_tokens=5, output_tokens=2),
        "cost_pico_usd": 29,
        "price_id": "m@2024-01-01",
        "duration_ms": 12,
    }
    return UsageEvent(**values | fields)


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def telemetry():
    return CountingTelemetry()


@pytest.fixture
def clock():
    return SetClock()


@pytest.fixture
def make_ledger(tmp_path, engine, telemetry, clock):
    def make(**settings):
        return SpoolLedger(tmp_path / "spool", SqlLedgerStore(engine), PRICES, telemetry, clock, **settings)

    return make


@pytest.fixture
def reports(engine):
    return SqlUsageReports(engine)


def rows_of(engine, table=usage_events):
    with reading(engine, "test", "rows") as connection:
        return connection.execute(select(table).order_by(*table.primary_key)).mappings().all()


async def eventually(holds):
    """Wait for another thread to have done its work; the test fails when it never does."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(holds):  # noqa: ASYNC110 - it is a database that is watched
            await asyncio.sleep(0.02)


@contextlib.contextmanager
def database_away(engine):
    """The database answers every statement of the ledger with an error, as one that was lost does."""
    with writing(engine, "test", "away") as connection:
        connection.exec_driver_sql("ALTER TABLE spool_offsets RENAME TO lost")
    yield
    with writing(engine, "test", "back") as connection:
        connection.exec_driver_sql("ALTER TABLE lost RENAME TO spool_offsets")


async def test_an_event_arrives_whole(make_ledger, engine):
    ledger = make_ledger()
    ledger.begin(dispatch(1))
    full = event(1, usage=Usage(1, 2, 3, 4, 5, 6, 7), saved_pico_usd=9, estimated=True, attempts=3, status=499)
    ledger.end(full)
    assert await ledger.ship_once() == 1
    [row] = rows_of(engine)
    expected = structs.asdict(full)
    expected |= structs.asdict(expected.pop("usage"))
    assert {name: row[name] for name in expected} == expected
    assert row["day"].isoformat() == "2024-10-04"
    await ledger.close()


async def test_a_cache_hit_needs_no_begin(make_ledger, engine, reports):
    ledger = make_ledger()
    ledger.end(event(1, outcome=Outcome.CACHED, cost_pico_usd=0, saved_pico_usd=29, attempts=0, upstream=""))
    await ledger.close()
    [row] = reports.usage([])
    assert (row.requests, row.cached, row.cost_pico_usd, row.saved_pico_usd) == (1, 1, 0, 29)


async def test_only_what_has_ended_arrives(make_ledger, engine):
    ledger = make_ledger()
    ledger.begin(dispatch(1))
    ledger.begin(dispatch(2))
    ledger.end(event(2))
    assert await ledger.ship_once() == 1
    assert await ledger.ship_once() == 0
    ledger.end(event(1))
    assert await ledger.ship_once() == 1
    assert [row["event_id"] for row in rows_of(engine)] == [event_id(1), event_id(2)]
    await ledger.close()


async def test_taking_a_batch_over_again_changes_nothing(engine, reports):
    store = SqlLedgerStore(engine)
    batch = [event(number) for number in range(10)]
    assert store.take_over(batch, "w/1", 100) == 10
    before = rows_of(engine), rows_of(engine, usage_daily)
    assert store.take_over(batch, "w/1", 100) == 0
    assert store.take_over([*batch[5:], event(10), event(10)], "w/1", 150) == 1
    assert reports.usage([])[0].requests == 11
    assert store.offset("w/1") == 150
    assert (store.take_over(batch, "w/2", 100), rows_of(engine)[:10]) == (0, before[0])
    assert reports.verify() == []


async def test_of_a_batch_of_several_days_only_what_is_new_is_added(engine, reports):
    store = SqlLedgerStore(engine)
    batch = [event(number, at_ms=AT_MS + number % 3 * DAY_MS, team=f"team-{number % 2}") for number in range(30)]
    known, rest = batch[::4], [each for each in batch if each not in batch[::4]]
    assert store.take_over(known, "w/1", 1) == len(known)
    assert store.take_over(batch, "w/1", 2) == len(rest)
    assert store.take_over(batch[::-1], "w/1", 3) == 0
    assert {row["event_id"] for row in rows_of(engine)} == {each.event_id for each in batch}
    assert [row.requests for row in reports.usage([Axis.DAY, Axis.TEAM])] == [5] * 6
    assert reports.verify() == []


async def test_a_segment_of_many_batches_arrives_whole(make_ledger, engine, reports):
    ledger = make_ledger()
    count = 1_700  # a slice holds some hundreds of them, a batch a thousand
    for number in range(count):
        ledger.begin(dispatch(number))
        ledger.end(event(number, cost_pico_usd=number))
    assert await ledger.ship_once() == count
    [row] = reports.usage([])
    assert (row.requests, row.cost_pico_usd) == (count, sum(range(count)))
    assert SqlLedgerStore(engine).offset(ledger._writer.segments()[0].name) == ledger._writer.used_bytes
    assert await ledger.ship_once() == 0
    await ledger.close()
    assert reports.verify() == []


async def test_the_first_account_of_a_request_stands(engine):
    store = SqlLedgerStore(engine)
    first, second = event(1, cost_pico_usd=1), event(1, cost_pico_usd=2, at_ms=AT_MS + DAY_MS)
    second = structs.replace(second, event_id=first.event_id)
    assert store.take_over([first, second], "w/1", 1) == 1
    assert store.take_over([second], "w/1", 2) == 0
    assert [row["cost_pico_usd"] for row in rows_of(engine)] == [1]


async def test_a_batch_is_all_or_nothing(engine, reports):
    store = SqlLedgerStore(engine)
    store.take_over([event(0)], "w/1", 1)
    with database_away(engine), pytest.raises(StoreAway):
        store.take_over([event(1)], "w/1", 2)
    assert reports.usage([])[0].requests == 1
    assert len(rows_of(engine)) == 1
    assert store.offset("w/1") == 1


async def test_a_request_whose_worker_died_is_charged_as_reserved(make_ledger, engine, tmp_path, telemetry):
    dead = SpoolWriter(tmp_path / "spool")
    dead.begin(dispatch(1))
    dead.begin(dispatch(2))
    dead.end(event(2))
    dead.begin(dispatch(3, price_id=None, model="unpriced"))
    dead.close()
    ledger = make_ledger()
    assert await ledger.recover() == 2
    assert await ledger.recover() == 0
    first, second, third = rows_of(engine)
    assert (first["outcome"], first["estimated"], first["status"]) == ("interrupted", True, 0)
    assert (first["input_tokens"], first["output_tokens"], first["cost_pico_usd"]) == (10, 20, 10 * 3 + 20 * 7)
    assert (second["outcome"], second["estimated"]) == ("ok", False)
    assert (third["outcome"], third["cost_pico_usd"], third["price_id"]) == ("interrupted", 0, None)
    assert not dead.directory.exists()
    assert rows_of(engine, spool_offsets) == []
    assert not telemetry.failures
    assert (ledger.state().recovered, ledger.state().taken_over) == (2, 3)
    await ledger.close()


async def test_a_living_writer_is_left_alone(make_ledger, engine, tmp_path):
    one, other = make_ledger(), make_ledger()
    one.begin(dispatch(1))
    assert await other.recover() == 0
    one.end(event(1))
    await one.close()
    await other.close()
    assert [row["outcome"] for row in rows_of(engine)] == ["ok"]
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_was_taken_over_before_the_crash_is_not_counted_twice(make_ledger, engine, tmp_path, reports):
    dead = SpoolWriter(tmp_path / "spool")
    for number in range(5):
        dead.begin(dispatch(number))
        dead.end(event(number))
    store = SqlLedgerStore(engine)
    store.take_over([event(number) for number in range(3)], dead.segments()[0].name, dead.used_bytes // 2)
    dead.close()
    ledger = make_ledger()
    assert await ledger.recover() == 0
    assert reports.usage([])[0].requests == 5
    assert reports.verify() == []
    await ledger.close()


async def test_an_offset_spares_the_segment_a_second_reading_and_not_its_open_requests(make_ledger, engine, tmp_path):
    dead = SpoolWriter(tmp_path / "spool")
    dead.begin(dispatch(1))
    dead.begin(dispatch(2))
    dead.end(event(2))
    SqlLedgerStore(engine).take_over([event(2)], dead.segments()[0].name, dead.used_bytes)
    dead.close()
    ledger = make_ledger()
    assert await ledger.recover() == 1
    assert [row["outcome"] for row in rows_of(engine)] == ["interrupted", "ok"]
    await ledger.close()


async def test_while_the_database_is_away_events_wait_and_then_arrive(make_ledger, engine, tmp_path, reports, clock):
    ledger = make_ledger()
    with database_away(engine):
        for number in range(20):
            ledger.begin(dispatch(number))
            ledger.end(event(number))
        clock.ms += 3_000
        with pytest.raises(StoreAway):
            await ledger.ship_once()
        clock.ms += 1_000
        assert ledger.state().lag_ms == 4_000
        assert ledger.state().taken_over == 0
    assert await ledger.ship_once() == 20
    assert ledger.state().lag_ms == 0
    assert reports.verify() == []
    await ledger.close()


async def test_what_is_on_its_way_is_not_there_yet(make_ledger, engine, clock):
    ledger = make_ledger()
    ledger.end(event(1))
    clock.ms += 3_000
    with writing(engine, "ledger", "test"):
        shipping = asyncio.get_running_loop().create_task(ledger.ship_once())
        await asyncio.sleep(0)
        clock.ms += 1_000
        ledger.end(event(2))
        assert ledger.state().lag_ms == 4_000
    await shipping
    clock.ms += 500
    assert ledger.state().lag_ms == 500
    await ledger.ship_once()
    assert ledger.state().lag_ms == 0
    await ledger.close()


async def test_what_cannot_be_brought_at_close_is_there_at_the_next_start(make_ledger, engine, telemetry, reports):
    ledger = make_ledger()
    ledger.begin(dispatch(1))
    ledger.end(event(1))
    with database_away(engine):
        await ledger.close()
        assert telemetry.failures == {("ledger", "close"): 1}
        after = make_ledger()
        with pytest.raises(StoreAway):
            await after.recover()
        assert after.state().spool_bytes > after._writer.used_bytes
    assert await after.recover() == 0
    assert after.state().spool_bytes == after._writer.used_bytes
    assert reports.usage([])[0].requests == 1
    await after.close()


async def test_at_the_quota_nothing_is_dispatched_until_the_database_is_back(make_ledger, engine):
    ledger = make_ledger(segment_bytes=1_000, quota_bytes=4_000)
    number = 0
    with database_away(engine):
        while number < 1_000:
            try:
                ledger.begin(dispatch(number))
            except Overloaded:
                break
            ledger.end(event(number))
            number += 1
        assert 0 < number < 1_000
        with pytest.raises(StoreAway):
            await ledger.ship_once()
        with pytest.raises(Overloaded):
            ledger.begin(dispatch(number))
    assert await ledger.ship_once() == number
    ledger.begin(dispatch(number))
    await ledger.close()
    assert len(rows_of(engine)) == number + 1


async def test_a_segment_is_kept_for_as_long_as_a_request_of_it_is_open(make_ledger):
    ledger = make_ledger(segment_bytes=500)
    ledger.begin(dispatch(0))
    for number in range(1, 20):
        ledger.begin(dispatch(number))
        ledger.end(event(number))
    await ledger.ship_once()
    directory = ledger._writer.directory
    kept = sorted(path.name for path in directory.glob("*.spool"))
    assert kept[0] == "00000001.spool"
    assert len(kept) == 2
    ledger.end(event(0))
    await ledger.ship_once()
    assert "00000001.spool" not in {path.name for path in directory.glob("*.spool")}
    await ledger.close()


async def test_a_damaged_segment_is_kept_aside_and_its_requests_are_charged(make_ledger, engine, tmp_path, telemetry):
    dead = SpoolWriter(tmp_path / "spool")
    dead.begin(dispatch(1))
    damage_at = dead.used_bytes + 20
    dead.end(event(1))
    dead.end(event(2))
    dead.close()
    [segment] = dead.segments()
    content = bytearray(segment.path.read_bytes())
    content[damage_at] ^= 0x55
    segment.path.write_bytes(content)
    ledger = make_ledger()
    assert await ledger.recover() == 1
    assert telemetry.failures == {("spool", "read"): 1}
    [kept] = (tmp_path / "spool" / "damaged").iterdir()
    assert kept.read_bytes() == content
    assert await ledger.recover() == 0
    await ledger.close()


async def test_an_event_without_a_form_is_counted_and_its_request_charged(make_ledger, engine, telemetry):
    ledger = make_ledger()
    ledger.begin(dispatch(1))
    ledger.end(event(1, usage=Usage(input_tokens=10**30)))
    assert telemetry.failures == {("spool", "end"): 1}
    await ledger.close()
    assert [row["outcome"] for row in rows_of(engine)] == ["interrupted"]


async def test_no_event_is_refused_for_what_it_claims(make_ledger, engine, reports):
    ledger = make_ledger()
    ledger.end(event(1, usage=Usage(2**62, 2**62), cost_pico_usd=2**62, duration_ms=2**62, status=2**40))
    ledger.end(event(2, model="m\x00l"))
    ledger.end(event(3, usage=Usage(-(2**62), -(2**62)), cost_pico_usd=-(2**62), attempts=-(2**40), status=-(2**40)))
    await ledger.close()
    rows = rows_of(engine)
    assert len(rows) == 3
    assert rows[1]["model"] == "m\N{REPLACEMENT CHARACTER}l"
    assert reports.verify() == []


async def test_a_batch_of_absurd_claims_holds_up_nothing(make_ledger, engine):
    """More than a sum of 64 bits can hold, at once and together with what is there."""
    ledger = make_ledger()
    for number in range(600):
        ledger.end(event(number, usage=Usage(2**62, 2**62), cost_pico_usd=2**62))
        if number in {199, 399}:
            assert await ledger.ship_once() == 200
    ledger.end(event(600))
    assert await ledger.ship_once() == 201
    assert len(rows_of(engine)) == 601
    await ledger.close()


async def test_no_event_is_refused_for_how_long_its_names_are(make_ledger, engine, reports):
    """An index of Postgres takes rows of 2,700 bytes, which four-byte characters reach soon."""
    rng = random.Random(3)
    longest = "".join(chr(rng.randrange(0x1F300, 0x1FAFF)) for _ in range(7_000))
    ledger = make_ledger()
    ledger.end(event(1, model=longest, endpoint=longest, upstream="u" * 200))
    ledger.end(event(2, model=longest, endpoint=longest, upstream="u" * 200))
    assert await ledger.ship_once() == 2
    [row] = reports.usage([Axis.MODEL])
    assert (row.group, row.requests) == ((longest[:256],), 2)
    assert reports.verify() == []
    await ledger.close()


@pytest.mark.parametrize(("at_ms", "day"), [(0, "1970-01-01"), (2**48 - 1, "9999-12-31")])
async def test_no_event_is_refused_for_what_the_clock_said(make_ledger, engine, reports, at_ms, day):
    ledger = make_ledger()
    ledger.begin(dispatch(1, at_ms=at_ms))
    ledger.end(event(1, at_ms=at_ms))
    assert await ledger.ship_once() == 1
    assert [str(row["day"]) for row in rows_of(engine)] == [day]
    assert reports.verify() == []
    await ledger.close()


async def test_closed_means_closed(make_ledger, engine):
    ledger = make_ledger()
    ledger.begin(dispatch(1))
    await ledger.close()
    with pytest.raises(Overloaded):
        ledger.begin(dispatch(2))
    assert [row["outcome"] for row in rows_of(engine)] == ["interrupted"]


async def test_running_brings_events_over_by_itself(make_ledger, engine, tmp_path):
    dead = SpoolWriter(tmp_path / "spool")
    dead.begin(dispatch(1))
    dead.close()
    ledger = make_ledger()
    running = asyncio.get_running_loop().create_task(ledger.run())
    ledger.begin(dispatch(2))
    ledger.end(event(2))
    await eventually(lambda: len(rows_of(engine)) == 2 and not dead.directory.exists())
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    ledger.end(event(3))
    await ledger.close()
    assert [row["outcome"] for row in rows_of(engine)] == ["interrupted", "ok", "ok"]


async def test_a_writer_that_dies_later_is_recovered_while_running(make_ledger, engine, tmp_path):
    dying = SpoolWriter(tmp_path / "spool")
    dying.begin(dispatch(1))
    ledger = make_ledger(recover_seconds=0.01)
    looks = ledger.recover
    looked = []

    async def recover():
        looked.append(await looks())

    ledger.recover = recover
    running = asyncio.get_running_loop().create_task(ledger.run())
    await eventually(lambda: len(looked) >= 2)
    assert rows_of(engine) == []
    dying.close()
    await eventually(lambda: rows_of(engine))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await ledger.close()
    assert [row["outcome"] for row in rows_of(engine)] == ["interrupted"]
    assert not dying.directory.exists()


async def test_running_goes_on_when_the_database_comes_back(make_ledger, engine, telemetry):
    ledger = make_ledger()
    with database_away(engine):
        running = asyncio.get_running_loop().create_task(ledger.run())
        ledger.begin(dispatch(1))
        ledger.end(event(1))
        await eventually(lambda: telemetry.failures["ledger", "ship"])
    await eventually(lambda: rows_of(engine))
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await ledger.close()


async def test_reports_add_up_along_every_axis(make_ledger, engine, reports):
    ledger = make_ledger()
    rng = random.Random(7)
    events = [
        event(
            number,
            at_ms=AT_MS + rng.randrange(3) * DAY_MS,
            team=rng.choice(["growth", "search"]),
            model=rng.choice(["m", "n"]),
            key_id=rng.choice(["a" * 12, "b" * 12]),
            upstream=rng.choice(["openai", "azure"]),
            estimated=rng.random() < 0.5,
            cost_pico_usd=rng.randrange(10**9),
            usage=Usage(*(rng.randrange(1_000) for _ in range(7))),
        )
        for number in range(300)
    ]
    for each in events:
        ledger.end(each)
    await ledger.close()
    fields = {Axis.TEAM: "team", Axis.MODEL: "model", Axis.KEY: "key_id", Axis.UPSTREAM: "upstream"}
    for axis, field in fields.items():
        for row in reports.usage([axis]):
            own = [each for each in events if getattr(each, field) == row.group[0]]
            assert row.requests == len(own)
            assert row.cost_pico_usd == sum(each.cost_pico_usd for each in own)
            assert row.estimated == sum(each.estimated for each in own)
            assert row.usage == Usage(*(sum(getattr(e.usage, kind) for e in own) for kind in Usage.__struct_fields__))
    both = reports.usage([Axis.DAY, Axis.TEAM])
    assert [row.group for row in both] == sorted(
        (f"2024-10-0{day}", team) for day in (4, 5, 6) for team in ("growth", "search")
    )
    assert sum(row.requests for row in both) == 300
    [one_team] = reports.usage([], team="search")
    assert one_team.requests == sum(each.team == "search" for each in events)
    days = reports.usage([Axis.DAY], since_ms=AT_MS + DAY_MS, until_ms=20_002 * DAY_MS)
    assert [row.group for row in days] == [("2024-10-05",)]
    assert reports.usage([], team="nobody")[0].requests == 0
    assert reports.usage([Axis.TEAM], team="nobody") == []


async def test_verify_finds_what_does_not_tie_out(make_ledger, engine, reports):
    ledger = make_ledger()
    ledger.end(event(1))
    await ledger.close()
    assert reports.verify() == []
    group = ("2024-10-04", "growth", "k" * 12, "m", "openai", "chat")
    with writing(engine, "test", "forge") as connection:
        connection.execute(usage_daily.update().values(cost_pico_usd=usage_daily.c.cost_pico_usd + 1))
    assert reports.verify() == [Mismatch(group, "cost_pico_usd", 30, 29)]
    with writing(engine, "test", "forge") as connection:
        connection.execute(usage_daily.delete())
    assert Mismatch(group, "requests", 0, 1) in reports.verify()


def test_an_interrupted_request_keeps_who_and_what_it_was():
    begun = dispatch(1)
    made = interrupted(begun, PRICES)
    shared = set(Dispatch.__struct_fields__) & set(UsageEvent.__struct_fields__)
    assert {name: getattr(made, name) for name in shared} == {name: getattr(begun, name) for name in shared}
    assert {"event_id", "at_ms", "team", "key_id", "price_id"} <= shared


async def test_an_interrupted_request_is_priced_at_the_tier_it_asked_for(make_ledger, engine, tmp_path):
    sheets = {"default": {"input": 3, "output": 7}, "priority": {"input": 30, "output": 70}}
    prices = PriceBook.from_mapping({"as_of": "2024-01-01", "models": {"m": {"prices": sheets}}})
    assert interrupted(dispatch(1), prices).cost_pico_usd == 10 * 3 + 20 * 7
    writer = SpoolWriter(tmp_path / "spool")
    writer.begin(dispatch(1, service_tier=ServiceTier.PRIORITY))
    (begun,) = read_slice(*writer.segments(), 0).begins
    writer.close()
    assert interrupted(begun, prices).cost_pico_usd == 10 * 30 + 20 * 70


def test_an_interrupted_request_whose_price_row_is_gone_is_priced_by_what_holds():
    sheets = {"default": {"input": 3, "output": 7}}
    prices = PriceBook.from_mapping({"as_of": "2025-01-01", "models": {"m": {"prices": sheets}}})
    made = interrupted(dispatch(1), prices)
    assert (made.price_id, made.cost_pico_usd) == ("m@2025-01-01", 10 * 3 + 20 * 7)
    unpriced = interrupted(dispatch(1, price_id=None), prices)
    assert (unpriced.price_id, unpriced.cost_pico_usd) == (None, 0)


async def test_an_event_belongs_to_the_day_its_id_was_made_in(make_ledger, engine):
    ledger = make_ledger()
    before_midnight = 20_001 * DAY_MS - 1
    ledger.begin(dispatch(1, at_ms=before_midnight))
    late = structs.replace(event(1, at_ms=before_midnight), at_ms=before_midnight + 5_000)
    ledger.end(late)
    await ledger.close()
    with reading(engine, "test", "days") as connection:
        days = connection.execute(select(usage_events.c.day, func.count()).group_by(usage_events.c.day)).all()
    assert [(day.isoformat(), count) for day, count in days] == [("2024-10-04", 1)]
