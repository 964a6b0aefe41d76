"""How many connections this process can have: each is an open file, and most have another upstream."""

from __future__ import annotations

import resource
from contextlib import suppress

__all__ = ["connections_that_fit", "lift_open_files"]

_OUR_OWN = 256
"""Database, spool, Redis, listeners, and room to spare."""
_MOST = 1_048_576


def lift_open_files() -> int:
    """Take as many open files as the system lets this process have; return how many those are.

    Shells give 1,024 by custom, for programs that cannot stand more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return min(_MOST, soft) if soft != resource.RLIM_INFINITY else _MOST
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_that_fit(open_files: int) -> int:
    """Connections of clients that never run out of open files, the calls upstream made for them included."""
    return max(1, (open_files - _OUR_OWN) // 2)
