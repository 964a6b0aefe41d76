"""Token-bucket arithmetic in exact integers: reserve, settle, charge, and where a bucket stands.

A bucket stores what is *used*: 0 is full, and use decays at `limit per minute` units per millisecond, 60,000 units to
a request or token. Nothing is ever rounded, so any split of time or cost gives the same level, and a changed limit
needs no conversion. Every number stays below 2^53: an engine that counts in doubles gives the same answers.

A refund at completion is not `reserved - actual`: while the request ran, refill has returned part of its reservation
already, and whoever adds both hands tokens out twice. So each dimension also counts all it ever *removed*, by refill
and by refunds, and a settlement takes back only what can still be there of the level just after its reservation
(`_correct`). A bucket that is created anew, or whose counts grow long, starts a new epoch; handles of another epoch
refund nothing.

All functions are pure: time and the name of the next epoch are arguments, states are values. A state of None is an
absent bucket, which is a full one.
"""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.decision import (
    ADMITTED,
    NEVER_FITS,
    PARALLEL_WAIT_MS,
    REFUSED,
    Admitted,
    Cost,
    Decision,
    Dimension,
    Gauge,
    Handle,
    NeverFits,
    OverBudget,
    Refused,
    Reservation,
    Scope,
    Standing,
    decision,
    standing,
)
from proxy.core.tiers import LARGEST_LIMIT, UNITS, Figures, Schedule

__all__ = [
    "EPOCH_SPAN",
    "STEP_BACK_MS",
    "UNITS",
    "Admitted",
    "Answer",
    "Cost",
    "Decision",
    "Dimension",
    "Gauge",
    "Handle",
    "NeverFits",
    "OverBudget",
    "Refused",
    "Reservation",
    "Scope",
    "Standing",
    "State",
    "advance",
    "charge",
    "decision",
    "is_full",
    "peek",
    "reserve",
    "settle",
    "standing",
]

State = tuple[int, int, int, int, int, int]
"""Epoch, last_ms, used and removed units of requests, used and removed units of tokens."""
Answer = tuple[int, ...]
"""Plain numbers; `decision` says what they mean."""
_Level = tuple[State, Figures]

STEP_BACK_MS = 2_000
"""A clock that is back by less is waited for; one that is back by this much is believed."""
EPOCH_SPAN = 2**51
"""Units removed in one epoch, after which the next begins."""
_MOST_USED = 2**52
"""A debt stops growing here, at 75 thousand million tokens, so that sums stay exact."""
_NOT_CHARGED = -1
_ADMITTED = (ADMITTED,)
_NEVER = 2**53


def advance(state: State, schedule: Schedule, now_ms: int) -> _Level:
    """The bucket and the limits as they are at `now_ms`, refilled up to then; each side of a switch at its own rate.

    The time of the result is the bucket's own: `now_ms`, or up to `STEP_BACK_MS` ahead of it while a clock that was
    set back catches up. A clock further back is adopted; neither refills anything.
    """
    epoch, last_ms, used_r, removed_r, used_t, removed_t = state
    figures, switch_ms = schedule.before.figures, schedule.switch_at_ms
    if now_ms <= last_ms:
        if last_ms - now_ms < STEP_BACK_MS:
            now_ms = last_ms
        else:
            last_ms = now_ms
    if switch_ms is not None and switch_ms <= now_ms:
        if last_ms < switch_ms:
            before = Schedule(schedule.before, schedule.before)
            return advance(advance(state, before, switch_ms)[0], schedule, now_ms)
        figures = schedule.after.figures
    elapsed_ms = now_ms - last_ms
    if not elapsed_ms:
        return (epoch, now_ms, used_r, removed_r, used_t, removed_t), figures
    back_r = elapsed_ms * figures[0]
    if back_r > used_r:  # noqa: PLR1730 - min() takes three times as long, and every decision comes by here
        back_r = used_r
    back_t = elapsed_ms * figures[2]
    if back_t > used_t:  # noqa: PLR1730 - the same
        back_t = used_t
    return (epoch, now_ms, used_r - back_r, removed_r + back_r, used_t - back_t, removed_t + back_t), figures


