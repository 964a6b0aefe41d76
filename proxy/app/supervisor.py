"""Several workers on one machine: starts them, starts again the ones that die, drains them all, and serves operations.

Every worker binds a socket of its own to the same port (`SO_REUSEPORT`) and the kernel deals connections out. The
supervisor serves no traffic. It keeps one end of each worker's standard input open: a worker that reads the end of it
has lost its supervisor, and drains.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from proxy.app.worker import Seat
from proxy.settings import Settings

__all__ = ["Supervisor"]

_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 10.0
_SETTLED_SECONDS = 60.0
"""A worker that has lived this long died of something new: its successor starts without a wait."""
_KILL_AFTER_DRAIN_SECONDS = 15.0
"""Beyond the drain itself: flushing the spool to a slow database."""
_READY = b"r"
_log = logging.getLogger(__name__)


class _Slot:
    """One seat and the process that holds it."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.process: asyncio.subprocess.Process | None = None
        self.ready = False
        self.restarts = 0


class Supervisor:
    """Keeps `settings.server.workers` workers alive until it is stopped."""

    def __init__(self, settings: Settings, metrics_dir: Path, *, forget_dead: Callable[[int], None]) -> None:
        server = settings.server
        self._drain_seconds = server.drain_seconds + server.ready_grace_seconds
        # Bound and not listening: it holds the port for the workers and is dealt no connections.
        self._port_holder = _bind(server.host, server.port)
        self.port: int = self._port_holder.getsockname()[1]
        self._slots = [_Slot(Seat(number, self.port, metrics_dir, settings)) for number in range(server.workers)]
        self._forget_dead = forget_dead
        self._stopping = False
        self._someone_ready = asyncio.Event()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that hold a seat now."""
        return tuple(slot.process.pid for slot in self._slots if slot.process is not None)

    async def until_ready(self) -> None:
        """Return when the first worker takes connections."""
        await self._someone_ready.wait()

    async def someone_ready(self) -> None:
        """Raise `LookupError` while no worker takes connections."""
        if not any(slot.ready for slot in self._slots):
            raise LookupError("no worker takes connections")

    @property
    def restarts(self) -> int:
        """Workers started in the place of one that died."""
        return sum(slot.restarts for slot in self._slots)

    async def run(self) -> None:
        """Keep every seat taken until `stop`; returns when the last worker has ended."""
        async with asyncio.TaskGroup() as seats:
            for slot in self._slots:
                seats.create_task(self._keep(slot))
        self._port_holder.close()

    def stop(self) -> None:
        """Ask every worker to drain."""
        self._stopping = True
        for slot in self._slots:
            if slot.process is not None:
                _signal(slot.process, signal.SIGTERM)

    async def _keep(self, slot: _Slot) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping:
            born = loop.time()
            status = await self._run_once(slot)
            if self._was_stopped():
                return
            _log.error("worker %d ended with status %d; starting another", slot.seat.number, status)
            if loop.time() - born > _SETTLED_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            slot.restarts += 1

    def _was_stopped(self) -> bool:
        # A method, because a type checker takes an attribute for unchanged while we waited.
        return self._stopping

    async def _run_once(self, slot: _Slot) -> int:
        """Run one process in a seat to its end."""
        ready_end, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "proxy.app.seated", str(theirs), stdin=asyncio.subprocess.PIPE, pass_fds=(theirs,)
            )  # fmt: skip
        except BaseException:
            os.close(ready_end)
            raise
        finally:
            os.close(theirs)
        slot.process = process
        try:
            await self._seat(process, slot, ready_end)
            return await self._ended(process)
        finally:
            slot.ready, slot.process = False, None
            self._forget_dead(slot.seat.number)

    async def _seat(self, process: asyncio.subprocess.Process, slot: _Slot, ready_end: int) -> None:
        """Hand a worker its seat, and wait until it serves or has given up."""
        if process.stdin is None:
            raise RuntimeError("a worker is started with a pipe")
        # Settings go through the pipe, not the command line or the environment: they hold secrets.
        with suppress(ConnectionResetError, BrokenPipeError):
            process.stdin.write(pickle.dumps(slot.seat))
            await process.stdin.drain()
        if self._stopping:
            _signal(process, signal.SIGTERM)
        with os.fdopen(ready_end, "rb", buffering=0) as pipe:
            slot.ready = await asyncio.to_thread(pipe.read, 1) == _READY
        if slot.ready:
            self._someone_ready.set()

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        while not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    return await process.wait()
        try:
            async with asyncio.timeout(self._drain_seconds + _KILL_AFTER_DRAIN_SECONDS):
                return await process.wait()
        except TimeoutError:
            _log.error("worker %d did not drain in time", process.pid)
            _signal(process, signal.SIGKILL)
            return await process.wait()


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    holder = socket.socket(family, kind, protocol)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    holder.bind(address)
    return holder


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)
