"""Buckets of which the store has lost what it was told: a restart, a failover, FLUSHALL, eviction, DEL."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.bucket import UNITS, Cost, Handle, Scope
from proxy.core.tiers import Schedule

__all__ = ["Losses"]

_MOST = 10_000


class Losses:
    """What must still be used of each bucket for this process' sake alone, and how often it was not.

    That is: what it reserved, less what it gave back, less all that can have been refilled since. Whatever others do, a
    bucket never holds less: nobody's refund takes more than what is left of their own reservation. So neither expiry
    nor a new epoch is taken for a loss. One that nothing of ours is left in goes unnoticed, and each worker counts.
    """

    def __init__(self) -> None:
        self._of_bucket: dict[tuple[str, str], tuple[int, int, int, int, int]] = {}
        """The store's time, units of requests and of tokens, and the units of each that come back in a millisecond."""
        self.noticed = 0

    def admitted(self, team: str, scopes: Sequence[Scope], cost: Cost, handles: Sequence[Handle], now_ms: int) -> None:
        """Hear what the store has admitted, by its own time."""
        of_bucket = self._of_bucket
        units_r = cost.requests * UNITS if cost.requests > 0 else 0
        units_t = cost.tokens * UNITS if cost.tokens > 0 else 0
        for index, handle in enumerate(handles):
            scope = scopes[index]
            key = (team, scope.name)
            rate_r, rate_t = _fastest(scope.schedule)
            least_r = least_t = 0
            before = of_bucket.get(key)
            if before is not None:
                at_ms, least_r, least_t, old_rate_r, old_rate_t = before
                passed_ms = now_ms - at_ms
                if passed_ms > 0:
                    least_r = max(0, least_r - passed_ms * max(rate_r, old_rate_r))
                    least_t = max(0, least_t - passed_ms * max(rate_t, old_rate_t))
            least_r = least_r + units_r if rate_r and handle.level_requests >= 0 else 0
            least_t = least_t + units_t if rate_t and handle.level_tokens >= 0 else 0
            if (least_r and handle.level_requests < least_r) or (least_t and handle.level_tokens < least_t):
                self.noticed += 1
                least_r, least_t = min(least_r, units_r), min(least_t, units_t)
            if before is None and len(of_bucket) >= _MOST:
                del of_bucket[next(iter(of_bucket))]
            of_bucket[key] = (now_ms, least_r, least_t, rate_r, rate_t)

    def settled(self, team: str, scopes: Sequence[Scope], reserved: Cost, actual: Cost) -> None:
        """Hear that a reservation is settled."""
        back_r = max(0, reserved.requests - max(0, actual.requests)) * UNITS
        back_t = max(0, reserved.tokens - max(0, actual.tokens)) * UNITS
        if not (back_r or back_t):
            return
        for scope in scopes:
            key = (team, scope.name)
            before = self._of_bucket.get(key)
            if before is not None:
                at_ms, least_r, least_t, rate_r, rate_t = before
                self._of_bucket[key] = (at_ms, max(0, least_r - back_r), max(0, least_t - back_t), rate_r, rate_t)


def _fastest(schedule: Schedule) -> tuple[int, int]:
    """The higher rate of both sides of the switch; 0 where there is no limit on one of them, and nothing stays."""
    before, after = schedule.before.figures, schedule.after.figures
    if schedule.switch_at_ms is None or before is after:
        return before[0], before[2]
    rate_r, rate_t = max(before[0], after[0]), max(before[2], after[2])
    return rate_r if before[0] and after[0] else 0, rate_t if before[2] and after[2] else 0
