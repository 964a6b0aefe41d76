"""Spreads outgoing calls over time, so that upstream's own limit is not met in bursts.

aiolimiter's bucket waits and does not reject, which is right here and wrong for tenants: they are limited by
`core/bucket.py`. Each call takes one unit, so nobody starves behind a large one.
"""

from __future__ import annotations

import asyncio

from aiolimiter import AsyncLimiter

from proxy.core.errors import Overloaded

__all__ = ["Pacer"]

_PERIOD_SECONDS = 2.0
"""Short, so that a burst is at most two seconds' worth of calls."""


class Pacer:
    """At most `requests_per_minute` calls a minute; a bounded number wait, each for a bounded time."""

    def __init__(self, requests_per_minute: int, *, max_waiting: int, deadline_seconds: float) -> None:
        # A bucket smaller than one call would let none through.
        per_period = requests_per_minute * _PERIOD_SECONDS / 60
        stretch = max(1.0, 1 / per_period)
        self._limiter = AsyncLimiter(per_period * stretch, _PERIOD_SECONDS * stretch)
        self._max_waiting = max_waiting
        self._deadline_seconds = deadline_seconds
        self.waiting = 0

    async def turn(self) -> None:
        """Return when it is this call's turn. Raises `Overloaded` when too many wait, or it would take too long."""
        if self._limiter.has_capacity() and not self.waiting:
            await self._limiter.acquire()
            return
        if self.waiting >= self._max_waiting:
            raise Overloaded("too many calls wait for their turn upstream")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._deadline_seconds):
                await self._limiter.acquire()
        except TimeoutError:
            raise Overloaded("no turn upstream came in time") from None
        finally:
            self.waiting -= 1
