"""What a simulated upstream has seen and sent, for a test to read."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, deque

import msgspec

__all__ = ["Record", "Stats"]

_KEPT_RECORDS = 1_000
_SECRET_HEADERS = frozenset({"authorization", "api-key"})


class Record(msgspec.Struct):
    """One request to the API."""

    path: str
    query: str
    method: str = "POST"
    body_bytes: int = 0
    """Length of the request's body."""
    body_sha256: str = ""
    """Of those bytes, in hexadecimal digits."""
    status: int = 0
    """0: the connection ended without an answer."""
    stream: bool = False
    input_tokens: int = 0
    """Prompt tokens of the answer's usage."""
    output_tokens: int = 0
    """Completion tokens of the answer's usage, whether or not all were sent."""
    output_tokens_sent: int = 0
    """Of those, the ones written to the client."""
    chunks_sent: int = 0
    completed: bool = False
    """The answer was sent to its end, errors included; not when a client left or a fault broke it off."""
    cut_by_client: bool = False


class Stats:
    """Counts since the start or the last reset, and the last thousand requests in the order in which they ended."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.clear()

    def clear(self) -> None:
        """Start over; requests in flight stay in flight."""
        self.requests = 0
        self.streams = 0
        self.cut_by_client = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.output_tokens_sent = 0
        self.by_status: Counter[int] = Counter()
        self.records: deque[Record] = deque(maxlen=_KEPT_RECORDS)
        self.last_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.last_body = b""

    def begin(self, path: str, query: str, headers: tuple[tuple[bytes, bytes], ...], method: str = "POST") -> Record:
        """Count a request that has come."""
        self.requests += 1
        self.in_flight += 1
        self.last_headers = headers
        return Record(path, query, method)

    def end(self, record: Record) -> None:
        """Count how it ended. Tokens count as output when the whole answer was sent, as sent in any case."""
        self.in_flight -= 1
        self.by_status[record.status] += 1
        self.streams += record.stream
        self.cut_by_client += record.cut_by_client
        self.input_tokens += record.input_tokens
        self.output_tokens += record.output_tokens if record.completed else 0
        self.output_tokens_sent += record.output_tokens_sent
        self.records.append(record)

    def body(self) -> bytes:
        """All of it as JSON. Credentials appear as the first 16 digits of the SHA-256 of their header's value."""
        return msgspec.json.encode(
            {
                "requests": self.requests,
                "in_flight": self.in_flight,
                "streams": self.streams,
                "cut_by_client": self.cut_by_client,
                "by_status": {str(status): count for status, count in sorted(self.by_status.items())},
                "input_tokens": self.input_tokens,
                "output_tokens": self.output_tokens,
                "output_tokens_sent": self.output_tokens_sent,
                "seen_headers_last": [_shown(name, value) for name, value in self.last_headers],
                "last_body_base64": base64.b64encode(self.last_body).decode(),
                "records": list(self.records),
            }
        )


def _shown(name: bytes, value: bytes) -> tuple[str, str]:
    text = name.decode("latin-1")
    if text.lower() in _SECRET_HEADERS:
        return text, f"sha256:{hashlib.sha256(value).hexdigest()[:16]}"
    return text, value.decode("latin-1")
