"""What answers from the cache saved is counted, and is no part of what was used."""

import random
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from msgspec import structs
from sqlalchemy import select, text

from proxy.adapters.sql import migrations
from proxy.adapters.sql.engine import open_engine, writing
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.tables import usage_daily
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.registry import Axis, Mismatch
from proxy.core.usage import Usage

AT_MS = 20_000 * 86_400_000 + 5_000
KINDS = Usage.__struct_fields__


def event(number, outcome=Outcome.OK, **fields):
    cached = outcome is Outcome.CACHED
    values = {
        "event_id": uuid7(AT_MS, number.to_bytes(10, "big")),
        "at_ms": AT_MS,
        "request_id": f"req_{number}",
        "team": "growth",
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "m",
        "upstream": "" if cached else "openai",
        "status": 200,
        "outcome": outcome,
        "usage": Usage(input_tokens=5, output_tokens=2),
        "cost_pico_usd": 0 if cached else 29,
        "saved_pico_usd": 29 if cached else 0,
        "attempts": 0 if cached else 1,
    }
    return UsageEvent(**values | fields)


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def reports(engine):
    return SqlUsageReports(engine)


def told(row):
    return (row.requests, row.cached, row.usage.total_tokens, row.saved_input_tokens, row.saved_output_tokens)


def test_tokens_of_a_hit_are_saved_and_not_used(engine, reports):
    events = [event(1), event(2, Outcome.CACHED), event(3, Outcome.CACHED)]
    assert SqlLedgerStore(engine).take_over(events, "w/1", 1) == 3
    (row,) = reports.usage([])
    assert told(row) == (3, 2, 7, 10, 4)
    assert (row.cost_pico_usd, row.saved_pico_usd) == (29, 58)
    assert {row.group: told(row) for row in reports.usage([Axis.UPSTREAM])} == {
        ("",): (2, 2, 0, 10, 4),
        ("openai",): (1, 0, 7, 0, 0),
    }
    assert reports.verify() == []


def test_the_books_of_many_events_tie_out(engine, reports):
    dice = random.Random(7)
    events = [
        event(
            number,
            dice.choice(list(Outcome)),
            usage=Usage(*(dice.randrange(1_000) for _ in KINDS)),
            team=dice.choice("ab"),
            model=dice.choice("mn"),
            upstream=dice.choice(["", "openai"]),
            estimated=dice.random() < 0.3,
        )
        for number in range(400)
    ]
    store = SqlLedgerStore(engine)
    for batch in range(0, 400, 37):
        store.take_over(events[batch : batch + 37], "w/1", batch)
    assert reports.verify() == []
    for row in reports.usage([Axis.TEAM, Axis.MODEL]):
        own = [each for each in events if (each.team, each.model) == row.group]
        hits = [each for each in own if each.outcome is Outcome.CACHED]
        paid = [each for each in own if each.outcome is not Outcome.CACHED]
        assert (row.requests, row.cached, row.estimated) == (len(own), len(hits), sum(e.estimated for e in own))
        assert row.usage == Usage(*(sum(getattr(e.usage, kind) for e in paid) for kind in KINDS))
        assert row.saved_input_tokens == sum(e.usage.input_tokens for e in hits)
        assert row.saved_output_tokens == sum(e.usage.output_tokens for e in hits)
        assert row.cost_pico_usd == sum(e.cost_pico_usd for e in own)
        assert row.saved_pico_usd == sum(e.saved_pico_usd for e in own)


@pytest.mark.parametrize("measure", ["saved_input_tokens", "saved_output_tokens", "saved_pico_usd", "input_tokens"])
def test_a_saving_that_is_wrong_is_found(engine, reports, measure):
    SqlLedgerStore(engine).take_over([event(1, Outcome.CACHED)], "w/1", 1)
    right = {"saved_input_tokens": 5, "saved_output_tokens": 2, "saved_pico_usd": 29, "input_tokens": 0}[measure]
    with writing(engine, "test", "spoil") as connection:
        connection.execute(usage_daily.update().values({measure: right + 3}))
    day = "2024-10-04"
    assert reports.verify() == [
        Mismatch((day, "growth", "k" * 12, "m", "", "chat"), measure, daily=right + 3, events=right)
    ]


def test_days_that_counted_hits_as_used_are_put_right(empty_database):
    engine = open_engine(empty_database)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    events = [
        event(1),
        event(2, Outcome.CACHED),
        event(3, Outcome.CACHED, usage=Usage(1, 2, 3, 4, 5, 6, 7)),
        event(4, Outcome.CACHED, upstream="openai"),  # where one stood in a row with what was used
        event(5, model="n"),
    ]
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for each in events:
            row = structs.asdict(each) | structs.asdict(each.usage) | {"day": "2024-10-04"}
            del row["usage"]
            insert(connection, "usage_events", row)
        for upstream, model in (("openai", "m"), ("", "m"), ("openai", "n")):
            group = [each for each in events if (each.upstream, each.model) == (upstream, model)]
            key = {"day": "2024-10-04", "team": "growth", "key_id": "k" * 12, "endpoint": "chat"}
            sums = {kind: sum(getattr(each.usage, kind) for each in group) for kind in KINDS}
            sums |= {name: sum(getattr(each, name) for each in group) for name in ("cost_pico_usd", "saved_pico_usd")}
            counts = {"requests": len(group), "estimated": 0}
            counts["cached"] = sum(each.outcome is Outcome.CACHED for each in group)
            insert(connection, "usage_daily", key | {"upstream": upstream, "model": model} | sums | counts)
    assert migrate(engine)
    reports = SqlUsageReports(engine)
    assert reports.verify() == []
    assert {row.group: told(row) for row in reports.usage([Axis.MODEL, Axis.UPSTREAM])} == {
        ("m", ""): (2, 2, 0, 6, 4),
        ("m", "openai"): (2, 1, 7, 5, 2),
        ("n", "openai"): (1, 0, 7, 0, 0),
    }
    with engine.connect() as connection:
        assert len(connection.execute(select(usage_daily)).all()) == 3
    engine.dispose()


def insert(connection, table, row):
    names = ", ".join(row)
    values = {name: getattr(value, "value", value) for name, value in row.items()}
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES (:{names.replace(', ', ', :')})"), values)
