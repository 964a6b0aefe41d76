"""Processes of the benchmark: started on cores of their own and free loopback ports, ended by their process id.

The server under test has the first core to itself where there are two; upstream, Redis and load share the others, so
that what they take is not taken from it. Several workers run on all cores.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

READY_WITHIN_SECONDS = 30.0
END_WITHIN_SECONDS = 30.0
POLL_SECONDS = 0.002
_CORES = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def all_cores() -> frozenset[int]:
    """Cores of this process at the start; empty where there is no way to ask."""
    return _CORES


def server_cores() -> frozenset[int]:
    """The core of the server under test: the first."""
    return frozenset(sorted(_CORES)[:1])


def load_cores() -> frozenset[int]:
    """Cores of everything else: all but the first, where there are others."""
    return frozenset(sorted(_CORES)[1:]) or _CORES


@contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Keep this process, and what it starts in the block, on some cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def workbench() -> Iterator[Path]:
    """A directory for a section, and its process on the cores of load; SIGTERM ends the block as Ctrl-C does."""

    def end(signum: int, _: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pinned(load_cores()), tempfile.TemporaryDirectory(prefix="tollgate-bench-") as place:
            try:
                yield Path(place)
            finally:
                _end_children()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_children() -> None:
    """End what is left: a signal may have come when one was started and not yet waited for."""
    left = psutil.Process().children(recursive=True)
    for child in left:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(left, timeout=END_WITHIN_SECONDS)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()


@contextmanager
def running(
    *command: str,
    cores: frozenset[int] | None = None,
    stdin: bytes = b"",
    log: Path | None = None,
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """A child without this environment's settings, on `cores` (else on those of load), ended at the end.

    What it says on standard output goes to the end of the file `log`, or nowhere.
    """
    # PYTHONDONTWRITEBYTECODE alone would have every start compile all of its source anew.
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("TOLLGATE_", "OPENAI_", "PYTHON"))
    }
    with pinned(load_cores() if cores is None else cores), (log or Path(os.devnull)).open("ab") as out:
        child = subprocess.Popen(
            command, env=kept | environment, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL
        )
    try:
        if child.stdin is not None:
            child.stdin.write(stdin)
            child.stdin.close()
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=END_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def program(name: str) -> str | None:
    """Where a program is that may be installed; servers are not on every user's PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def free_ports() -> tuple[int, int]:
    """Two loopback ports that nothing listens on, kept for what this process starts: nobody else is given them."""
    return _kept_port(), _kept_port()


def _kept_port() -> int:
    kept = socket.socket()
    # A server that may use an address again listens where this one is bound and does not listen.
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    port: int = kept.getsockname()[1]
    # Open until this process ends.
    kept.detach()
    return port


def wait_until_ready(url: str, process: subprocess.Popen[bytes], begun: float | None = None) -> None:
    """Poll until it answers 200; it is a failure when it does not in time, counted from `begun` (perf_counter)."""
    begun = time.perf_counter() if begun is None else begun
    while time.perf_counter() - begun < READY_WITHIN_SECONDS:
        if process.poll() is not None:
            raise SystemExit(f"{process.args!r} exited with {process.returncode} before it was ready")
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:  # noqa: S310 - our own loopback listener
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(POLL_SECONDS)
    raise SystemExit(f"{process.args!r} was not ready in time")