def reserve(
    states: Sequence[State | None],
    scopes: Sequence[Scope],
    cost: Cost,
    now_ms: int,
    epoch: int,
    in_flight: Sequence[int] = (),
) -> tuple[Answer, Sequence[State | None]]:
    """Charge `cost` to the bucket of every scope, or to none.

    `states` are the buckets in the order of `scopes`, whose names differ; `epoch` is one that no earlier state had;
    `in_flight` is how many places are taken in each scope, and may be empty where no scope has a `max_parallel`.
    Returns the answer (see `decision`) and the states to store in the same order, None for one to leave as it is. A
    refusal stores nothing but the time of a bucket whose clock was set back, without which it would never refill.

    Places are asked for last, for a bucket has an exact wait to tell; a cost of no requests takes none.
    A dimension without limit is neither checked nor charged, and what was used of it before is forgotten. One of which
    the cost takes nothing refuses nothing, be it in debt.
    """
    units_r = cost.requests * UNITS if cost.requests > 0 else 0
    units_t = cost.tokens * UNITS if cost.tokens > 0 else 0
    levels: list[_Level] = []
    fits = True
    for scope in scopes:
        state = states[len(levels)] or (epoch, now_ms, 0, 0, 0, 0)
        level = advance(state, scope.schedule, now_ms)
        levels.append(level)
        (_, _, used_r, _, used_t, _), (rate_r, capacity_r, rate_t, capacity_t) = level
        if (used_r + units_r > capacity_r and rate_r and units_r) or (
            used_t + units_t > capacity_t and rate_t and units_t
        ):
            fits = False
    refusal: Answer = ()
    if not fits:
        refusal = _refuse(levels, scopes, cost, now_ms)
    elif units_r and in_flight:
        refusal = _without_place(levels, scopes, in_flight, now_ms)
    if refusal:
        return refusal, [
            level[0] if state is not None and level[0][1] < state[1] else None
            for state, level in zip(states, levels, strict=True)
        ]
    return _admit(levels, units_r, units_t, scopes[0].schedule, now_ms, epoch)


def _admit(
    levels: Sequence[_Level], units_r: int, units_t: int, schedule: Schedule, now_ms: int, epoch: int
) -> tuple[Answer, Sequence[State | None]]:
    """The answer and the states after a charge that every level has room for; `schedule` is the first one's."""
    after: list[State] = []
    answer: Answer = ()
    for level, figures in levels:
        own_epoch, at_ms, used_r, removed_r, used_t, removed_t = level
        if removed_r > EPOCH_SPAN or removed_t > EPOCH_SPAN:
            own_epoch, removed_r, removed_t = epoch, 0, 0
        if figures[0]:
            level_r = used_r = used_r + units_r
        else:
            removed_r, used_r, level_r = removed_r + used_r, 0, _NOT_CHARGED
        if figures[2]:
            level_t = used_t = used_t + units_t
        else:
            removed_t, used_t, level_t = removed_t + used_t, 0, _NOT_CHARGED
        state = (own_epoch, at_ms, used_r, removed_r, used_t, removed_t)
        if not after:
            answer = _ADMITTED + _stand(state, figures, schedule, now_ms)
        after.append(state)
        answer += (own_epoch, removed_r, level_r, removed_t, level_t)
    return answer, after


def settle(
    state: State | None, schedule: Schedule, handle: Handle, reserved: Cost, actual: Cost, now_ms: int, epoch: int
) -> State:
    """The bucket with `actual` in the place of what `reserved` charged under `handle`.

    The excess becomes debt, whatever the epoch; the rest comes back by the V rule. `epoch` is one that no earlier
    state had.
    """
    (own_epoch, at_ms, used_r, removed_r, used_t, removed_t), _ = advance(
        state or (epoch, now_ms, 0, 0, 0, 0), schedule, now_ms
    )
    same = own_epoch == handle.epoch
    if actual.requests != reserved.requests and handle.level_requests != _NOT_CHARGED:
        room = handle.level_requests - (removed_r - handle.removed_requests) if same else 0
        back = _correct(used_r, reserved.requests, actual.requests, room)
        used_r, removed_r = used_r - back, removed_r + max(0, back)
    if actual.tokens != reserved.tokens and handle.level_tokens != _NOT_CHARGED:
        room = handle.level_tokens - (removed_t - handle.removed_tokens) if same else 0
        back = _correct(used_t, reserved.tokens, actual.tokens, room)
        used_t, removed_t = used_t - back, removed_t + max(0, back)
    return _renew((own_epoch, at_ms, used_r, removed_r, used_t, removed_t), epoch)


