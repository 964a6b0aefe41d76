"""Server-sent events, read incrementally.

`feed(bytes)` gives the events that are complete, each with the very bytes it came as: nothing is split or merged.
Source of the format: WHATWG HTML, section 9.2.6 (line ends CRLF, LF or CR; an event ends at an empty line).
"""

from __future__ import annotations

import re

import msgspec

__all__ = ["Event", "EventTooLongError", "SseParser"]

# The second line end must be seen whole: a CR at the very end of what has come may be half of a CRLF.
_EVENT_END = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?=[^\n]))")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLongError(ValueError):
    """An event did not end within the parser's bound."""


class Event(msgspec.Struct, frozen=True, gc=False):
    """One event: `raw` with its closing empty line, `data` the joined values of its data fields (None: it has none)."""

    raw: bytes
    data: bytes | None


class SseParser:
    """Cuts a byte stream into events; keeps what is not complete, at most `max_event_bytes` of it."""

    __slots__ = ("_max_event_bytes", "_pending")

    def __init__(self, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._pending = b""
        self._max_event_bytes = max_event_bytes

    @property
    def pending(self) -> bytes:
        """Bytes of an event that has not ended."""
        return self._pending

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes, return the events they complete. Raises `EventTooLongError`."""
        pending = self._pending
        if not pending and chunk.find(b"\n") == len(chunk) - 2 and chunk[-1:] == b"\n" and _is_plain(chunk):
            # One event of one line, as most come.
            return [Event(chunk, chunk[6:-2])]
        buffer = pending + chunk if pending else chunk
        events: list[Event] = []
        start = 0
        if b"\r" not in buffer:
            # Every upstream we know writes bare LF: found several times faster than by the expression.
            search_from = max(0, len(pending) - 1)
            while (end := buffer.find(b"\n\n", max(start, search_from))) >= 0:
                events.append(_event(buffer[start : end + 2]))
                start = end + 2
        else:
            for match in _EVENT_END.finditer(buffer):
                events.append(_event(buffer[start : match.end()]))
                start = match.end()
        self._pending = buffer[start:]
        if len(self._pending) > self._max_event_bytes:
            raise EventTooLongError
        return events


def _is_plain(line: bytes) -> bool:
    """Whether it is one field of data up to its first LF."""
    return line.startswith(b"data: ") and b"\r" not in line


def _event(raw: bytes) -> Event:
    if raw.find(b"\n") == len(raw) - 2 and _is_plain(raw):
        return Event(raw, raw[6:-2])
    values = [
        line[5:].removeprefix(b" ") if line.startswith(b"data:") else b""
        for line in _LINE_END.split(raw)
        if line.startswith(b"data:") or line == b"data"
    ]
    return Event(raw, b"\n".join(values) if values else None)
