"""The system's clocks: the one place that reads them."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """Keeps the promises of `ports.Clock`."""

    __slots__ = ()

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        return time.time_ns() // 1_000_000  # noqa: TID251 - the one home of the wall clock

    monotonic_ns = staticmethod(time.monotonic_ns)  # noqa: TID251 - the one home of the monotonic clock
    """Nanoseconds on a clock that never steps; asked so often that a call in between is felt."""