def _correct(used: int, reserved: int, actual: int, still_there: int) -> int:
    """Units to take off the level; negative for a debt.

    `still_there` is the level just after the reservation less all that was removed since. Counting every removal
    against the oldest content under-states what is left of the reservation, never over-states it.
    """
    unused = (max(0, reserved) - min(max(0, actual), LARGEST_LIMIT)) * UNITS
    if unused < 0:
        return -min(-unused, max(0, _MOST_USED - used))
    return max(0, min(unused, still_there, used))


def charge(state: State | None, schedule: Schedule, cost: Cost, now_ms: int, epoch: int) -> State:
    """The bucket with `cost` taken from it, whether there is room or not."""
    (own_epoch, at_ms, used_r, removed_r, used_t, removed_t), (rate_r, _, rate_t, _) = advance(
        state or (epoch, now_ms, 0, 0, 0, 0), schedule, now_ms
    )
    if rate_r:
        used_r -= _correct(used_r, 0, cost.requests, 0)
    if rate_t:
        used_t -= _correct(used_t, 0, cost.tokens, 0)
    return _renew((own_epoch, at_ms, used_r, removed_r, used_t, removed_t), epoch)


def _renew(state: State, epoch: int) -> State:
    if state[3] > EPOCH_SPAN or state[5] > EPOCH_SPAN:
        return (epoch, state[1], state[2], 0, state[4], 0)
    return state


def peek(state: State | None, schedule: Schedule, now_ms: int) -> Answer:
    """The six numbers of `standing` for this bucket."""
    level, figures = advance(state or (0, now_ms, 0, 0, 0, 0), schedule, now_ms)
    return _stand(level, figures, schedule, now_ms)


def is_full(state: State, schedule: Schedule, now_ms: int) -> bool:
    """Whether the bucket is at `now_ms` no different from an absent one; a dimension without limit does not count."""
    level, figures = advance(state, schedule, now_ms)
    return not ((figures[0] and level[2]) or (figures[2] and level[4]))


def _stand(level: State, figures: Figures, schedule: Schedule, now_ms: int) -> Answer:
    _, at_ms, used_r, _, used_t, _ = level
    rate_r, capacity_r, rate_t, capacity_t = figures
    reset_r = used_r // rate_r if rate_r else 0
    reset_t = used_t // rate_t if rate_t else 0
    switch_ms = schedule.switch_at_ms
    if switch_ms is not None and at_ms < switch_ms <= at_ms + max(reset_r, reset_t):
        reset_r = _until(used_r, None, figures, schedule, 0, at_ms)
        reset_t = _until(used_t, None, figures, schedule, 1, at_ms)
    if at_ms > now_ms:
        reset_r += at_ms - now_ms if rate_r and used_r else 0
        reset_t += at_ms - now_ms if rate_t and used_t else 0
    return (
        rate_r,
        (capacity_r - used_r) // UNITS if used_r < capacity_r else 0,
        reset_r,
        rate_t,
        (capacity_t - used_t) // UNITS if used_t < capacity_t else 0,
        reset_t,
    )


