"""The directory in which the workers of one supervisor keep their figures.

Each run has its own, so that two servers on one data directory do not add up, or clear away, each other's. Everyone who
uses one holds a shared lock in it: what nobody holds was left by a run that was killed, and is removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["held", "own_figures"]

_PREFIX = "metrics-"
_LOCK_FILE = "lock"


@contextmanager
def own_figures(data_dir: Path) -> Iterator[Path]:
    """Make a directory for this run, and remove it at the end. Raises `OSError`."""
    for left in data_dir.glob(f"{_PREFIX}*"):
        if not _in_use(left):
            shutil.rmtree(left, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=data_dir))
    try:
        with held(directory):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Keep others from removing it. Raises `OSError`."""
    lock = os.open(directory / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _in_use(directory: Path) -> bool:
    try:
        lock = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        # Just made, and not held yet; or not one of ours.
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False
