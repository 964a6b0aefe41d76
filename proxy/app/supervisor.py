"""Several workers on one machine: starts them, starts again the ones that die, drains them all, and serves operations.

Every worker binds a socket of its own to the same port (`SO_REUSEPORT`) and the kernel deals connections out. The
supervisor serves no traffic. It keeps one end of each worker's standard input open: a worker that reads the end of it
has lost its supervisor, and drains.

A worker that dies is started again for ever, as long as one of them has ever served; where none has, what keeps them
from it will not mend by itself, and the supervisor gives up.
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

__all__ = ["NeverReady", "Supervisor"]

_FIRST_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 10.0
_SETTLED_SECONDS = 60.0
"""A worker that has lived this long died of something new: its successor starts without a wait."""
_KILL_AFTER_DRAIN_SECONDS = 15.0
"""Beyond the drain itself: flushing the spool to a slow database."""
_READY = b"r"
_MOST_TRIES = 3
"""Starts of one worker while none has ever served."""
_log = logging.getLogger(__name__)


class NeverReady(Exception):
    """No worker has come to serve, and none will."""


class _Slot:
    """One seat and the process that holds it."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
        self.process: asyncio.subprocess.Process | None = None
        self.ready = False
        self.restarts = 0
        self.told = asyncio.Event()
        """Set when its process has said something or has ended, and when there is no use in waiting for that."""


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
        self._stopping = asyncio.Event()
        self._was_ready = False
        self._why_never = "stopped before a worker served"
        self._decided = asyncio.Event()
        """Set when a worker serves for the first time, and when none is going to."""
        self._ended = asyncio.Event()

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes that hold a seat now."""
        return tuple(slot.process.pid for slot in self._slots if slot.process is not None)

    async def until_ready(self) -> None:
        """Return when the first worker takes connections. Raises `NeverReady` when it gives up on that."""
        await self._decided.wait()
        if not self._was_ready:
            raise NeverReady(self._why_never)

    async def until_ended(self) -> None:
        """Return when every worker has ended after a `stop`."""
        await self._ended.wait()

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
        try:
            async with asyncio.TaskGroup() as seats:
                for slot in self._slots:
                    seats.create_task(self._keep(slot))
        finally:
            self.close()
            self._ended.set()
            self._decided.set()

    def close(self) -> None:
        """Let go of the port. Idempotent."""
        self._port_holder.close()

    def stop(self) -> None:
        """Ask every worker to drain."""
        self._stopping.set()
        for slot in self._slots:
            slot.told.set()
            if slot.process is not None:
                _signal(slot.process, signal.SIGTERM)

    async def _keep(self, slot: _Slot) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            born = loop.time()
            status = await self._run_once(slot)
            if self._stopping.is_set():
                return
            if not self._was_ready and slot.restarts + 1 >= _MOST_TRIES:
                _log.error("worker %d ended with status %d; giving up", slot.seat.number, status)
                self._why_never = f"no worker came to serve in {_MOST_TRIES} attempts"
                self.stop()
                return
            _log.error("worker %d ended with status %d; starting another", slot.seat.number, status)
            if loop.time() - born > _SETTLED_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff_seconds):
                    await self._stopping.wait()
            backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            slot.restarts += 1

    async def _run_once(self, slot: _Slot) -> int:
        """Run one process in a seat to its end."""
        ready_end, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "proxy.app.seated", str(theirs)),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=(theirs,),
                # A terminal's interrupt goes to the whole group, and would end a worker in the middle of its start.
                start_new_session=True,
            )
        except OSError as error:
            os.close(ready_end)
            # Out of processes or memory for now, which is no reason to end the other workers.
            _log.error("cannot start a process: %s", error)
            return -1
        finally:
            os.close(theirs)
        slot.process = process
        try:
            await self._seat(process, slot, ready_end)
            return await self._end_of(process)
        finally:
            os.close(ready_end)
            slot.ready, slot.process = False, None
            self._forget_dead(slot.seat.number)

    async def _seat(self, process: asyncio.subprocess.Process, slot: _Slot, ready_end: int) -> None:
        """Hand a worker its seat, and wait until it serves or has given up, or until all are to stop."""
        if process.stdin is None:
            raise RuntimeError("a worker is started with a pipe")
        # Settings go through the pipe, not the command line or the environment: they hold secrets.
        with suppress(ConnectionResetError, BrokenPipeError):
            # One that has died in its first moments has closed it: uvloop then raises `RuntimeError`.
            if not process.stdin.is_closing():
                process.stdin.write(pickle.dumps(slot.seat))
                await process.stdin.drain()
        slot.told.clear()
        if self._stopping.is_set():
            _signal(process, signal.SIGTERM)
            return
        slot.ready = await _first_byte(ready_end, slot.told) == _READY
        if slot.ready:
            self._was_ready = True
            self._decided.set()

    async def _end_of(self, process: asyncio.subprocess.Process) -> int:
        while not self._stopping.is_set():
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
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


async def _first_byte(pipe: int, told: asyncio.Event) -> bytes:
    """Read one byte of a pipe, none at its end or where `told` is set from elsewhere.

    A thread for each worker would leave none for the metrics.
    """
    loop = asyncio.get_running_loop()
    os.set_blocking(pipe, False)
    loop.add_reader(pipe, told.set)
    try:
        await told.wait()
    finally:
        loop.remove_reader(pipe)
    try:
        return os.read(pipe, 1)
    except BlockingIOError:
        return b""


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(number)
