from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core import bucket
from proxy.core.bucket import Cost, Dimension, Scope, standing
from proxy.core.line_wait import refusal_behind
from proxy.core.tiers import Limits, Schedule

NOW_MS = 1_800_000_000_000


def scope(name="team", **limits):
    steady = Limits(**limits)
    return Scope(name, Schedule(steady, steady))


def test_behind_others_the_wait_is_of_all_of_them():
    minute = scope(requests_per_minute=60)
    state = bucket.charge(None, minute.schedule, Cost(60, 0), NOW_MS, 1)
    stands = standing(bucket.peek(state, minute.schedule, NOW_MS))
    for ahead in (0, 1, 9):
        refused = refusal_behind([minute], [stands], [(ahead, 0)], Cost(1, 0), NOW_MS)
        assert refused.wait_ms in {(ahead + 1) * 1_000, (ahead + 1) * 1_000 + 1}
        assert (refused.scope, refused.dimension, refused.limit) == ("team", Dimension.REQUESTS, 60)
        assert refused.standing == stands


def test_with_room_for_all_there_is_no_refusal():
    minute = scope(requests_per_minute=60)
    full = standing(bucket.peek(None, minute.schedule, NOW_MS))
    assert refusal_behind([minute], [full], [(59, 0)], Cost(1, 0), NOW_MS) is None
    assert refusal_behind([minute], [full], [(60, 0)], Cost(1, 0), NOW_MS).wait_ms == 1_000
    assert refusal_behind([scope()], [standing((0,) * 6)], [(10**9, 10**9)], Cost(1, 10**9), NOW_MS) is None


def test_what_nobody_takes_of_refuses_nobody():
    minute = scope(requests_per_minute=60, tokens_per_minute=60)
    state = bucket.charge(None, minute.schedule, Cost(0, 600), NOW_MS, 1)
    stands = standing(bucket.peek(state, minute.schedule, NOW_MS))
    assert refusal_behind([minute], [stands], [(3, 0)], Cost(1, 0), NOW_MS) is None
    refused = refusal_behind([minute], [stands], [(3, 1)], Cost(1, 0), NOW_MS)
    assert refused.dimension is Dimension.TOKENS, "those ahead take of it, and are waited for"
    assert refused.wait_ms >= 541_000


def test_the_scope_that_is_longest_waited_for_is_named():
    team, key = scope(requests_per_minute=600), scope("key:k", tokens_per_minute=60)
    states = [
        bucket.charge(None, team.schedule, Cost(600, 0), NOW_MS, 1),
        bucket.charge(None, key.schedule, Cost(0, 60), NOW_MS, 1),
    ]
    stands = [
        standing(bucket.peek(state, each.schedule, NOW_MS)) for state, each in zip(states, (team, key), strict=True)
    ]
    refused = refusal_behind([team, key], stands, [(2, 20), (2, 20)], Cost(1, 5), NOW_MS)
    assert (refused.scope, refused.dimension, refused.requested) == ("key:k", Dimension.TOKENS, 5)
    assert refused.wait_ms in {25_000, 25_001}
    assert refused.standing is stands[0]


@st.composite
def lines(draw):
    """A capacity, and what those of a line ask for, all of which fits into it."""
    capacity = draw(st.integers(1, 500))
    return capacity, draw(st.lists(st.integers(1, capacity), min_size=1, max_size=12))


@given(
    rate=st.integers(1, 10_000),
    line=lines(),
    used=st.integers(0, 700),
    passed_ms=st.integers(0, 100_000),
)
@settings(max_examples=300, deadline=None)
def test_it_is_when_the_limiter_admits_the_last_of_a_line(rate, line, used, passed_ms):
    """Each of a line asks when the one before was admitted and its wait is over, as `bucket.reserve` says."""
    capacity, costs = line
    one = scope(tokens_per_minute=rate, token_capacity=capacity)
    state = bucket.charge(None, one.schedule, Cost(0, used), NOW_MS - passed_ms, 1)
    stands = standing(bucket.peek(state, one.schedule, NOW_MS))
    *ahead, last = costs
    told = refusal_behind([one], [stands], [(len(ahead), sum(ahead))], Cost(0, last), NOW_MS)
    at_ms = NOW_MS
    for epoch, tokens in enumerate(costs, 2):
        while True:
            answer, (after,) = bucket.reserve([state], [one], Cost(0, tokens), at_ms, epoch)
            if answer[0] == bucket.ADMITTED:
                break
            at_ms += answer[7]
        state = after
    waited_ms = at_ms - NOW_MS
    told_ms = 0 if told is None else told.wait_ms
    # Who is admitted at a whole millisecond may find the bucket full for a part of one before.
    assert told_ms - 1 <= waited_ms <= told_ms + len(ahead)