def _refuse(levels: Sequence[_Level], scopes: Sequence[Scope], cost: Cost, now_ms: int) -> Answer:
    """The answer to a cost that has no room in at least one of `levels`."""
    stands = _stand(*levels[0], scopes[0].schedule, now_ms)
    units_r = cost.requests * UNITS if cost.requests > 0 else 0
    units_t = cost.tokens * UNITS if cost.tokens > 0 else 0
    for index, (_, (rate_r, capacity_r, rate_t, capacity_t)) in enumerate(levels):
        if rate_r and units_r > capacity_r:
            return (NEVER_FITS, *stands, index, 0, capacity_r // UNITS)
        if rate_t and units_t > capacity_t:
            return (NEVER_FITS, *stands, index, 1, capacity_t // UNITS)
    units = (units_r, units_t)
    wait_ms, binding, dimension = _longest(levels, scopes, units, now_ms)
    level, figures = levels[binding]
    used, limit = level[2 + 2 * dimension], figures[2 * dimension]
    total_ms, last, which = wait_ms, binding, dimension
    # What has room until then may lose it on the way, where a switch lowers a limit.
    while wait_ms > 0 and total_ms < _NEVER and _switches(scopes, now_ms, now_ms + total_ms):
        at_ms = now_ms + total_ms
        then = [advance(level, scope.schedule, at_ms) for (level, _), scope in zip(levels, scopes, strict=True)]
        wait_ms, last, which = _longest(then, scopes, units, at_ms)
        total_ms += wait_ms
    if total_ms >= _NEVER:
        return (NEVER_FITS, *stands, last, which, scopes[last].schedule.after.figures[2 * which + 1] // UNITS)
    return (REFUSED, *stands, total_ms, binding, dimension, limit, -(-used // UNITS))


def _without_place(levels: Sequence[_Level], scopes: Sequence[Scope], in_flight: Sequence[int], now_ms: int) -> Answer:
    """The answer to a cost for which a scope has no place; empty when each has one."""
    for index, scope in enumerate(scopes):
        if scope.max_parallel is not None and in_flight[index] >= scope.max_parallel:
            stands = _stand(*levels[0], scopes[0].schedule, now_ms)
            return (REFUSED, *stands, PARALLEL_WAIT_MS, index, 2, scope.max_parallel, in_flight[index])
    return ()


def _switches(scopes: Sequence[Scope], after_ms: int, until_ms: int) -> bool:
    for scope in scopes:
        switch_ms = scope.schedule.switch_at_ms
        if switch_ms is not None and after_ms < switch_ms <= until_ms:
            return True
    return False


def _longest(
    levels: Sequence[_Level], scopes: Sequence[Scope], units: tuple[int, int], now_ms: int
) -> tuple[int, int, int]:
    """The longest wait of all scopes and dimensions, with its scope's index and its dimension; the first of equals."""
    longest, binding, dimension = 0, 0, 0
    for index, (level, figures) in enumerate(levels):
        at_ms = level[1]
        for which in (0, 1):
            wait_ms = _until(level[2 + 2 * which], units[which], figures, scopes[index].schedule, which, at_ms)
            if wait_ms and wait_ms + at_ms - now_ms > longest:
                longest, binding, dimension = wait_ms + at_ms - now_ms, index, which
    return longest, binding, dimension


def _until(used: int, cost: int | None, figures: Figures, schedule: Schedule, which: int, at_ms: int) -> int:
    """Milliseconds from `at_ms` until a dimension has room for `cost` units, or until it is full for None.

    `figures` are those that hold at `at_ms`. A wait is rounded up: not one earlier has room. The time until it is full
    is cut, as it is told. At least `_NEVER` when a full bucket would have no room either.
    """
    rate = figures[2 * which]
    wait_ms = _wait(used, cost, rate, figures[2 * which + 1])
    switch_ms = schedule.switch_at_ms
    if switch_ms is None or switch_ms <= at_ms or wait_ms < switch_ms - at_ms:
        return wait_ms
    until_switch_ms = switch_ms - at_ms
    rate_after, capacity_after = schedule.after.figures[2 * which : 2 * which + 2]
    return until_switch_ms + _wait(max(0, used - until_switch_ms * rate), cost, rate_after, capacity_after)


def _wait(used: int, cost: int | None, rate: int, capacity: int) -> int:
    if not rate or cost == 0:
        return 0
    if cost is None:
        return used // rate
    if cost > capacity:
        return _NEVER
    lacking = used + cost - capacity
    return -(-lacking // rate) if lacking > 0 else 0
