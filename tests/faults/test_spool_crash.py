import asyncio
import signal
import subprocess
import sys
import textwrap
from collections import Counter

import pytest
from sqlalchemy import select

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.sql.engine import open_engine, reading
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.tables import spool_offsets, usage_events
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.pricing import PriceBook

WORKER = """
    import asyncio, os, sys, time
    from pathlib import Path
    from proxy.adapters.ledger import SpoolLedger
    from proxy.adapters.sql.engine import open_engine
    from proxy.adapters.sql.ledger_store import SqlLedgerStore
    from proxy.core.event import Dispatch, Outcome, UsageEvent
    from proxy.core.ids import uuid7
    from proxy.core.pricing import PriceBook
    from proxy.core.usage import Usage

    class Clock:
        def now_ms(self): return time.time_ns() // 1_000_000
        def monotonic_ns(self): return time.monotonic_ns()

    class Telemetry:
        def store_failed(self, store, operation): print("failed", store, operation, flush=True)

    def say(line):
        os.write(1, (line + "\\n").encode())

    async def serve(data_dir, shipping):
        store = SqlLedgerStore(open_engine(data_dir / "tollgate.db"))
        ledger = SpoolLedger(
            data_dir / "spool", store, PriceBook([]), Telemetry(), Clock(), segment_bytes=65_536
        )
        running = asyncio.get_running_loop().create_task(ledger.run()) if shipping else None
        number = 0
        while True:
            at_ms = Clock().now_ms()
            event_id = uuid7(at_ms, os.urandom(10))
            who = dict(team="growth", key_id="k" * 12, endpoint="chat", model="m", upstream="openai")
            ledger.begin(Dispatch(event_id, at_ms, f"req_{number}", *who.values(), 10, 20, None))
            say(f"begun {event_id}")
            if number % 7:
                await asyncio.sleep(0)
            ledger.end(UsageEvent(event_id, at_ms, f"req_{number}", *who.values(), 200, Outcome.OK, Usage(5, 2)))
            say(f"ended {event_id}")
            number += 1

    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2] == "shipping"))
"""


pytestmark = pytest.mark.timeout(600)


class Clock:
    def now_ms(self):
        return 0

    def monotonic_ns(self):
        return 0


class Telemetry:
    def __init__(self):
        self.failures = Counter()

    def store_failed(self, store, operation):
        self.failures[store, operation] += 1


def run_until_killed(data_dir, mode, lines):
    """Start a worker, kill it once it has said so many lines; returns the ids it had begun and ended by then."""
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WORKER), str(data_dir), mode], stdout=subprocess.PIPE
    ) as worker:
        try:
            said = [worker.stdout.readline() for _ in range(lines)]
        finally:
            worker.send_signal(signal.SIGKILL)
        said += worker.stdout.read().splitlines(keepends=True)
        assert worker.wait(timeout=60) == -signal.SIGKILL
    # The last line may be cut short; what it was about to say is then not known to us, as to a client.
    words = [line.decode().split() for line in said if line.endswith(b"\n")]
    begun = {event_id for verb, event_id in words if verb == "begun"}
    ended = {event_id for verb, event_id in words if verb == "ended"}
    assert len(begun) + len(ended) == len(words)
    return begun, ended


@pytest.mark.parametrize("mode", ["spooling", "shipping"])
def test_a_killed_worker_leaves_exactly_one_event_for_every_request(tmp_path, mode):
    engine = open_engine(tmp_path / "tollgate.db")
    migrate(engine)
    begun, ended = set(), set()
    # Odd: between begin and end; even: after an end; many: in the middle of rotation and of taking over.
    for lines in (1, 2, 101, 3_000, 9_001):
        more_begun, more_ended = run_until_killed(tmp_path, mode, lines)
        begun |= more_begun
        ended |= more_ended
    kills = 5

    telemetry = Telemetry()
    ledger = SpoolLedger(tmp_path / "spool", SqlLedgerStore(engine), PriceBook([]), telemetry, Clock())

    async def recover():
        found = await ledger.recover()
        again = await ledger.recover()
        await ledger.close()
        return found, again

    interrupted, again = asyncio.run(recover())
    with reading(engine, "test", "rows") as connection:
        rows = dict(map(tuple, connection.execute(select(usage_events.c.event_id, usage_events.c.outcome))))
        assert connection.execute(select(spool_offsets)).all() == []
    outcomes = Counter(rows.values())

    assert begun <= rows.keys()
    assert all(rows[event_id] == "ok" for event_id in ended)
    # Each kill can cut one request short, and hide one that was spooled before it was said.
    assert len(begun) <= len(rows) <= len(begun) + kills
    # A worker that ships has also recovered its predecessors.
    assert interrupted <= outcomes["interrupted"] <= kills
    assert mode == "shipping" or interrupted == outcomes["interrupted"]
    assert again == 0
    assert outcomes["ok"] + outcomes["interrupted"] == len(rows)
    assert not telemetry.failures

    reports = SqlUsageReports(engine)
    assert reports.verify() == []
    [total] = reports.usage([])
    assert total.requests == len(rows)
    assert total.usage.input_tokens == 5 * outcomes["ok"] + 10 * outcomes["interrupted"]
    assert list((tmp_path / "spool").iterdir()) == []
    engine.dispose()
