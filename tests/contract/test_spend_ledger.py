"""What the ledger says was spent, as budgets ask for it."""

import random

import pytest
from sqlalchemy import event as sql_event
from sqlalchemy import text

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.spend import SqlSpendLedger
from proxy.core.budget import MINUTE_MS, Period, minute_of, nano_usd, span_of
from proxy.core.errors import StoreAway
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.usage import Usage

DAY_MS = 86_400_000
NOON_MS = 20_775 * DAY_MS + DAY_MS // 2
"""2026-11-18, 12:00 UTC."""
KEYS = {"growth": ("kgrowth00001", "kgrowth00002"), "research": ("kresearch001",)}


def event(number, at_ms=NOON_MS, team="growth", key_id="kgrowth00001", cost_pico_usd=1_000):
    return UsageEvent(
        event_id=uuid7(at_ms, number.to_bytes(10, "big")),
        at_ms=at_ms,
        request_id=f"req_{number}",
        team=team,
        key_id=key_id,
        endpoint="chat",
        model="m",
        upstream="openai",
        status=200,
        outcome=Outcome.OK,
        usage=Usage(input_tokens=5, output_tokens=2),
        cost_pico_usd=cost_pico_usd,
    )


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def ledger(engine):
    return SqlSpendLedger(engine)


def keep(engine, *events):
    SqlLedgerStore(engine).take_over(events, "w/1", 1)


def expected(events, team, scope, span, boundary):
    """The same by hand."""
    mine = [
        each
        for each in events
        if each.team == team
        and scope in ("team", f"key:{each.key_id}")
        and each.at_ms >= span.start_ms
        and (span.end_ms is None or each.at_ms < span.end_ms)
    ]
    minutes = {}
    for each in mine:
        if minute_of(each.at_ms) >= boundary:
            minutes[minute_of(each.at_ms)] = minutes.get(minute_of(each.at_ms), 0) + each.cost_pico_usd
    base = sum(each.cost_pico_usd for each in mine if minute_of(each.at_ms) < boundary)
    return nano_usd(base), {minute: nano_usd(cost) for minute, cost in minutes.items() if cost}


def test_nothing_was_spent_where_there_are_no_events(ledger):
    spent = ledger.read("growth", "team", span_of(Period.TOTAL, NOON_MS), 7)
    assert (spent.base_nano_usd, spent.boundary, spent.minutes) == (0, 7, {})


def test_the_boundary_parts_the_base_from_the_minutes(engine, ledger):
    boundary = minute_of(NOON_MS)
    keep(
        engine,
        event(1, NOON_MS - 1, cost_pico_usd=2_000),
        event(2, NOON_MS, cost_pico_usd=3_000),
        event(3, NOON_MS + MINUTE_MS - 1, cost_pico_usd=4_000),
        event(4, NOON_MS + MINUTE_MS, cost_pico_usd=5_000),
    )
    spent = ledger.read("growth", "team", span_of(Period.DAY, NOON_MS), boundary)
    assert spent.base_nano_usd == 2
    assert spent.minutes == {boundary: 7, boundary + 1: 5}


def test_each_sum_is_rounded_up_once(engine, ledger):
    keep(engine, *(event(number, NOON_MS + number % 2 * MINUTE_MS, cost_pico_usd=1) for number in range(6)))
    spent = ledger.read("growth", "team", span_of(Period.DAY, NOON_MS), minute_of(NOON_MS) + 1)
    assert (spent.base_nano_usd, spent.minutes) == (1, {minute_of(NOON_MS) + 1: 1})


def test_a_span_ends_where_the_next_begins(engine, ledger):
    midnight_ms = span_of(Period.DAY, NOON_MS).end_ms
    keep(engine, event(1, midnight_ms - 1, cost_pico_usd=2_000), event(2, midnight_ms, cost_pico_usd=3_000))
    today, tomorrow = span_of(Period.DAY, NOON_MS), span_of(Period.DAY, midnight_ms)
    boundary = minute_of(midnight_ms) - 5
    assert ledger.read("growth", "team", today, boundary).minutes == {minute_of(midnight_ms) - 1: 2}
    assert ledger.read("growth", "team", tomorrow, boundary).minutes == {minute_of(midnight_ms): 3}
    later = boundary + 60
    assert [ledger.read("growth", "team", span, later).base_nano_usd for span in (today, tomorrow)] == [2, 3]


def test_a_sum_of_days_beyond_64_bits_is_exact(engine, ledger):
    most = 1 << 56
    days = range(4)
    keep(engine, *(event(number, NOON_MS - number % 4 * DAY_MS, cost_pico_usd=most) for number in range(400)))
    spent = ledger.read("growth", "team", span_of(Period.MONTH, NOON_MS), minute_of(NOON_MS))
    assert spent.minutes == {minute_of(NOON_MS): nano_usd(100 * most)}
    assert spent.base_nano_usd == nano_usd((len(days) - 1) * 100 * most)


def test_whatever_was_spent_by_whom_and_when_is_found_as_by_hand(engine, ledger):
    dice = random.Random(5)
    events = [
        event(
            number,
            NOON_MS + dice.randrange(-40 * DAY_MS, 40 * DAY_MS) // dice.choice([1, 1_000, 10_000]),
            team := dice.choice(sorted(KEYS)),
            dice.choice(KEYS[team]),
            dice.randrange(5_000_000),
        )
        for number in range(600)
    ]
    keep(engine, *events)
    scopes = [(team, scope) for team, kids in KEYS.items() for scope in ("team", *(f"key:{kid}" for kid in kids))]
    for _ in range(60):
        team, scope = dice.choice(scopes)
        span = span_of(dice.choice(list(Period)), NOON_MS + dice.randrange(-DAY_MS, DAY_MS))
        boundary = minute_of(NOON_MS + dice.randrange(-DAY_MS, DAY_MS) // dice.choice([1, 60, 1_440]))
        spent = ledger.read(team, scope, span, boundary)
        assert (spent.base_nano_usd, dict(spent.minutes)) == expected(events, team, scope, span, boundary)


@pytest.mark.parametrize("scope", ["team", "key:kgrowth00001"])
@pytest.mark.parametrize("period", list(Period))
def test_both_statements_find_their_rows_by_an_index(engine, ledger, scope, period):
    teams = [f"team-{number}" for number in range(1_000)]
    keep(engine, *(event(n, NOON_MS + n, teams[n % 1_000], f"k{n % 1_000:011}") for n in range(2_000)), event(9_999))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("ANALYZE usage_events, usage_daily"))
    asked = []
    sql_event.listen(engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    ledger.read("growth", scope, span_of(period, NOON_MS), minute_of(NOON_MS))
    statements = [(statement, given) for statement, given in asked if "usage_" in statement and "max(" not in statement]
    assert len(statements) == 2
    explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
    with engine.connect() as connection:
        for statement, given in statements:
            plan = "\n".join(str(row) for row in connection.exec_driver_sql(explain + statement, given))
            index = "ix_usage_daily_" if "usage_daily" in statement else "ix_usage_events_day_team_at_ms"
            assert index in plan, plan


async def test_a_database_that_is_away_is_said_to_be(tmp_path):
    engine = open_engine(tmp_path / "nothing.db")
    with pytest.raises(StoreAway) as caught:
        await SqlSpendLedger(engine).spent("growth", "team", span_of(Period.DAY, NOON_MS), 0)
    assert (caught.value.store, caught.value.operation) == ("ledger", "spent")
    engine.dispose()
