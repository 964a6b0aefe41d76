"""Runs a server with a watch on its event loop, which says how late the loop came round.

`python bench/watched.py FILE -m proxy serve ...` or `python bench/watched.py FILE script.py ...`: the rest of the
line is run as `python` would run it, on a loop of uvloop's. A timer of one millisecond that renews itself notes by how
much it was late: whatever kept the loop from it (a long step of its own, a collection, a thread that held the
interpreter's lock, the machine) kept everything else waiting as long. On SIGUSR1 what was seen since the last one is
written to FILE as JSON, `Seen`; the loop must be free for that.

The watch takes some 2 % of a loop that is busy anyway. A loop with nothing to do it wakes a thousand times a second,
which takes 4 % of a core; and libuv counts in whole milliseconds, so that such a loop is up to 1.1 ms late here.
"""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import uvloop

_EVERY_SECONDS = 0.001
_EDGES_MS = (2, 5, 10, 20, 50, 100)


@dataclass(slots=True)
class Seen:
    """What was seen in one stretch of time."""

    longest_ms: float = 0.0
    longest_own_ms: float = 0.0
    """CPU time that the loop's own thread took between two turns of the timer. What a stall has beyond that, others
    had: threads of this process, or the rest of the machine."""
    turns: int = 0
    """Times the timer went off."""
    late: dict[str, int] = field(default_factory=dict)
    """How often it was late by more than so many milliseconds."""
    collections: list[int] = field(default_factory=lambda: [0, 0, 0])
    """By the garbage collector, of each generation."""
    longest_collection_ms: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])


class Watch:
    """Notes how late a loop is, until the process ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop = loop
        self._path = path
        self._seen = Seen()
        self._due_ns = self._own_ns = self._collecting_ns = 0
        gc.callbacks.append(self._collected)
        loop.add_signal_handler(signal.SIGUSR1, self._tell)
        loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._own_ns = time.thread_time_ns()
        self._due_ns = time.monotonic_ns() + int(_EVERY_SECONDS * 1e9)
        self._loop.call_later(_EVERY_SECONDS, self._look)

    def _look(self) -> None:
        late_ms = (time.monotonic_ns() - self._due_ns) / 1e6
        seen = self._seen
        seen.turns += 1
        if late_ms > _EDGES_MS[0]:
            for edge in _EDGES_MS:
                if late_ms > edge:
                    seen.late[str(edge)] = seen.late.get(str(edge), 0) + 1
            seen.longest_ms = max(seen.longest_ms, late_ms)
            seen.longest_own_ms = max(seen.longest_own_ms, (time.thread_time_ns() - self._own_ns) / 1e6)
        self._begin()

    def _collected(self, phase: str, told: dict[str, int]) -> None:
        now_ns = time.monotonic_ns()
        if phase == "start":
            self._collecting_ns = now_ns
            return
        generation, took_ms = told["generation"], (now_ns - self._collecting_ns) / 1e6
        self._seen.collections[generation] += 1
        longest = self._seen.longest_collection_ms
        longest[generation] = max(longest[generation], took_ms)

    def _tell(self) -> None:
        seen, self._seen = self._seen, Seen()
        draft = self._path.with_suffix(".draft")
        draft.write_text(json.dumps(asdict(seen)))
        draft.replace(self._path)
        # Its own writing is no stall of the server's.
        self._own_ns = time.thread_time_ns()
        self._due_ns = time.monotonic_ns() + int(_EVERY_SECONDS * 1e9)


def main() -> None:
    """Run what stands behind the name of the file."""
    path = Path(sys.argv[1])
    new_loop = uvloop.new_event_loop

    def watched_loop() -> uvloop.Loop:
        loop = new_loop()
        Watch(loop, path)
        return loop

    uvloop.new_event_loop = watched_loop
    rest = sys.argv[2:]
    if rest[0] == "-m":
        sys.argv = rest[1:]
        runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = rest
        sys.path[0] = str(Path(rest[0]).parent)
        runpy.run_path(rest[0], run_name="__main__")


if __name__ == "__main__":
    main()
