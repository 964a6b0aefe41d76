"""Tiers: which limits hold at an instant.

A tier is data, a list of phases; a team passes through them from the moment it was put on the tier.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits", "Phase", "Schedule", "Tier"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The two rates of a bucket and its burst; None means unlimited.

    A capacity of None is one minute's worth of the rate.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    request_capacity: int | None = None
    token_capacity: int | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """Limits that hold for `lasts_ms` milliseconds, or from then on when None."""

    limits: Limits
    lasts_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Limits around the next switch, so that the store's clock decides which side of it a request is on.

    `before` holds at every instant < `switch_at_ms`, `after` from that millisecond on. No switch: `before` holds.
    """

    before: Limits
    after: Limits
    switch_at_ms: int | None = None

    def limits_at(self, now_ms: int) -> Limits:
        """The limits that hold at `now_ms` (unix milliseconds)."""
        if self.switch_at_ms is not None and now_ms >= self.switch_at_ms:
            return self.after
        return self.before


@dataclass(frozen=True, slots=True)
class Tier:
    """A named list of phases; the last one is without end."""

    name: str
    phases: tuple[Phase, ...]
