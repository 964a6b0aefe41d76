"""What waits in a spool, seen from outside: beside the server that writes it, and without its locks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxy.adapters.spool import Segment, Stop, read_slice, segments_in
from proxy.core.books import OffsetAstray, SpoolState

__all__ = ["SpoolLook", "look_at_spool"]

_DAMAGED = "damaged"


@dataclass(frozen=True, slots=True)
class SpoolLook:
    """What was seen."""

    state: SpoolState
    """Its `open_requests` may hold some whose event is in the database."""
    open_ids: frozenset[str]
    """Event ids of the requests that have begun, and have no event in the spool."""
    astray: tuple[OffsetAstray, ...]


def look_at_spool(spool_dir: Path, known: Mapping[str, int]) -> SpoolLook:
    """What the spool holds beyond the offsets `known` of its segments, and the offsets that cannot be.

    The offsets must have been read before: a segment grows, and is deleted only when nobody needs it. No lock is
    taken, because a server that finds a dead writer's directory locked leaves it alone. Raises `OSError`.
    """
    look = _Look(known)
    writers = 0
    for directory in _entries(spool_dir):
        if directory.name != _DAMAGED and not directory.name.startswith(".") and directory.is_dir():
            writers += 1
            for segment in _segments(directory):
                look.at(segment)
    damaged = (*look.damaged, *(path.name for path in _entries(spool_dir / _DAMAGED)))
    open_ids = frozenset(look.begun - look.ended)
    state = SpoolState(writers, look.unshipped_bytes, look.unshipped_events, len(open_ids), damaged)
    return SpoolLook(state, open_ids, tuple(look.astray))


class _Look:
    def __init__(self, known: Mapping[str, int]) -> None:
        self._known = known
        self.unshipped_bytes = 0
        self.unshipped_events = 0
        self.begun: set[str] = set()
        self.ended: set[str] = set()
        self.damaged: list[str] = []
        self.astray: list[OffsetAstray] = []

    def at(self, segment: Segment) -> None:
        """Read a segment from its beginning; one that is deleted meanwhile has been taken over."""
        shipped = max(0, self._known.get(segment.name, 0))
        if shipped > segment.size_bytes:
            why = f"the segment has {segment.size_bytes} bytes"
            self.astray.append(OffsetAstray(segment.name, shipped, why))
            shipped = 0
        try:
            _, at, stop = self._read(Segment(segment.path, shipped, closed=True), 0) if shipped else (0, 0, Stop.END)
            if stop is Stop.TORN:
                self.astray.append(OffsetAstray(segment.name, shipped, f"that is within the record at {at}"))
            if stop is not Stop.DAMAGED:
                events, end, stop = self._read(segment, at)
                self.unshipped_events += events
                self.unshipped_bytes += end - at if events else 0
        except FileNotFoundError:
            return
        if stop is Stop.DAMAGED:
            self.damaged.append(segment.name)

    def _read(self, segment: Segment, at: int) -> tuple[int, int, Stop]:
        """Take note of what stands between an offset and the end; returns the number of events, where, and why."""
        events, stop = 0, Stop.MORE
        while stop is Stop.MORE:
            part = read_slice(segment, at)
            self.begun.update(begin.event_id for begin in part.begins)
            self.ended.update(event.event_id for event in part.ends)
            events += len(part.ends)
            at, stop = part.offset, part.stop
        return events, at, stop


def _segments(directory: Path) -> list[Segment]:
    try:
        return segments_in(directory)
    except FileNotFoundError:
        return []


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []
