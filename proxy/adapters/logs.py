"""One line per request on standard output: canonical JSON, or a short form for a terminal."""

from __future__ import annotations

import os
import select
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from io import UnsupportedOperation
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import TextIO

import msgspec

from proxy.core.event import Outcome
from proxy.core.money import format_usd
from proxy.core.record import CacheResult, RequestRecord

__all__ = ["RequestLog", "console_line", "json_line"]

_DECIMALS = 3
_HELD_BYTES = 4 * 1024 * 1024
"""Of lines nobody has read yet: some six thousand."""
_AT_ONCE_BYTES = 65_536
_LOOK_AGAIN_SECONDS = 0.1
_NEWLINE = ord("\n")


class _Line(msgspec.Struct, gc=False):
    """What is written of a request, in this order."""

    at: str
    event: str
    request_id: str
    client_request_id: str | None
    team: str | None
    key_id: str | None
    method: str
    endpoint: str
    model: str | None
    status: int
    outcome: Outcome
    error_code: str | None
    limited: str | None
    limited_scope: str | None
    shadow_limited: str | None
    cache: CacheResult | None
    attempts: int
    tried: tuple[str, ...] | None
    upstream: str | None
    upstream_request_id: str | None
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    estimated: bool
    cost_pico_usd: int
    saved_pico_usd: int
    ttft_ms: float | None
    duration_ms: float
    upstream_ms: float
    overhead_ms: float
    queued_ms: float


_encode = msgspec.json.Encoder().encode


def json_line(record: RequestRecord) -> bytes:
    """Write a record as one JSON object. Never a body, a header's value or a key: the record has none."""
    usage = record.usage
    # By position, in the order of the fields: so many names would take as long again as the whole line does.
    line = _Line(
        _instant(record.at_ms),
        "request",
        record.request_id,
        record.client_request_id or None,
        record.team or None,
        record.key_id or None,
        record.method,
        record.endpoint,
        record.model or None,
        record.status,
        record.outcome,
        record.error_code or None,
        record.limited_dimension or None,
        record.limited_scope or None,
        record.shadow_limited or None,
        record.cache,
        record.attempts,
        record.tried if len(record.tried) > 1 else None,
        record.upstream or None,
        record.upstream_request_id or None,
        usage.input_tokens,
        usage.cached_input_tokens,
        usage.output_tokens,
        usage.reasoning_tokens,
        record.estimated,
        record.cost_pico_usd,
        record.saved_pico_usd,
        None if record.ttft_ms is None else round(record.ttft_ms, _DECIMALS),
        round(record.duration_ms, _DECIMALS),
        round(record.upstream_ms, _DECIMALS),
        round(record.overhead_ms, _DECIMALS),
        round(record.queued_ms, _DECIMALS) if record.queued_ms else 0.0,
    )
    return _encode(line)


def console_line(record: RequestRecord) -> bytes:
    """Write a record for a person at a terminal."""
    what = f"{record.team or '-'} {record.endpoint} {_printable(record.model) or '-'}"
    tokens = f"{record.usage.input_tokens}+{record.usage.output_tokens} tokens"
    cost = f"${format_usd(record.cost_pico_usd, 6)}"
    line = (
        f"{_instant(record.at_ms)} {record.status} {record.outcome:<14} {what}  {tokens} {cost} "
        f"{record.duration_ms:.0f} ms  cache={record.cache or '-'} {record.request_id}"
    )
    return line.encode("utf-8", "backslashreplace")


