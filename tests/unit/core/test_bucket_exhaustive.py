"""Every history of a small bucket: all orders of time, reservations of every size, actual uses and settlements.

Hypothesis samples long histories; this leaves no short one out. A node is what the future depends on: the level, the
level of a bucket charged with the actual use at admission, and for each open reservation its size, its actual use and
what the handle says can still be there.
"""

from collections import deque
from functools import cache

import pytest

from proxy.core import bucket
from proxy.core.bucket import UNITS, Admitted, Cost, Handle, Scope
from proxy.core.tiers import Limits, Schedule

MINUTE_MS = 60_000


class Bucket:
    """A bucket of tokens that refills by one a minute; each step is taken once from each level, histories share it."""

    def __init__(self, capacity):
        limits = Limits(None, 1, None, capacity)
        self._schedule = Schedule(limits, limits)
        self._scopes = (Scope("team", self._schedule),)
        self.waited, self.reserved, self.settled = map(cache, (self._waited, self._reserved, self._settled))

    def _waited(self, used):
        later, _ = bucket.advance(_at(used), self._schedule, MINUTE_MS)
        return _found(later)

    def _reserved(self, used, size):
        """What is found afterwards, and what the handle says is there; None for a refusal."""
        cost = Cost(0, size)
        answer, states = bucket.reserve([_at(used)], self._scopes, cost, 0, 2)
        decision = bucket.decision("team", self._scopes, cost, answer)
        if not isinstance(decision, Admitted):
            return None
        (handle,) = decision.reservation.handles
        assert handle.removed_tokens == 0
        return _found(states[0]), handle.level_tokens // UNITS

    def _settled(self, used, size, actual, still_there):
        handle = Handle(1, 0, -1, 0, still_there * UNITS)
        return _found(bucket.settle(_at(used), self._schedule, handle, Cost(0, size), Cost(0, actual), 0, 2))


def _at(used):
    return 1, 0, 0, 0, used * UNITS, 0


def _found(state):
    """The level of a state, and what was removed on the way."""
    return state[4] // UNITS, state[5] // UNITS


def search(capacity, most_open, overrun):
    """Visit every reachable node; yields (level, true level, open reservations) of each, in tokens."""
    steps = Bucket(capacity)
    seen = {(0, 0, ())}
    queue = deque(seen)
    while queue:
        node = queue.popleft()
        yield node
        for following in follow(node, steps, capacity, most_open, overrun):
            if following not in seen:
                seen.add(following)
                queue.append(following)


def follow(node, steps, capacity, most_open, overrun):
    used, true, reservations = node
    yield after(steps.waited(used), max(0, true - 1), reservations)
    if len(reservations) < most_open:
        for size in range(1, capacity + 1):
            reserved = steps.reserved(used, size)
            if reserved is not None:
                found, still_there = reserved
                for actual in range(size + overrun + 1):
                    yield after(found, true + actual, reservations, (size, actual, still_there))
    for index, reservation in enumerate(reservations):
        settled = steps.settled(used, *reservation)
        yield after(settled, true, reservations[:index] + reservations[index + 1 :])


def after(found, true, reservations, *new):
    """The node of a level: what was removed on the way is taken off every reservation that saw it happen."""
    used, removed = found
    if removed:
        reservations = [(size, actual, max(0, still_there - removed)) for size, actual, still_there in reservations]
    return used, true, tuple(sorted([*reservations, *new]))


@pytest.mark.parametrize(
    ("capacity", "most_open", "nodes"), [(3, 3, 4_665), (3, 4, 21_676), (4, 3, 26_983), (5, 3, 116_352)]
)
def test_no_history_with_upper_bounds_brings_the_level_below_the_truth(capacity, most_open, nodes):
    visited = 0
    for used, true, reservations in search(capacity, most_open, overrun=0):
        assert used >= true, reservations
        assert true <= capacity
        visited += 1
    assert visited == nodes


@pytest.mark.parametrize(
    ("capacity", "most_open", "overrun", "nodes"), [(3, 2, 2, 3_055), (3, 3, 1, 15_850), (4, 2, 1, 5_172)]
)
def test_no_history_with_overruns_leaves_the_level_below_the_truth_once_all_have_settled(
    capacity, most_open, overrun, nodes
):
    visited = 0
    for used, true, reservations in search(capacity, most_open, overrun):
        if not reservations:
            assert used >= true
        visited += 1
    assert visited == nodes
