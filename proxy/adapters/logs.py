"""One line per request on standard output: canonical JSON, or a short form for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

import msgspec

from proxy.core.money import format_usd
from proxy.core.record import RequestRecord

__all__ = ["RequestLog", "console_line", "json_line"]

_DECIMALS = 3


def json_line(record: RequestRecord) -> str:
    """Write a record as one JSON object. Never a body, a header's value or a key: the record has none."""
    fields = {
        "at": _instant(record.at_ms),
        "event": "request",
        "request_id": record.request_id,
        "client_request_id": record.client_request_id or None,
        "team": record.team or None,
        "key_id": record.key_id or None,
        "method": record.method,
        "endpoint": record.endpoint,
        "model": record.model or None,
        "status": record.status,
        "outcome": record.outcome,
        "error_code": record.error_code or None,
        "limited": record.limited_dimension or None,
        "limited_scope": record.limited_scope or None,
        "shadow_limited": record.shadow_limited or None,
        "cache": record.cache,
        "attempts": record.attempts,
        "upstream": record.upstream or None,
        "upstream_request_id": record.upstream_request_id or None,
        "input_tokens": record.usage.input_tokens,
        "cached_input_tokens": record.usage.cached_input_tokens,
        "output_tokens": record.usage.output_tokens,
        "reasoning_tokens": record.usage.reasoning_tokens,
        "estimated": record.estimated,
        "cost_pico_usd": record.cost_pico_usd,
        "saved_pico_usd": record.saved_pico_usd,
        "ttft_ms": round(record.ttft_ms, _DECIMALS) if record.ttft_ms is not None else None,
        "duration_ms": round(record.duration_ms, _DECIMALS),
        "upstream_ms": round(record.upstream_ms, _DECIMALS),
        "overhead_ms": round(record.overhead_ms, _DECIMALS),
    }
    return msgspec.json.encode(fields).decode()


def console_line(record: RequestRecord) -> str:
    """Write a record for a person at a terminal."""
    what = f"{record.team or '-'} {record.endpoint} {_printable(record.model) or '-'}"
    tokens = f"{record.usage.input_tokens}+{record.usage.output_tokens} tokens"
    cost = f"${format_usd(record.cost_pico_usd, 6)}"
    return (
        f"{_instant(record.at_ms)} {record.status} {record.outcome:<14} {what}  {tokens} {cost} "
        f"{record.duration_ms:.0f} ms  cache={record.cache or '-'} {record.request_id}"
    )


class RequestLog:
    """Collects lines and writes them in one go each turn of the loop, so that a line costs no system call."""

    def __init__(
        self,
        line: Callable[[RequestRecord], str],
        call_soon: Callable[[Callable[[], None]], object],
        out: TextIO | None = None,
    ) -> None:
        self._line = line
        self._call_soon = call_soon
        self._out = out or sys.stdout
        self._lines: list[str] = []

    def write(self, record: RequestRecord) -> None:
        """Write one record, soon."""
        if not self._lines:
            self._call_soon(self.flush)
        self._lines.append(self._line(record))

    def flush(self) -> None:
        """Write what has been collected. A closed or full output loses lines, never requests."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            self._out.write("\n".join(lines) + "\n")
            self._out.flush()
        except (OSError, ValueError):
            # The log's reader has gone; the ledger and the metrics go on.
            pass


def _instant(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _printable(text: str) -> str:
    """Keep control characters, which a client chose, away from the terminal."""
    return text if text.isprintable() else repr(text)
