"""Points in time as programs are shown them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, overload

from msgspec import Meta

__all__ = ["Instant", "instant_of"]

Instant = Annotated[datetime, Meta(tz=True, description="RFC 3339, to the second, in UTC.")]


@overload
def instant_of(at_ms: int) -> datetime: ...
@overload
def instant_of(at_ms: None) -> None: ...
def instant_of(at_ms: int | None) -> datetime | None:
    """The second (UTC) that a unix time in milliseconds lies in; None for none."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms // 1_000, UTC)
