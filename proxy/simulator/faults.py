"""Faults that a request asks for itself, in `x-simulate-*` headers.

A proxy passes them on like any header it does not know, so a test can break one request and leave its neighbours whole.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Annotated

import msgspec

from proxy.simulator.refusal import Refusal

__all__ = ["NO_FAULTS", "Attempts", "Faults"]

_PREFIX = b"x-simulate-"
_REMEMBERED_IDS = 10_000

Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=3_600_000)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=lambda name: name.replace("_", "-")):
    """One request's wishes; header `x-simulate-cut-after: 3` is `cut_after=3`. Switches are `1` or `0`."""

    id: str | None = None
    """Ties the attempts of one request together, for `times`."""
    times: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """Only the first so many attempts with this `id` are disturbed, in any way."""
    status: Annotated[int, msgspec.Meta(ge=400, le=599)] | None = None
    code: str | None = None
    """The error code that goes with `status`, in the place of the usual one."""
    retry_after: str | None = None
    """Value of `Retry-After`, whatever it is; together with `status` or without."""
    retry_after_ms: str | None = None
    should_retry: str | None = None
    """Value of `x-should-retry`, likewise."""
    redirect: str | None = None
    """A 307 to there instead of an answer."""
    delay_ms: Milliseconds = 0
    """Before the head, on top of the latency."""
    ttft_ms: Milliseconds | None = None
    chunk_ms: Milliseconds | None = None
    reset: bool = False
    """TCP reset instead of an answer."""
    garbage: bool = False
    """Bytes that are no HTTP, and the end of the connection, instead of an answer."""
    hang: bool = False
    """No answer until the client leaves."""
    hang_after_head: bool = False
    """No more than the head of an answer until the client leaves."""
    cut_after: Count | None = None
    """The connection ends after so many chunks; a plain answer ends half-way through its body."""
    cut_inside_after: Count | None = None
    """A stream ends in the middle of a chunk of HTTP after so many whole ones."""
    error_event_after: Count | None = None
    """An error event takes the place of what follows after so many chunks."""
    malformed: bool = False
    """A body that is not JSON; in a stream, the second chunk."""
    no_usage: bool = False
    """Usage is left out, even where it was asked for."""
    no_done: bool = False
    """The stream ends as complete without `[DONE]`."""
    split: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """The stream is written this many bytes at a time, across the borders of events."""
    drip_ms: Milliseconds = 0
    """A pause after each piece of `split` bytes, of one byte where that is not given; plain answers drip too."""
    gzip: bool = False
    """The answer is compressed, whatever the client takes."""
    content_type: str | None = None

    @classmethod
    def named(cls, wishes: Iterable[tuple[str, str]]) -> Faults:
        """Make them of names as in the headers, without their beginning. Raises `ValueError`."""
        try:
            return cls.of((_PREFIX + name.encode(), value.encode()) for name, value in wishes)
        except Refusal as refusal:
            raise ValueError(refusal.message) from None

    @classmethod
    def of(cls, headers: Iterable[tuple[bytes, bytes]], otherwise: Faults | None = None) -> Faults:
        """Read them from raw headers; `otherwise` holds for a request without any.

        Raises `Refusal` 400 for a name or value that means nothing.
        """
        found: dict[str, str] = {}
        for name, value in headers:
            lowered = name.lower()
            if lowered.startswith(_PREFIX):
                found[lowered[len(_PREFIX) :].decode("latin-1")] = value.decode("latin-1")
        if not found:
            return otherwise or NO_FAULTS
        try:
            faults = msgspec.convert(found, cls, strict=False)
        except msgspec.ValidationError as error:
            raise Refusal(400, f"x-simulate headers: {error}", code="unknown_fault") from None
        if faults.times is not None and not faults.id:
            raise Refusal(400, "x-simulate-times needs x-simulate-id", code="unknown_fault")
        return faults

    @property
    def shapes_plain(self) -> bool:
        """Whether a plain answer goes out in another way than whole."""
        return self.cut_after is not None or self.hang_after_head or self.gzip or self.drip_ms > 0

    def retry_headers(self) -> dict[str, str]:
        """The headers that tell a client whether and when to come back."""
        asked = {
            "Retry-After": self.retry_after,
            "retry-after-ms": self.retry_after_ms,
            "x-should-retry": self.should_retry,
        }
        return {name: value for name, value in asked.items() if value is not None}


NO_FAULTS = Faults()


class Attempts:
    """Counts attempts by `x-simulate-id`; forgets the oldest ids past ten thousand."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, int] = OrderedDict()

    def still_faulty(self, faults: Faults) -> Faults:
        """The faults of this attempt: those asked for, or none once `times` attempts were made."""
        if faults.times is None or faults.id is None:
            return faults
        attempt = self._seen.pop(faults.id, 0) + 1
        self._seen[faults.id] = attempt
        if len(self._seen) > _REMEMBERED_IDS:
            self._seen.popitem(last=False)
        return faults if attempt <= faults.times else NO_FAULTS

    def clear(self) -> None:
        """Forget every id."""
        self._seen.clear()
