"""Who is next: first come, first served within a team, and by weight between teams.

Start-time fair queueing (Goyal, Vin and Cheng, 1996) with requests of one size. Every line has a start tag; the
smallest is served, becomes the virtual time, and moves on by one request over the team's weight. A team that comes
starts at the virtual time and has saved up nothing; one that left after it was served is remembered until the others
have caught up, so that asking one at a time gains nothing either.

The bound: over any span in which two teams wait all the time, what they are served, each divided by its weight, differs
by at most one request of each: `|a / wa - b / wb| <= 1 / wa + 1 / wb`. A single request of a team that has not been
served waits for one request of each other team at most, and any request for as many of another as their weights say,
and one. Tags are whole numbers: nothing is ever rounded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import StrEnum
from heapq import heapify, heappop, heappush
from math import lcm
from typing import Generic, TypeVar

from proxy.core.principal import HEAVIEST_WEIGHT

__all__ = ["Entry", "FairQueue", "QueueRefusal"]


_REQUEST = lcm(*range(1, HEAVIEST_WEIGHT + 1))
"""One request in virtual time: every weight divides it."""
_SWEEP_FROM = 64

T = TypeVar("T")


class QueueRefusal(StrEnum):
    """Why one is not let into a queue, or out of it unserved; also the label `reason` of the metric."""

    FULL = "full"
    """Too many wait already, or had to make room for a team that has fewer."""
    TOO_LONG = "too_long"
    """Its turn would come too late."""
    DEADLINE = "deadline"
    """Its turn has not come in time."""
    SHUTDOWN = "shutdown"


class Entry(Generic[T]):
    """A place in the queue; compared by identity."""

    __slots__ = ("item", "line", "waits")

    def __init__(self, item: T, line: _Line[T]) -> None:
        self.item = item
        self.line = line
        self.waits = True
        """Neither served nor removed."""


class _Line(Generic[T]):
    """Those of one team, oldest first, with the places between them that were given up."""

    __slots__ = ("entries", "start", "tag", "team", "waiting", "weight")

    def __init__(self, team: str, start: int) -> None:
        self.team = team
        self.start = start
        """When its first is due, in virtual time."""
        self.tag = -1
        """Which of the heap's tuples is the line's; -1: none."""
        self.weight = 1
        self.waiting = 0
        self.entries: deque[Entry[T]] = deque()

    def first(self) -> Entry[T]:
        while not self.entries[0].waits:
            self.entries.popleft()
        return self.entries[0]

    def last(self) -> Entry[T]:
        while not self.entries[-1].waits:
            self.entries.pop()
        return self.entries[-1]

    def tidy(self) -> None:
        """Keep the places that were given up from outnumbering the others."""
        if len(self.entries) > 2 * self.waiting + 8:
            self.entries = deque(entry for entry in self.entries if entry.waits)


class FairQueue(Generic[T]):
    """At most `most` entries. Every operation takes O(log teams), removal O(1), both amortised."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._waiting = 0
        self._now = 0
        """Virtual time: the start of the latest that was served."""
        self._lines: dict[str, _Line[T]] = {}
        self._heap: list[tuple[int, int, _Line[T]]] = []
        self._tags = 0
        self._sweep_at = _SWEEP_FROM
        self._of_length: dict[int, dict[str, _Line[T]]] = {}
        self._longest = 0

    def __len__(self) -> int:
        """Entries that wait."""
        return self._waiting

    def waiting(self, team: str) -> int:
        """Entries of one team."""
        line = self._lines.get(team)
        return line.waiting if line is not None else 0

    @property
    def longest(self) -> int:
        """Entries of the team that has most."""
        return self._longest

    def remembered(self) -> int:
        """Teams something is held of, waiting or not."""
        return len(self._lines)

    def push(self, team: str, item: T, weight: int = 1) -> Entry[T] | None:
        """Line up behind the team's others; None: the queue is full. The latest weight holds for the whole line."""
        if self._waiting >= self.most:
            return None
        line = self._lines.get(team)
        if line is None:
            self._sweep()
            line = self._lines[team] = _Line(team, self._now)
        line.weight = min(HEAVIEST_WEIGHT, max(1, weight))
        entry = Entry(item, line)
        line.entries.append(entry)
        self._count(line, 1)
        if line.tag < 0:
            line.start = max(line.start, self._now)
            self._enter(line)
        return entry

    def make_room(self, team: str, waiting: int | None = None) -> Entry[T] | None:
        """Take out the youngest of the longest line, for a team whose line would be shorter all the same.

        `waiting`: what the team has in this queue and in others that share its places.
        """
        if (self.waiting(team) if waiting is None else waiting) + 1 >= self._longest:
            return None
        entry = next(iter(self._of_length[self._longest].values())).last()
        self.remove(entry)
        return entry

    def first(self) -> Entry[T] | None:
        """Whose turn it is; None: nobody waits."""
        while self._heap:
            _, tag, line = self._heap[0]
            if line.tag == tag and line.waiting:
                return line.first()
            heappop(self._heap)
            if line.tag == tag:
                line.tag = -1
        return None

    def first_of(self, team: str) -> Entry[T] | None:
        """Who of a team is its first."""
        line = self._lines.get(team)
        return line.first() if line is not None and line.waiting else None

    def ahead_of(self, entry: Entry[T]) -> Iterator[T]:
        """The items before one in its line, one by one; takes as long as there are."""
        for each in entry.line.entries:
            if each is entry:
                return
            if each.waits:
                yield each.item

    def serve(self, entry: Entry[T]) -> None:
        """Take out the first of a team as served: the team pays for it with its next turn."""
        line = entry.line
        self._now = max(self._now, line.start)
        line.start += _REQUEST // line.weight
        line.tag = -1
        self._take_out(entry)
        if line.waiting:
            self._enter(line)

    def remove(self, entry: Entry[T]) -> bool:
        """Take out one that has left; False: it does not wait any more."""
        if not entry.waits:
            return False
        self._take_out(entry)
        return True

    def drain(self) -> list[Entry[T]]:
        """Take out all, in the order of their turns."""
        drained = []
        while (entry := self.first()) is not None:
            self.serve(entry)
            drained.append(entry)
        return drained

    def _take_out(self, entry: Entry[T]) -> None:
        entry.waits = False
        self._count(entry.line, -1)
        entry.line.tidy()
        if not self._waiting:
            # Nobody is behind anybody.
            self._lines.clear()
            self._heap.clear()
            self._of_length.clear()
            self._now, self._sweep_at, self._longest = 0, _SWEEP_FROM, 0

    def _enter(self, line: _Line[T]) -> None:
        self._tags += 1
        line.tag = self._tags
        heappush(self._heap, (line.start, line.tag, line))
        if len(self._heap) > 2 * len(self._lines) + _SWEEP_FROM:
            self._heap = [each for each in self._heap if each[2].tag == each[1]]
            heapify(self._heap)

    def _count(self, line: _Line[T], step: int) -> None:
        """Keep the lines by their lengths, so that the longest is at hand."""
        if line.waiting:
            del self._of_length[line.waiting][line.team]
        line.waiting += step
        self._waiting += step
        if line.waiting:
            self._of_length.setdefault(line.waiting, {})[line.team] = line
            self._longest = max(self._longest, line.waiting)
        while self._longest and not self._of_length.get(self._longest):
            self._of_length.pop(self._longest, None)
            self._longest -= 1

    def _sweep(self) -> None:
        """Forget the teams that have nobody here and owe the others nothing."""
        if len(self._lines) < self._sweep_at:
            return
        for team, line in tuple(self._lines.items()):
            if not line.waiting and line.start <= self._now:
                line.tag = -1
                del self._lines[team]
        self._sweep_at = max(_SWEEP_FROM, 2 * len(self._lines))
