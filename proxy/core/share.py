"""A worker's part of a limit, for when the store that all workers share is away.

The parts of all workers add up to the limit, whatever the number of workers: what Google's Doorman calls the safe
capacity. A part may be nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.decision import Scope
from proxy.core.tiers import Limits, Schedule

__all__ = ["Part", "part_of", "part_of_scope"]


@dataclass(frozen=True, slots=True)
class Part:
    """Which worker of how many; `rank` counts from 0."""

    rank: int
    workers: int


def part_of(limit: int, part: Part) -> int:
    """The worker's part of a whole number; what does not divide goes to the lowest ranks."""
    return limit // part.workers + (part.rank < limit % part.workers)


def part_of_scope(scope: Scope, part: Part) -> Scope | None:
    """The scope with the worker's part of every limit; None when one of them is nothing."""
    before, after = _part_of_limits(scope.schedule.before, part), _part_of_limits(scope.schedule.after, part)
    places = None if scope.max_parallel is None else part_of(scope.max_parallel, part)
    if before is None or after is None or places == 0:
        return None
    return Scope(scope.name, Schedule(before, after, scope.schedule.switch_at_ms), places)


def _part_of_limits(limits: Limits, part: Part) -> Limits | None:
    whole = (
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.effective_request_capacity,
        limits.effective_token_capacity,
    )
    parts = [None if limit is None else part_of(limit, part) for limit in whole]
    return None if 0 in parts else Limits(*parts)
