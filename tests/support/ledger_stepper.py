"""`ledger_stepper.py DATABASE SPOOL`: runs shippers that kill themselves before their n-th step.

A line `MODE FIRST STEP` on standard input starts one, as a fork; the answer is what it was about to do, or `done`. A
step is a statement, a commit, or the deletion of something in the spool. STEP 0 is never reached.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from sqlalchemy import event as on

sys.path.insert(0, str(Path(__file__).parents[2]))

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.core.pricing import PriceBook
from tests.support.ledger_records import SetClock, dispatch, event

_DELETIONS = {"os.remove", "os.rmdir", "os.rename"}


class Silent:
    """Telemetry that nobody reads."""

    def store_failed(self, store: str, operation: str) -> None:
        raise AssertionError((store, operation))


class Steps:
    """Counts steps, and ends the process before the one it waits for."""

    def __init__(self, wanted: int, tell: int) -> None:
        self._left = wanted
        self._tell = tell

    def before(self, what: str) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(self._tell, what.encode() + b"\n")
            os.kill(os.getpid(), signal.SIGKILL)


async def shipped(ledger: SpoolLedger, first: int) -> None:
    """What a worker does that then dies with two requests open."""
    for number in range(first, first + 7):
        ledger.begin(dispatch(number))
    for number in range(first, first + 3):
        ledger.end(event(number))
    ledger._writer.sync()
    steps_begin.set()
    await ledger.ship_once()
    for number in range(first + 3, first + 5):
        ledger.end(event(number))
    await ledger.ship_once()


async def recovered(ledger: SpoolLedger) -> None:
    steps_begin.set()
    await ledger.recover()


class Flag:
    """Whether steps are counted yet."""

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


steps_begin = Flag()


def run(database: str, spool: str, mode: str, first: int, step: int, tell: int) -> None:
    steps = Steps(step, tell)
    # Longer than the next one takes to be rid of the one that was killed, however busy the machine is.
    engine = open_engine(database, patience_seconds=60)

    def before_statement(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if steps_begin.is_set:
            steps.before(" ".join(statement.split()[:3]))

    def before_commit(_connection: object) -> None:
        if steps_begin.is_set:
            steps.before("commit")

    def audited(name: str, arguments: tuple[object, ...]) -> None:
        if name in _DELETIONS and steps_begin.is_set and str(arguments[0]).startswith(spool):
            steps.before(name)

    on.listen(engine, "before_cursor_execute", before_statement)
    on.listen(engine, "commit", before_commit)
    sys.addaudithook(audited)

    async def go() -> None:
        ledger = SpoolLedger(
            Path(spool), SqlLedgerStore(engine), PriceBook([]), Silent(), SetClock(), segment_bytes=1_500
        )
        await (recovered(ledger) if mode == "recover" else shipped(ledger, first))
        if mode == "recover":
            steps_begin.is_set = False
            await ledger.close()

    asyncio.run(go())
    os.write(tell, b"done\n")


def main(database: str, spool: str) -> None:
    # What a driver imports is imported once, and not in every fork.
    open_engine(database).dispose()
    for line in sys.stdin:
        mode, first, step = line.split()
        heard, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(heard)
            run(database, spool, mode, int(first), int(step), tell)
            os._exit(0)
        os.close(tell)
        _, status = os.waitpid(child, 0)
        said = os.read(heard, 1_000).decode()
        os.close(heard)
        sys.stdout.write(said or f"ended with {status}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
