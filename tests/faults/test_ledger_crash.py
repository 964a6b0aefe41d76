"""Whatever ends the shipper, the database or the disk, and wherever: one event per dispatch, and books that tie out.

The processes are real and are ended by SIGKILL: before every statement, every commit and every deletion there is.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import event as on
from sqlalchemy import select

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.spool import MAGIC, SpoolWriter
from proxy.adapters.spool_state import look_at_spool
from proxy.adapters.sql.books import SqlBooks
from proxy.adapters.sql.engine import open_engine, reading, writing
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.tables import spool_offsets, usage_daily, usage_events
from proxy.core.errors import StoreAway
from proxy.core.pricing import PriceBook
from tests.support.ledger_records import AT_MS, DAY_MS, SetClock, dispatch, event
from tests.support.postgres_server import PostgresServer

pytestmark = pytest.mark.timeout(600)
PATIENCE_SECONDS = 60
"""For a statement: none is late because of the machine."""


def patient_engine(database):
    if "://" in str(database):
        database = f"{database}?connect_timeout={PATIENCE_SECONDS}"
    engine = open_engine(database, patience_seconds=PATIENCE_SECONDS)
    if engine.dialect.name == "sqlite":
        pragma = f"PRAGMA busy_timeout={PATIENCE_SECONDS * 1_000}"
        on.listen(engine, "connect", lambda connection, _: connection.execute(pragma).close())
    return engine


class Telemetry:
    """Keeps the counts and has no registry to show them in."""

    def __init__(self):
        self.failures = Counter()

    def store_failed(self, store, operation):
        self.failures[store, operation] += 1


@pytest.fixture
def engine(database):
    engine = patient_engine(database)
    yield engine
    engine.dispose()


def ledger_on(engine, spool, **settings):
    return SpoolLedger(spool, SqlLedgerStore(engine), PriceBook([]), Telemetry(), SetClock(), **settings)


async def recovered(engine, spool):
    """What a start after the crash does; returns how many requests were found interrupted."""
    ledger = ledger_on(engine, spool)
    found = await ledger.recover()
    await ledger.close()
    assert not ledger._telemetry.failures
    return found


def kept(engine):
    """Outcome and cost of every event, by the number it was made with."""
    with reading(engine, "test", "rows") as connection:
        rows = connection.execute(select(usage_events)).mappings().all()
    by_number = {int(row["request_id"].removeprefix("req_")): (row["outcome"], row["cost_pico_usd"]) for row in rows}
    assert len(by_number) == len(rows), "one event per request"
    return by_number


def ended(numbers):
    return {number: ("ok", event(number).cost_pico_usd) for number in numbers}


def cut_short(numbers):
    return dict.fromkeys(numbers, ("interrupted", 0))


def ties_out(engine, spool):
    findings = SqlBooks(engine, partial(look_at_spool, spool), SetClock()).verify()
    assert findings.tie_out, findings
    assert findings.cost_pico_usd == sum(cost for _, cost in kept(engine).values())
    return findings


# The shipper ends between any two steps.

STEPPER = Path(__file__).parents[1] / "support" / "ledger_stepper.py"


class Stepper:
    """Runs a shipper again and again, in a process of its own that ends itself before its n-th step."""

    def __init__(self, database, spool):
        self._process = subprocess.Popen(
            [sys.executable, str(STEPPER), str(database), str(spool)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, mode, first, step):
        """Returns what the shipper was about to do when it was killed, or `done`."""
        self._process.stdin.write(f"{mode} {first} {step}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self):
        self._process.stdin.close()
        assert self._process.wait(PATIENCE_SECONDS) == 0
        self._process.stdout.close()


@pytest.fixture
def stepper(database, tmp_path):
    stepper = Stepper(database, tmp_path / "spool")
    yield stepper
    stepper.close()


def leave_behind(spool, first):
    """What a dead writer leaves: segments, five requests with an event, two without."""
    writer = SpoolWriter(spool, segment_bytes=1_500)
    for number in range(first, first + 7):
        writer.begin(dispatch(number))
    for number in range(first, first + 5):
        writer.end(event(number))
    assert len(writer.segments()) > 1
    writer.close()


@pytest.mark.parametrize("mode", ["recover", "ship"])
def test_a_shipper_that_is_killed_before_any_of_its_steps(mode, engine, stepper, tmp_path):
    spool = tmp_path / "spool"
    expected, ends = {}, Counter()
    for step in range(1, 200):
        first = 100 * step
        if mode == "recover":
            leave_behind(spool, first)
        about_to = stepper.run(mode, first, step)
        ends[about_to] += 1
        assert stepper.run("recover", 0, 0) == "done"
        found = kept(engine)
        expected |= ended(range(first, first + 5)) | cut_short(range(first + 5, first + 7))
        if mode == "ship" and found[first + 3][0] == "interrupted":
            # The shipper is the worker: it ends these two after its first batch, if it comes so far.
            assert about_to != "done"
            expected |= cut_short([first + 3, first + 4])
        assert found == expected, about_to
        if about_to == "done":
            break
    assert ends["done"] == 1
    # Every kind of step was among them; the transactions are those of both segments, of what was open, of forgetting.
    assert ends["INSERT INTO usage_events"] >= 2
    assert ends["INSERT INTO usage_daily"] >= 2
    assert ends["INSERT INTO spool_offsets"] >= 2
    assert ends["commit"] >= 3
    assert ends["os.remove"] >= 1
    if mode == "recover":
        assert ends["DELETE FROM spool_offsets"] == ends["os.rmdir"] == 1
    assert ties_out(engine, spool).spool.writers <= 1
    asyncio.run(recovered(engine, spool))
    assert kept(engine) == expected
    with reading(engine, "test", "offsets") as connection:
        assert connection.execute(select(spool_offsets)).all() == []
    assert list(spool.iterdir()) == []


# The same thing, brought twice.


async def test_two_that_recover_the_same_writer_take_turns(engine, tmp_path, database):
    spool, other = tmp_path / "spool", patient_engine(database)
    for round_ in range(10):
        leave_behind(spool, 100 * round_)
        one, two = ledger_on(engine, spool), ledger_on(other, spool)
        found = await asyncio.gather(one.recover(), two.recover())
        assert sorted(found) in ([0, 2], [0, 0, 2])
        await asyncio.gather(one.close(), two.close())
    assert kept(engine).keys() == {100 * round_ + number for round_ in range(10) for number in range(7)}
    ties_out(engine, spool)
    other.dispose()


def test_shippers_of_the_same_batch_at_one_time(engine, database, tmp_path):
    """What flock forbids on one machine, a restored copy of its disk on another can do."""
    batches = [[event(number) for number in range(start, start + 60)] for start in range(0, 600, 20)]
    new, failed = [], []

    def ship(seed):
        own = patient_engine(database)
        store = SqlLedgerStore(own)
        order = random.Random(seed).sample(batches, len(batches))
        try:
            new.extend(store.take_over(batch, f"{'a' * 16}/0000000{seed}", 90) for batch in order)
        except StoreAway as error:
            failed.append(error)
        own.dispose()

    threads = [threading.Thread(target=ship, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not failed
    assert sum(new) == 640
    assert kept(engine) == ended(range(640))
    ties_out(engine, tmp_path)


# The tail of a segment is torn.


async def test_a_segment_that_is_cut_keeps_every_event_before_the_cut(engine, tmp_path):
    spool = tmp_path / "spool"
    writer = SpoolWriter(tmp_path / "whole")
    ends = [len(MAGIC)]
    for append in (
        lambda: writer.begin(dispatch(0)),
        lambda: writer.begin(dispatch(1)),
        lambda: writer.end(event(0)),
        lambda: writer.end(event(1)),
    ):
        append()
        ends.append(writer.used_bytes)
    writer.close()
    (segment,) = writer.segments()
    content = segment.path.read_bytes()
    ledger = ledger_on(engine, spool)
    # Around the records' ends and some between: what the reader makes of every byte is shown where it stands alone.
    near = {end + by for end in ends for by in (-1, 0, 1)}
    for size in sorted({*range(0, len(content), 29), *near} & set(range(len(content) + 1))):
        directory = spool / "0123456789abcdef"
        shutil.copytree(writer.directory, directory)
        (directory / segment.path.name).write_bytes(content[:size])
        whole = sum(end <= size for end in ends) - 1
        expected = [{}, cut_short([0]), cut_short([0, 1]), ended([0]) | cut_short([1]), ended([0, 1])][max(0, whole)]
        interrupted = sum(outcome == "interrupted" for outcome, _ in expected.values())
        assert await ledger.recover() == interrupted, size
        assert kept(engine) == expected, size
        assert not directory.exists()
        with writing(engine, "test", "clear") as connection:
            connection.execute(usage_events.delete())
            connection.execute(usage_daily.delete())
    assert not ledger._telemetry.failures
    await ledger.close()


# The clock steps.


async def test_a_clock_that_steps_moves_no_event_to_another_day(engine, tmp_path):
    """An event belongs to the day its request was admitted in, whoever accounts for it, and whenever."""
    spool, rng = tmp_path / "spool", random.Random(5)
    times = [AT_MS + rng.randrange(-3, 4) * DAY_MS + rng.randrange(DAY_MS) for _ in range(60)]
    writer = SpoolWriter(spool, segment_bytes=2_000)
    for number, at_ms in enumerate(times):
        writer.begin(dispatch(number, at_ms))
        if number % 3:
            stepped = at_ms + rng.choice([-400 * DAY_MS, -1, DAY_MS])
            writer.end(event(number, at_ms, told_at_ms=stepped))
    writer.close()
    # Half of the account is taken over, then the writer is recovered by one whose clock stands elsewhere.
    store = SqlLedgerStore(engine)
    store.take_over([event(number, times[number]) for number in range(30) if number % 3], f"{'b' * 16}/00000001", 90)
    assert await recovered(engine, spool) == 20
    assert len(kept(engine)) == 60
    with reading(engine, "test", "days") as connection:
        rows = connection.execute(select(usage_events.c.request_id, usage_events.c.day)).all()
    days = {int(request_id.removeprefix("req_")): (day - SetClock.epoch).days for request_id, day in rows}
    assert days == {number: at_ms // DAY_MS for number, at_ms in enumerate(times)}
    ties_out(engine, spool)


# The database is away.


async def test_an_hour_of_traffic_waits_for_the_database_and_arrives_whole(tmp_path):
    """Ten thousand requests pile up in many segments while nobody listens; then they are brought, each once."""
    spool, count = tmp_path / "spool", 10_000
    with PostgresServer() as server:
        engine = patient_engine(server.url())
        migrate(engine)
        server.kill()
        ledger = ledger_on(engine, spool, segment_bytes=1 << 18)
        for number in range(count):
            ledger.begin(dispatch(number))
            if number % 1_000:
                ledger.end(event(number))
            if number % 2_500 == 2_499:
                with pytest.raises(StoreAway):
                    await ledger.ship_once()
        waiting = ledger.state()
        assert (waiting.taken_over, len(ledger._writer.segments()) > 10) == (0, True)
        server.start()
        assert await ledger.ship_once() == count - 10
        # Segments with an open request are kept; the others are gone.
        assert 0 < ledger.state().spool_bytes < waiting.spool_bytes
        await ledger.close()
        assert kept(engine) == ended(n for n in range(count) if n % 1_000) | cut_short(range(0, count, 1_000))
        assert ties_out(engine, spool).spool.unshipped_bytes == 0
        engine.dispose()
    assert list(spool.iterdir()) == []


@pytest.mark.parametrize("moment", ["INSERT INTO usage_events", "INSERT INTO usage_daily", "INSERT INTO spool_offsets",
                                    "commit", "committed"])  # fmt: skip
async def test_postgres_killed_in_the_middle_of_a_batch(tmp_path, moment):
    """Also after it has committed and before it could say so: the batch is brought again and changes nothing."""
    spool = tmp_path / "spool"
    with PostgresServer() as server:
        engine = patient_engine(server.url())
        migrate(engine)
        ledger = ledger_on(engine, spool)
        killed = []

        def kill(*_):
            if not killed:
                killed.append(moment)
                server.kill()

        def before_statement(_connection, _cursor, statement, *_):
            if statement.startswith(moment):
                kill()

        def before_commit(connection):
            # A reading transaction ends here too.
            if not connection.get_execution_options().get("read_only") and moment.startswith("commit"):
                if moment == "committed":
                    connection.connection.dbapi_connection.commit()
                kill()

        for number in range(2_000):
            ledger.begin(dispatch(number))
            ledger.end(event(number))
        on.listen(engine, "before_cursor_execute", before_statement)
        on.listen(engine, "commit", before_commit)
        with pytest.raises(StoreAway):
            await ledger.ship_once()
        assert killed == [moment]
        ledger.begin(dispatch(2_000))
        ledger.end(event(2_000))
        server.start()
        new = await ledger.ship_once()
        assert new == 2_001 if moment != "committed" else 1 < new < 2_001
        await ledger.close()
        assert kept(engine) == ended(range(2_001))
        ties_out(engine, spool)
        engine.dispose()


async def test_postgres_that_comes_and_goes_under_a_running_ledger(tmp_path):
    spool, rng = tmp_path / "spool", random.Random(11)
    with PostgresServer() as server:
        engine = patient_engine(server.url())
        migrate(engine)
        ledger = ledger_on(engine, spool, segment_bytes=1 << 16)
        number = 0

        async def serve(count):
            nonlocal number
            for _ in range(count):
                ledger.begin(dispatch(number))
                await asyncio.sleep(0)
                ledger.end(event(number))
                number += 1

        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(ledger.run())
            for _ in range(4):
                await serve(rng.randrange(200, 600))
                # Somewhere between the shipper's statements.
                await asyncio.sleep(rng.random() / 5)
                await asyncio.to_thread(server.kill)
                await serve(rng.randrange(200, 600))
                await asyncio.to_thread(server.start)
            async with asyncio.timeout(300):
                # What was committed without being told so is there, and was never counted as new.
                while len(await asyncio.to_thread(kept, engine)) < number:  # noqa: ASYNC110 - it is a database
                    await asyncio.sleep(0.02)
            running.cancel()
        await ledger.close()
        assert kept(engine) == ended(range(number))
        ties_out(engine, spool)
        engine.dispose()
