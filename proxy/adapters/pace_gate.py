"""aiolimiter at a rate that changes."""

from __future__ import annotations

from dataclasses import dataclass

from aiolimiter import AsyncLimiter

__all__ = ["Gate"]

_PERIOD_SECONDS = 2.0
"""Short, so that a burst is at most two seconds' worth of calls."""


@dataclass(slots=True)
class Gate:
    """Lets through one unit for each call; what is left of a burst outlives a change."""

    rate: float = 0.0
    """Calls a minute; 0: any number."""
    limiter: AsyncLimiter | None = None
    credit: bool = False
    """A unit was taken for one who then left."""

    def is_open(self) -> bool:
        """Whether a unit can be had without waiting."""
        return self.credit or self.limiter is None or self.limiter.has_capacity()

    async def pass_through(self) -> None:
        """Take a unit; waits for it."""
        if self.credit:
            self.credit = False
        elif self.limiter is not None:
            await self.limiter.acquire()

    async def turn_to(self, rate: float) -> None:
        """Go on at another rate: with what was left of a burst, and no more."""
        if rate == self.rate:
            return
        before, self.rate = self.limiter, rate
        self.limiter = _limiter_of(rate)
        if before is not None:
            used = self.limiter.max_rate - _free(before)
            if used > 0:
                await self.limiter.acquire(used)  # does not wait: it is new


def _limiter_of(rate: float) -> AsyncLimiter:
    # A bucket smaller than one call would let none through.
    per_period = rate * _PERIOD_SECONDS / 60
    return AsyncLimiter(per_period, _PERIOD_SECONDS) if per_period >= 1 else AsyncLimiter(1, 60 / rate)


def _free(limiter: AsyncLimiter) -> float:
    """Units that can be taken now, rounded down to a thousandth of all; it tells only whether so many can be."""
    least, most = 0, 1_000
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if limiter.has_capacity(limiter.max_rate * middle / 1_000) else (least, middle - 1)
    return limiter.max_rate * least / 1_000
