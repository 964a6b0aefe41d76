"""Proving the ledger: what is looked at, and what was found not to be as it should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Protocol

from proxy.core.registry import Mismatch

__all__ = ["Books", "Findings", "Misdated", "OffsetAstray", "SpoolState"]


@dataclass(frozen=True, slots=True)
class Misdated:
    """An event that is kept under another day than the one in which its id was made."""

    day: date
    event_id: str
    made_on: date


@dataclass(frozen=True, slots=True)
class OffsetAstray:
    """How far a segment of the spool is said to have been taken over, which cannot be."""

    segment: str
    offset_bytes: int
    reason: str


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What waits in the spool of this machine."""

    writers: int
    """Directories of workers, living and dead."""
    unshipped_bytes: int
    """Written and not taken over yet: of a server that runs, some always are."""
    unshipped_events: int
    open_requests: int
    """Begun and without an event: under way, or cut short by the end of their worker and not recovered yet."""
    damaged: tuple[str, ...]
    """Segments that do not hold what was written to them."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that was looked at, at one instant."""

    events: int
    cost_pico_usd: int
    """The sum over the events."""
    mismatches: Sequence[Mismatch]
    misdated: Sequence[Misdated]
    """The first of each day, when there are many."""
    astray: Sequence[OffsetAstray]
    spool: SpoolState

    @property
    def tie_out(self) -> bool:
        """Nothing was found that is not as it should be."""
        return not (self.mismatches or self.misdated or self.astray or self.spool.damaged)


class Books(Protocol):
    """The ledger as an account to be proved."""

    def verify(self) -> Findings:
        """Compare the daily totals with the events, the events with their days, the offsets with the spool."""
        ...

    def rebuild(self) -> int:
        """Make the daily totals anew from the events, in one audited transaction; returns how many there are."""
        ...
