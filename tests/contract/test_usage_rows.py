"""Reports row by row, on each database: the same rows in the same order, however many there are."""

from datetime import date, timedelta
from itertools import islice

import pytest
from sqlalchemy import insert

from proxy.adapters.sql.engine import open_engine, writing
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.tables import usage_daily
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.registry import Axis

FIRST = date(2024, 10, 4)
FIRST_MS = 20_000 * 86_400_000
ROWS = 2_500


@pytest.fixture
def reports(database):
    engine = open_engine(database)
    migrate(engine)
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    key = {"team": "growth", "key_id": "k", "endpoint": "chat", "upstream": "openai"}
    rows = [
        zeros | key | {"day": FIRST + timedelta(days=at % 5), "model": f"m{at:04d}", "requests": 1, "cost_pico_usd": at}
        for at in range(ROWS)
    ]
    with writing(engine, "ledger", "test") as connection:
        connection.execute(insert(usage_daily), rows)
    yield SqlUsageReports(engine)
    engine.dispose()


def test_each_row_is_yielded_once_and_in_order(reports):
    axes = (Axis.MODEL, Axis.DAY)
    rows = list(reports.each_usage(axes))
    assert rows == reports.usage(axes)
    assert [row.cost_pico_usd for row in rows] == list(range(ROWS))
    assert [row.group[0] for row in rows] == sorted(row.group[0] for row in rows)
    assert reports.count_usage(axes) == ROWS


def test_whoever_stops_reading_leaves_nothing_open(reports):
    for _ in range(20):
        rows = reports.each_usage((Axis.MODEL,))
        assert len(list(islice(rows, 3))) == 3
        rows.close()
    assert reports.count_usage((Axis.DAY,)) == 5


def test_rows_are_counted_within_the_days_and_the_team(reports):
    day_ms = 86_400_000
    assert reports.count_usage((Axis.MODEL,), FIRST_MS, FIRST_MS + 2 * day_ms) == 2 * ROWS // 5
    assert sum(row.requests for row in reports.each_usage((), FIRST_MS + 4 * day_ms)) == ROWS // 5
    assert reports.count_usage((Axis.MODEL,), team="nobody") == 0
