"""Every history of a small bucket: all orders of time, reservations of every size, actual uses and settlements.

Hypothesis samples long histories; this leaves no short one out. A node is what the future depends on: the level, the
level of a bucket charged with the actual use at admission, and for each open reservation its size, its actual use and
what the handle says can still be there.
"""

from collections import deque

import pytest

from proxy.core import bucket
from proxy.core.bucket import UNITS, Admitted, Cost, Handle, Scope
from proxy.core.tiers import Limits, Schedule

MINUTE_MS = 60_000


def search(capacity, most_open, overrun):
    """Visit every reachable node; yields (level, true level, open reservations) of each, in tokens."""
    limits = Limits(None, 1, None, capacity)
    schedule = Schedule(limits, limits)
    scopes = (Scope("team", schedule),)
    seen = {(0, 0, ())}
    queue = deque(seen)
    while queue:
        node = queue.popleft()
        yield node
        for following in follow(node, schedule, scopes, capacity, most_open, overrun):
            if following not in seen:
                seen.add(following)
                queue.append(following)


def follow(node, schedule, scopes, capacity, most_open, overrun):
    used, true, reservations = node
    state = (1, 0, 0, 0, used * UNITS, 0)
    later, _ = bucket.advance(state, schedule, MINUTE_MS)
    yield after(later, max(0, true - 1), reservations)
    if len(reservations) < most_open:
        for size in range(1, capacity + 1):
            cost = Cost(0, size)
            answer, states = bucket.reserve([state], scopes, cost, 0, 2)
            decision = bucket.decision("team", scopes, cost, answer)
            if isinstance(decision, Admitted):
                handle = decision.reservation.handles[0]
                still_there = handle.level_tokens // UNITS
                assert handle.removed_tokens == 0
                for actual in range(size + overrun + 1):
                    yield after(states[0], true + actual, reservations, (size, actual, still_there))
    for index, (size, actual, still_there) in enumerate(reservations):
        handle = Handle(1, 0, -1, 0, still_there * UNITS)
        settled = bucket.settle(state, schedule, handle, Cost(0, size), Cost(0, actual), 0, 2)
        yield after(settled, true, reservations[:index] + reservations[index + 1 :])


def after(state, true, reservations, *new):
    """The node of a state: what was removed on the way is taken off every reservation that saw it happen."""
    removed = state[5] // UNITS
    kept = [(size, actual, max(0, still_there - removed)) for size, actual, still_there in reservations]
    return state[4] // UNITS, true, tuple(sorted([*kept, *new]))


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
