"""The time as the simulator needs it: to read and to wait."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

from proxy.ports import Clock

__all__ = ["SystemTime", "Time"]


class Time(Clock, Protocol):
    """A clock that can also be waited on."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, and not before other tasks have had a turn."""
        ...


class SystemTime:
    """The machine's own."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000  # noqa: TID251 - this class is the clock

    def monotonic_ns(self) -> int:
        """A clock for durations, in nanoseconds."""
        return time.monotonic_ns()  # noqa: TID251 - this class is the clock

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(seconds)
