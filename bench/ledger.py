"""What the ledger costs a request, how fast it reaches the database, and how long a report over a million events takes.

`python bench/ledger.py` works in a temporary directory, on SQLite and on a Postgres of its own (the one on PATH, else
that of the development wheel), which it does not force to disk. CPU is that of this process: beside Postgres, what is
left for a worker to do. Compare only figures of one run.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from figures import Figure, arguments, deliver
from processes import workbench
from sqlalchemy import Engine, text

sys.path.insert(0, str(Path(__file__).parents[1]))

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.spool_state import look_at_spool
from proxy.adapters.sql.books import SqlBooks
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.tables import usage_daily, usage_events
from proxy.adapters.sql.usage import SqlUsageReports, counted_from_events
from proxy.core.pricing import PriceBook
from proxy.core.registry import Axis
from tests.support.ledger_records import SetClock, dispatch, event
from tests.support.postgres_server import PostgresServer

REQUESTS = 20_000
ROUNDS = 3
EVENTS = 1_000_000
_DAYS = 30
_SPELLED = {
    "sqlite": (
        "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :events)",
        "date(20000 * 86400 + i % 30 * 86400, 'unixepoch')",
        "printf('%012x', (20000 + i % 30) * 86400000 + i / 30)",
        "printf('%012x', i)",
    ),
    "postgresql": (
        "WITH n AS (SELECT generate_series(0, CAST(:events AS bigint) - 1) AS i)",
        "date '1970-01-01' + CAST(20000 + i % 30 AS integer)",
        "lpad(to_hex((20000 + i % 30) * 86400000 + i / 30), 12, '0')",
        "lpad(to_hex(i), 12, '0')",
    ),
}
"""Numbers, and of each its day, the time in its id, and the rest of the id."""


class Silent:
    """Telemetry that nobody reads."""

    def store_failed(self, store: str, operation: str) -> None:
        """A benchmark of what fails tells nothing."""
        raise RuntimeError(f"{store} {operation}")


def spooling_and_shipping(engine: Engine, directory: Path) -> tuple[list[float], list[float], list[float]]:
    """Of each round: microseconds of CPU for begin and end, and for taking the event over, and events a second."""
    spent, taking, shipped = [], [], []
    for round_ in range(ROUNDS):
        numbers = range(round_ * REQUESTS, (round_ + 1) * REQUESTS)
        records = [(dispatch(number), event(number)) for number in numbers]
        ledger = SpoolLedger(directory / "spool", SqlLedgerStore(engine), PriceBook([]), Silent(), SetClock())
        began = time.thread_time()
        for begin, end in records:
            ledger.begin(begin)
            ledger.end(end)
        spent.append((time.thread_time() - began) / REQUESTS * 1e6)
        spooled, began = time.perf_counter(), time.process_time()
        if asyncio.run(ledger.ship_once()) != REQUESTS:
            raise RuntimeError("not every event of the benchmark has arrived")
        taking.append((time.process_time() - began) / REQUESTS * 1e6)
        shipped.append(REQUESTS / (time.perf_counter() - spooled))
        asyncio.run(ledger.close())
    return spent, taking, shipped


def fill(engine: Engine, events: int) -> None:
    """A month of events and their totals, made by the database itself, in the place of what there is."""
    numbers, day, made, rest = _SPELLED[engine.dialect.name]
    constants = {
        "at_ms": "0", "request_id": "'req'", "endpoint": "'chat'", "upstream": "'openai'", "status": "200",
        "outcome": "'ok'", "price_id": "'m'", "estimated": "false", "attempts": "1", "duration_ms": "1",
        "input_tokens": "100 + i % 900", "output_tokens": "i % 500", "cost_pico_usd": "1000000 + i",
        "team": "'team-' || (i / 30 % 20)", "key_id": "'key-' || (i / 600 % 60)", "model": "'model-' || (i / 30 % 5)",
        "day": day, "event_id": f"substr({made}, 1, 8) || '-' || substr({made}, 9) || '-7000-8000-' || {rest}",
    }  # fmt: skip
    values = ", ".join(constants.get(column.name, "0") for column in usage_events.c)
    names = ", ".join(column.name for column in usage_events.c)
    # All of it is written in this file.
    statement = f"INSERT INTO usage_events ({names}) {numbers} SELECT {values} FROM n"  # noqa: S608 - as said
    daily = [*usage_daily.primary_key.columns.keys(), *MEASURES]
    with engine.begin() as connection:
        for table in (usage_events, usage_daily):
            connection.execute(table.delete())
        connection.execute(text(statement), {"events": events})
        connection.execute(usage_daily.insert().from_select(daily, counted_from_events()))


def seconds(work: Callable[[], object]) -> list[float]:
    """How long it takes, in each round."""
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken


def measure(name: str, engine: Engine, directory: Path, events: int) -> list[Figure]:
    """All figures of one database."""
    migrate(engine)
    spent, taking, shipped = spooling_and_shipping(engine, directory)
    fill(engine, events)
    books = SqlBooks(engine, partial(look_at_spool, directory / "spool"), SetClock())
    reports = SqlUsageReports(engine)
    rows = len(reports.usage(tuple(Axis)))
    by_all = seconds(lambda: reports.usage(tuple(Axis)))
    by_model = seconds(lambda: reports.usage((Axis.TEAM, Axis.MODEL)))
    began = time.perf_counter()
    tie_out = books.verify().tie_out
    verified = time.perf_counter() - began
    if not tie_out:
        raise RuntimeError("the books of the benchmark do not tie out")
    million = f"of {events:,} events"
    return [
        Figure.of(f"{name}: begin and end of a request, CPU", spent, "us", target=6.0),
        Figure.of(f"{name}: an event taken over, CPU", taking, "us"),
        Figure.of(f"{name}: taken over", shipped, "events/s", target=10_000.0, better="more"),
        Figure.of(f"{name}: usage by team and model {million}", by_model, "s", target=2.0),
        Figure.of(f"{name}: usage by everything {million} ({rows:,} rows)", by_all, "s", target=2.0),
        Figure(f"{name}: ledger verify {million}", verified, "s"),
    ]


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--events", type=int, help="events the reports are over; a million, or 50,000 where it is quick"
    )
    chosen = parser.parse_args()
    events = chosen.events or (50_000 if chosen.quick else EVENTS)
    figures = []
    with ExitStack() as stack:
        directory = stack.enter_context(workbench())
        postgres = stack.enter_context(PostgresServer())
        for name, place in (("SQLite", directory / "tollgate.sqlite3"), ("Postgres", postgres.url())):
            engine = open_engine(place, patience_seconds=600)
            stack.callback(engine.dispose)
            figures += measure(name, engine, directory, events)
    deliver(figures, chosen.json)


if __name__ == "__main__":
    main()
