"""Retries are a share of the requests: an outage is not multiplied by those who ask again.

For each upstream the requests and the retries of the last ten seconds are counted, and a retry is made while retries
are no more than a share of requests and a floor, which lets a quiet proxy retry at all. Finagle has the same budget
(`RetryBudget`, Twitter: ten seconds, 20 %, a floor of ten a second); Google's SRE book (ch. 21) says why. Integers; the
time is an argument, in milliseconds of a clock that does not go back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["SECONDS", "RetryBudget"]

SECONDS = 10
"""How much of the past counts."""


@dataclass(slots=True)
class RetryBudget:
    """The budget of one upstream: whenever a retry is made, `retries <= requests * percent / 100 + 10 s * floor`."""

    percent: int = 20
    floor_per_second: int = 5
    _requests: list[int] = field(default_factory=lambda: [0] * SECONDS)
    _retries: list[int] = field(default_factory=lambda: [0] * SECONDS)
    _second: int = 0

    def requested(self, now_ms: int) -> None:
        """Note a request: the first call it makes here."""
        self._move_to(now_ms // 1_000)
        self._requests[self._second % SECONDS] += 1

    def take(self, now_ms: int) -> bool:
        """Note one more retry, if it stays within the budget; False: it must not be made."""
        self._move_to(now_ms // 1_000)
        retries = sum(self._retries) + 1
        if retries * 100 > sum(self._requests) * self.percent + self.floor_per_second * SECONDS * 100:
            return False
        self._retries[self._second % SECONDS] += 1
        return True

    def _move_to(self, second: int) -> None:
        """Forget the seconds that have become too old."""
        if second <= self._second:
            return
        for passed in range(self._second + 1, min(second, self._second + SECONDS) + 1):
            self._requests[passed % SECONDS] = self._retries[passed % SECONDS] = 0
        self._second = second