class RequestLog:
    """Collects lines until `call_soon` has them handed to a thread that writes.

    A reader that stalls, be it a terminal that was stopped, holds up nobody: past `held_bytes` lines are dropped, and
    `on_dropped` is told how many, from either thread; of an output that is closed or full as well.
    """

    def __init__(
        self,
        line: Callable[[RequestRecord], bytes],
        call_soon: Callable[[Callable[[], None]], object],
        out: TextIO | None = None,
        *,
        on_dropped: Callable[[int], None] = lambda _: None,
        held_bytes: int = _HELD_BYTES,
    ) -> None:
        self._line = line
        self._call_soon = call_soon
        self._out = out or sys.stdout
        self._on_dropped = on_dropped
        self._held_bytes = held_bytes
        self._lines: list[bytes] = []
        self._handed: SimpleQueue[bytes | Event] = SimpleQueue()
        # Each is written by one thread alone: no lock.
        self._handed_bytes = 0
        self._done_bytes = 0
        self._thread: Thread | None = None
        self._put_bytes = 0
        """Of the batch that is being written."""
        self._torn = False
        """A line was cut short."""
        self._given_up = False

    def write(self, record: RequestRecord) -> None:
        """Write one record, soon."""
        if not self._lines:
            self._call_soon(self.flush)
        self._lines.append(self._line(record))

    def flush(self) -> None:
        """Hand over what has been collected; does not wait."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        data = b"\n".join(lines) + b"\n"
        if self._handed_bytes - self._done_bytes + len(data) > self._held_bytes:
            self._on_dropped(len(lines))
            return
        self._handed_bytes += len(data)
        if self._thread is None:
            self._thread = Thread(target=self._write_on, name="request-log", daemon=True)
            self._thread.start()
        self._handed.put(data)

    def written(self, seconds: float) -> bool:
        """Hand over, and wait until all of it is written, for so long at most; False when it is not."""
        self.flush()
        if self._thread is None:
            return True
        reached = Event()
        self._handed.put(reached)
        return reached.wait(seconds)

    def close(self, seconds: float) -> None:
        """Write what there is, for so long at most; what is left is dropped."""
        self._given_up = not self.written(seconds)
        if self._given_up:
            left = []
            with suppress(Empty):
                while True:
                    left.append(self._handed.get_nowait())
            self._on_dropped(sum(each.count(b"\n") for each in left if isinstance(each, bytes)))

    def _write_on(self) -> None:
        while True:
            batch, reached = self._batch()
            if batch:
                try:
                    self._put(batch)
                except (OSError, ValueError):
                    # The log's reader has gone; the ledger and the metrics go on.
                    self._on_dropped(batch.count(b"\n", self._put_bytes))
                self._done_bytes += len(batch)
            if reached is not None:
                reached.set()

    def _batch(self) -> tuple[bytes, Event | None]:
        """Wait for something to write; what has come meanwhile goes out with it."""
        pieces: list[bytes] = []
        size = 0
        with suppress(Empty):
            each = self._handed.get()
            while isinstance(each, bytes):
                pieces.append(each)
                size += len(each)
                if size >= _AT_ONCE_BYTES:
                    return b"".join(pieces), None
                each = self._handed.get_nowait()
            return b"".join(pieces), each
        return b"".join(pieces), None

    def _put(self, data: bytes) -> None:
        """Write to the file beneath: its text layer is held while it writes, and the interpreter's end waits for it."""
        self._put_bytes = 0
        if self._out.closed:
            raise ValueError("closed")
        try:
            number = self._out.fileno()
        except UnsupportedOperation:
            self._out.write(data.decode())
            self._out.flush()
            return
        if self._torn:
            # As on a disk that was full for a while: what comes now is a line of its own.
            self._write(number, b"\n")
            self._put_bytes = 0
        for lines in _at_once(data) if stat.S_ISFIFO(os.fstat(number).st_mode) else (data,):
            self._write(number, lines)

    def _write(self, number: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest and not self._given_up:
            try:
                size = os.write(number, rest)
            except BlockingIOError:
                # Somebody who shares it has made it one that does not wait.
                select.select((), (number,), (), _LOOK_AGAIN_SECONDS)
                continue
            self._put_bytes += size
            self._torn = rest[size - 1] != _NEWLINE
            rest = rest[size:]


def _at_once(data: bytes) -> Iterator[bytes]:
    """Cut at the ends of lines into what a pipe takes in one piece: other workers write to the same one."""
    start = 0
    while len(data) - start > select.PIPE_BUF:
        end = data.rfind(b"\n", start, start + select.PIPE_BUF) + 1 or data.find(b"\n", start) + 1
        yield data[start:end]
        start = end
    yield data[start:]


def _instant(at_ms: int) -> str:
    return f"{_second(at_ms // 1_000)}.{at_ms % 1_000:03d}Z"


@lru_cache(maxsize=16)
def _second(unix_seconds: int) -> str:
    """A second in UTC, without its zone: remembered, since most of the requests of one fall into those before."""
    return datetime.fromtimestamp(unix_seconds, UTC).replace(tzinfo=None).isoformat()


def _printable(text: str) -> str:
    """Keep control characters, which a client chose, away from the terminal."""
    return text if text.isprintable() else repr(text)
