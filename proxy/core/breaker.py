"""A circuit breaker: after a run of failures nothing is asked for a while, then one probe decides.

The states and what moves between them are one table (Nygard, "Release It!", 2007). Time is an argument, in whole
milliseconds of any clock that never steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["TRANSITIONS", "Breaker", "BreakerEvent", "BreakerPolicy", "BreakerState"]


class BreakerState(StrEnum):
    """Who is let through."""

    CLOSED = "closed"
    """Everyone."""
    OPEN = "open"
    """Nobody, until the rest is over."""
    HALF_OPEN = "half_open"
    """Nobody; one probe is under way."""


class BreakerEvent(StrEnum):
    """What moves a breaker."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXHAUSTED = "exhausted"
    """The failure that makes the run as long as the policy allows."""
    RESTED = "rested"
    """Somebody asks, and the rest is over."""
    OVERDUE = "overdue"
    """Somebody asks, and the probe has not reported in its time: it is taken for lost."""


_CLOSED, _OPEN, _HALF_OPEN = BreakerState

TRANSITIONS: Mapping[tuple[BreakerState, BreakerEvent], BreakerState] = {
    (_CLOSED, BreakerEvent.SUCCEEDED): _CLOSED,
    (_CLOSED, BreakerEvent.FAILED): _CLOSED,
    (_CLOSED, BreakerEvent.EXHAUSTED): _OPEN,
    # What was asked before it opened and reports now tells nothing of the present: only a probe closes.
    (_OPEN, BreakerEvent.SUCCEEDED): _OPEN,
    (_OPEN, BreakerEvent.FAILED): _OPEN,
    (_OPEN, BreakerEvent.RESTED): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.SUCCEEDED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.FAILED): _OPEN,
    (_HALF_OPEN, BreakerEvent.OVERDUE): _HALF_OPEN,
}
"""Every move there is; an event that is missing from a state cannot occur in it."""


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When to open, and for how long."""

    failures_to_open: int = 5
    """In a row, without a success between."""
    rest_ms: int = 250
    """The first rest; each probe that fails doubles it."""
    max_rest_ms: int = 5_000
    probe_ms: int = 1_000
    """A probe that has not reported after this time makes way for another."""


@dataclass(slots=True)
class Breaker:
    """One breaker. Whoever was let through reports `succeeded` or `failed`; who was cancelled may stay silent."""

    policy: BreakerPolicy = field(default_factory=BreakerPolicy)
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """Length of the present run, while closed."""
    openings: int = 0
    """How often it went from closed to open, ever."""
    until_ms: int = 0
    """When the rest is over or the probe is overdue; without meaning while closed."""
    _rest_ms: int = 0

    def admits(self, now_ms: int) -> bool:
        """Whether the one who asks may go on; while not closed, it is then the probe."""
        if self.state is _CLOSED:
            return True
        if now_ms < self.until_ms:
            return False
        self._move(BreakerEvent.RESTED if self.state is _OPEN else BreakerEvent.OVERDUE)
        self.until_ms = now_ms + self.policy.probe_ms
        return True

    def would_admit(self, now_ms: int) -> bool:
        """Whether `admits` would say yes; nothing is moved."""
        return self.state is _CLOSED or now_ms >= self.until_ms

    def asks_again_in_ms(self, now_ms: int) -> int:
        """When to come back, while not closed. While a probe is under way that is a guess: after one more rest."""
        left_ms = max(1, self.until_ms - now_ms)
        return left_ms if self.state is _OPEN else min(left_ms, self._rest_ms)

    def withdrawn(self, now_ms: int) -> None:
        """Note that the probe was given up before it could tell anything: the next to ask is the probe."""
        if self.state is _HALF_OPEN:
            self.until_ms = now_ms

    def succeeded(self) -> None:
        """Note an answer."""
        if self.state is _CLOSED and not self.failures:
            return
        self._move(BreakerEvent.SUCCEEDED)
        if self.state is _CLOSED:
            self.failures = 0

    def failed(self, now_ms: int) -> None:
        """Note that none came."""
        before = self.state
        if before is _CLOSED:
            self.failures += 1
            exhausted = self.failures >= self.policy.failures_to_open
            self._move(BreakerEvent.EXHAUSTED if exhausted else BreakerEvent.FAILED)
            self._rest_ms = self.policy.rest_ms
            self.openings += exhausted
        else:
            self._move(BreakerEvent.FAILED)
            self._rest_ms = min(self._rest_ms * 2, self.policy.max_rest_ms) if before is _HALF_OPEN else self._rest_ms
        if self.state is _OPEN and before is not _OPEN:
            self.until_ms = now_ms + self._rest_ms

    def _move(self, event: BreakerEvent) -> None:
        self.state = TRANSITIONS[self.state, event]
