"""The clock of the store, as its answers tell."""

from __future__ import annotations

from proxy.adapters.memory.limiter import ClockSteps
from proxy.core.bucket import STEP_BACK_MS
from proxy.ports import Clock

__all__ = ["StoresClock"]

_MS = 1_000_000


class StoresClock:
    """When the store answered last by its own time, and how often that was set."""

    def __init__(self, clock: Clock) -> None:
        self.steps = ClockSteps()
        """By two seconds or more, as seen against our monotonic clock."""
        self.now_ms = 0
        self._clock = clock
        self._offset_ms: int | None = None

    def heard(self, now_ms: int) -> None:
        """Note the time of an answer."""
        if not -STEP_BACK_MS < now_ms - self.now_ms <= STEP_BACK_MS:
            self._watch(now_ms)
        self.now_ms = now_ms

    def _watch(self, now_ms: int) -> None:
        """Tell a clock that was set from a time in which nothing happened."""
        offset_ms = now_ms - self._clock.monotonic_ns() // _MS
        if self._offset_ms is not None:
            if offset_ms - self._offset_ms <= -STEP_BACK_MS:
                self.steps.back += 1
            elif offset_ms - self._offset_ms > STEP_BACK_MS:
                self.steps.ahead += 1
        self._offset_ms = offset_ms
