"""A worker's part of a limit, for when the store that all workers share is away.

The parts of all workers add up to the limit, whatever the number of workers: what Google's Doorman calls the safe
capacity. A part may be nothing.

Why all workers and the store together let no more than `capacity + rate x T` pass in any span of T:

* Until it went away the store gave at most what it had. Whatever a worker saw of a bucket, another may have had all of
  it since; so with more than one worker a part starts empty, and has its part of the rate from when this worker has
  found the store away for `notice_ms` (`opening`). By then it serves nobody, and parts of the rate add up to the rate.
* A part owes the store what it gave, and that decays here only once all the store still held has decayed there
  (`owing`): charged with it, the store holds no less than one bucket that never was away.
* A worker that is back cannot know what others have not told yet. So it leaves room for all that they may have given
  since it last heard of the store (`kept_for_others`), for as long as a worker may be later than another. `notice_ms`
  is as long as a worker takes to find the store away, so an absence in which anybody gave anything is known to all.

It holds where the store serves everybody or nobody and stays for `LATER_MS` once it is back, and every worker finds it
back within that time and is one of the number that all last saw. A worker that is cut off alone gives its part beside
what others get from the store, and charges it when it is back. One that is alone needs no caution: nobody else can have
had anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.core.bucket import State, advance
from proxy.core.decision import Scope
from proxy.core.tiers import UNITS, Limits, Schedule

__all__ = [
    "LATER_MS",
    "Away",
    "Part",
    "credit_ms",
    "kept_for_others",
    "opening",
    "owing",
    "part_of",
    "part_of_scope",
]

LATER_MS = 5_000
"""How much later than another a worker may find that the store is back."""
_IN_THE_AIR_MS = 250
"""How much later than the store's last act an answer may be read."""


@dataclass(frozen=True, slots=True)
class Part:
    """Which worker of how many; `rank` counts from 0."""

    rank: int
    workers: int
    changes: int = field(default=0, compare=False)
    """How often others had come or gone by then."""

    def still_is(self, part: Part) -> bool:
        """Whether nobody came or went between the two."""
        return self == part and self.changes == part.changes


@dataclass(frozen=True, slots=True)
class Away:
    """An absence of the store as one worker sees it, in milliseconds up to now."""

    unheard_ms: int
    """Since the last answer before it."""
    failing_ms: int
    """Since the first command that failed."""
    proven_ms: int
    """From then until the store was last found away: between two failures it may have served others."""
    back_ms: int | None = None
    """Since the first answer after it; None while there is none."""


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


def credit_ms(away: Away | None, notice_ms: int) -> int:
    """How long a part has had its rate; negative while that is still to come."""
    if away is None:
        return -notice_ms
    lasted_ms = away.failing_ms - notice_ms
    # Only an absence that was long enough for all to find it is one.
    return lasted_ms if away.proven_ms >= notice_ms - _IN_THE_AIR_MS else min(0, lasted_ms)


def opening(own: Scope, debt: tuple[int, int], had_ms: int, now_ms: int) -> State:
    """A part's bucket that nobody has used yet: empty at first, and refilled at its rate since.

    `had_ms` is how long it has had its rate, as `credit_ms` says; `debt` its part, in units of
    requests and of tokens, of what the store was seen to hold above the whole capacity.
    """
    rate_r, capacity_r, rate_t, capacity_t = own.schedule.limits_at(now_ms).figures
    ahead_ms = max(0, -had_ms)
    used_r, used_t = capacity_r + debt[0] + rate_r * ahead_ms, capacity_t + debt[1] + rate_t * ahead_ms
    return advance((0, now_ms - max(0, had_ms), used_r, 0, used_t, 0), own.schedule, now_ms)[0]


def owing(rate: int, capacity: int, whole: tuple[int, int], part: Part, used: int, given: int) -> int:
    """Units that a part is to charge the store with, of the `given` ones it has not been told of.

    `used` is the level of the part's bucket, which opened as if all of it were used: what was given decays only once
    that has, and by then all that the store held has. Where rounding makes the part full sooner than the whole is, and
    where others were served before this worker noticed, it decays too early: that much is added, up to what was given.
    `rate` and `capacity` are the part's, `whole` those of all.
    """
    if part.workers > 1 and given:
        all_rate, all_capacity = whole
        used += max(0, -(-rate * all_capacity // all_rate) - capacity) + rate * LATER_MS
    return min(given, used)


def kept_for_others(limit: int, capacity: int, part: Part, away: Away, notice_ms: int) -> int:
    """Requests or tokens of the whole bucket that others may have given and the store may not know of, rounded up.

    No more than their parts can hold by the time the store was back, and their part of the rate from then on.
    """
    others = limit - part_of(limit, part)
    counted_ms = max(0, away.unheard_ms - notice_ms + _IN_THE_AIR_MS)
    since_ms = min(counted_ms, away.back_ms or 0)
    most = (capacity - part_of(capacity, part)) * UNITS
    return -(-(min(others * (counted_ms - since_ms), most) + others * since_ms) // UNITS)
