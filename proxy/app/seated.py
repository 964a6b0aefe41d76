"""`python -m proxy.app.seated FD`: one worker under a supervisor.

Its seat comes through standard input, which then stays open for as long as the supervisor lives; a byte on the file
descriptor FD says that it serves.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import sys

import uvloop
from sqlalchemy import Engine

from proxy.adapters.prometheus_shared import share_between_processes
from proxy.app.database import open_database
from proxy.app.figures import held
from proxy.app.logging import log_to_stderr
from proxy.app.steady import keep_loop_steady
from proxy.app.worker import Seat, serving
from proxy.core.errors import StoreAway
from proxy.core.registry import DataUnusable

__all__: list[str] = []

_log = logging.getLogger(__name__)


def main(ready_fd: int) -> int:
    """Take the seat and serve until told to stop, or until the supervisor is gone."""
    try:
        seat: Seat = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own supervisor's pipe, private to the two of us
    except EOFError:
        # The supervisor was gone before it could say what to serve.
        return 1
    log_to_stderr(f"worker {seat.number}")
    share_between_processes(seat.metrics_dir, seat.number)
    try:
        with (
            held(seat.metrics_dir),
            open_database(seat.settings) as engine,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            return runner.run(_serve(seat, engine, ready_fd))
    except (OSError, DataUnusable) as error:
        _log.error("cannot serve: %s", error)
        return 1
    except StoreAway as error:
        _log.error(
            "cannot serve: %s does not answer: %s", error.store, getattr(error.__cause__, "orig", error.operation)
        )
        return 1


async def _serve(seat: Seat, engine: Engine, ready_fd: int) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    # The supervisor alone decides when to drain.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(sys.stdin.fileno(), _on_input, stop)
    async with serving(seat.settings, engine, seat=seat):
        keep_loop_steady()
        os.write(ready_fd, b"r")
        os.close(ready_fd)
        await stop.wait()
    return 0


def _on_input(stop: asyncio.Event) -> None:
    """The supervisor sends nothing more: what can be read is the end."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stop.set()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
