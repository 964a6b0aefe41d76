"""What workers admit together while the store is away, and what it is charged with when it is back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.outcomes import NeverSent, Why
from proxy.adapters.redis.policies import Open, Share
from proxy.core import bucket
from proxy.core.bucket import UNITS, Admitted, Cost, Dimension, NeverFits, Refused, Scope, Standing
from proxy.core.errors import StoreAway
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule

AWAY = NeverSent(Why.AWAY)
NOTHING = Cost(0, 0)


class HandClock:
    ms = 1_000_000

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


def scope_of(name, *figures, places=None):
    limits = Limits(*figures)
    return Scope(name, Schedule(limits, limits), places)


def reserve(policy, scopes, cost):
    return asyncio.run(policy.reserve("a", scopes, cost, AWAY))


def store_with(clock, scope, used):
    """A store in which so much of a bucket is used."""
    store = MemoryLimiter(clock)
    store.charge("a", (scope,), used)
    return store


def standing_in(store, scope):
    return asyncio.run(store.peek("a", (scope,)))[0]


def shares(clock, count, *, seen=None, counted=None):
    made = [Share(clock, lambda rank=rank: Part(rank, count), counted or (lambda: None)) for rank in range(count)]
    for share in made:
        if seen is not None:
            share.seen("a", seen)
    return made


def admitted_at_once(policy, scope):
    count = 0
    while isinstance(reserve(policy, (scope,), Cost(1, 0)), Admitted):
        count += 1
    return count


# Together


@given(
    count=st.integers(1, 9),
    rate=st.integers(1, 400),
    capacity=st.integers(1, 400),
    used=st.integers(0, 600),
    history=st.lists(
        st.tuples(
            st.integers(0, 8),
            st.integers(0, 20_000),
            st.integers(1, 60),
            st.none() | st.integers(0, 60),
        ),
        max_size=40,
    ),
)
@settings(max_examples=150, deadline=None)
def test_all_workers_together_use_no_more_than_what_was_left_and_what_came_in(count, rate, capacity, used, history):
    clock = HandClock()
    scope = scope_of("team", None, rate, None, capacity)
    store = store_with(clock, scope, Cost(0, used))
    workers = shares(clock, count, seen=standing_in(store, scope))
    left_units, began_ms, charged = (capacity - used) * UNITS, clock.ms, 0
    for who, passed_ms, tokens, actual in history:
        clock.ms += passed_ms
        worker = workers[who % count]
        try:
            decision = reserve(worker, (scope,), Cost(0, tokens))
        except StoreAway:
            continue
        if isinstance(decision, Admitted):
            used_tokens = tokens if actual is None else min(tokens, actual)
            worker.settle(decision.reservation, Cost(0, used_tokens))
            charged += used_tokens * UNITS
        # What was in debt has first to be paid off.
        assert charged <= max(0, left_units + rate * (clock.ms - began_ms))


@given(
    st.integers(1, 6),
    st.integers(0, 60),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 15_000)), max_size=60),
)
@settings(max_examples=150, deadline=None)
def test_the_store_ends_with_at_least_what_one_bucket_would_have(count, used, history):
    """The same history in a bucket that was never away: the store, charged with what workers owe, holds no less."""
    clock = HandClock()
    scope = scope_of("team", 60)
    store = store_with(clock, scope, Cost(used, 0))
    state = bucket.charge(None, scope.schedule, Cost(used, 0), clock.ms, 1)
    workers = shares(clock, count, seen=standing_in(store, scope))
    for who, passed_ms in history:
        clock.ms += passed_ms
        if isinstance(reserve(workers[who % count], (scope,), Cost(1, 0)), Admitted):
            state = bucket.charge(state, scope.schedule, Cost(1, 0), clock.ms, 2)
    for worker in workers:
        for owed, cost in worker.owed("a"):
            store.charge("a", (owed,), cost)
    true_units = bucket.advance(state, scope.schedule, clock.ms)[0][2]
    assert store.used("a", scope).requests * UNITS >= true_units


def test_a_burst_is_parted_and_what_does_not_divide_is_not_lost():
    clock = HandClock()
    scope = scope_of("team", 22)
    full = standing_in(MemoryLimiter(clock), scope)
    assert [admitted_at_once(worker, scope) for worker in shares(clock, 4, seen=full)] == [6, 6, 5, 5]


def test_a_team_that_was_never_seen_starts_empty_and_gets_its_rate():
    clock = HandClock()
    scope = scope_of("team", 20)
    workers = shares(clock, 2)
    assert [admitted_at_once(worker, scope) for worker in workers] == [0, 0]
    clock.ms += 60_000
    assert [admitted_at_once(worker, scope) for worker in workers] == [10, 10]


def test_a_standing_under_other_limits_is_not_believed():
    clock = HandClock()
    scope = scope_of("team", 20)
    other = standing_in(MemoryLimiter(clock), scope_of("shadow", 3_500))
    (worker,) = shares(clock, 1, seen=other)
    assert admitted_at_once(worker, scope) == 0


def test_a_key_is_not_taken_to_stand_where_its_team_does():
    clock = HandClock()
    team, key = scope_of("team", 20), scope_of("key:k", 20)
    (worker,) = shares(clock, 1, seen=standing_in(MemoryLimiter(clock), team))
    worker.charge("a", (key,), Cost(1, 0))
    assert isinstance(reserve(worker, (team, key), Cost(1, 0)), Refused)


def test_decisions_are_counted():
    clock, counted = HandClock(), []
    (worker,) = shares(clock, 1, counted=lambda: counted.append(1))
    reserve(worker, (scope_of("team", 20),), Cost(1, 0))
    assert len(counted) == 1


# What clients are told


def test_a_refusal_speaks_of_the_whole_limit():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker, _) = shares(clock, 2, seen=standing_in(MemoryLimiter(clock), scope))
    assert admitted_at_once(worker, scope) == 10
    refused = reserve(worker, (scope,), Cost(1, 0))
    # A tenth of this worker's minute: the rest of the limit is not its to give.
    assert (refused.limit, refused.used, refused.wait_ms) == (20, 20, 6_000)
    assert refused.dimension is Dimension.REQUESTS
    assert (refused.standing.requests.limit, refused.standing.tokens.limit) == (20, 40_000)
    clock.ms += refused.wait_ms - 1
    assert isinstance(reserve(worker, (scope,), Cost(1, 0)), Refused)
    clock.ms += 1
    assert isinstance(reserve(worker, (scope,), Cost(1, 0)), Admitted)


def test_places_are_parted_too_and_come_back():
    clock = HandClock()
    scope = scope_of("team", places=3)
    (worker, _) = shares(clock, 2)
    first, second = (reserve(worker, (scope,), Cost(1, 0)) for _ in range(2))
    refused = reserve(worker, (scope,), Cost(1, 0))
    assert (refused.dimension, refused.limit, refused.used) == (Dimension.PARALLEL, 3, 3)
    assert worker.settle(first.reservation, Cost(1, 0))
    assert isinstance(reserve(worker, (scope,), Cost(1, 0)), Admitted)
    # The store is told meanwhile: the place comes back all the same.
    list(worker.owed("a"))
    assert not worker.settle(second.reservation, Cost(1, 0))
    assert isinstance(reserve(worker, (scope,), Cost(1, 0)), Admitted)


def test_a_question_too_large_for_a_part_is_not_answered():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker, _) = shares(clock, 2)
    with pytest.raises(StoreAway):
        reserve(worker, (scope,), Cost(1, 30_000))


def test_a_part_that_is_nothing_answers_nothing():
    clock = HandClock()
    scope = scope_of("team", 1)
    (_, worker) = shares(clock, 2)
    with pytest.raises(StoreAway):
        reserve(worker, (scope,), Cost(1, 0))
    with pytest.raises(StoreAway):
        asyncio.run(worker.peek("a", (scope,), AWAY))
    worker.charge("a", (scope,), Cost(1, 0))
    assert "a" not in worker


def test_it_knows_where_its_own_buckets_stand():
    clock = HandClock()
    scope = scope_of("team", 20)
    (worker, _) = shares(clock, 2, seen=standing_in(MemoryLimiter(clock), scope))
    reserve(worker, (scope,), Cost(1, 0))
    (standing,) = asyncio.run(worker.peek("a", (scope,), AWAY))
    assert (standing.requests.limit, standing.requests.remaining) == (20, 9)


# When the store is back


def test_the_store_is_charged_with_what_was_used_and_not_with_what_was_assumed():
    clock = HandClock()
    team, key = scope_of("team", 20), scope_of("key:k", 600)
    store = store_with(clock, team, Cost(20, 0))
    (worker,) = shares(clock, 1, seen=standing_in(store, team))
    assert isinstance(reserve(worker, (team, key), Cost(1, 0)), Refused)
    assert list(worker.owed("a")) == []
    assert isinstance(reserve(worker, (team, key), Cost(1, 0)), Refused)
    clock.ms += 6_000
    assert isinstance(reserve(worker, (team, key), Cost(1, 0)), Admitted)
    assert (worker.untold(), "a" in worker) == (("a",), True)
    assert list(worker.owed("a")) == [(team, Cost(1, 0)), (key, Cost(1, 0))]
    assert worker.untold() == ()


def test_what_ends_after_the_store_was_told_is_the_stores_to_settle_and_leaves_nothing_here():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker, _) = shares(clock, 2, seen=standing_in(MemoryLimiter(clock), scope))
    admitted = reserve(worker, (scope,), Cost(1, 100))
    assert admitted.reservation.scopes == (scope,), "a settlement in the store is by the whole limits"
    assert list(worker.owed("a")) == [(scope, Cost(1, 100))]
    assert not worker.settle(admitted.reservation, Cost(1, 900))
    assert not worker.settle(admitted.reservation, Cost(1, 900))
    # Away again: nothing of the first time is left.
    worker.seen("a", standing_in(MemoryLimiter(clock), scope))
    reserve(worker, (scope,), Cost(1, 0))
    assert list(worker.owed("a")) == [(scope, Cost(1, 0))]


def test_what_ends_before_the_store_was_told_is_settled_here():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker, _) = shares(clock, 2, seen=standing_in(MemoryLimiter(clock), scope))
    less, more = reserve(worker, (scope,), Cost(1, 500)), reserve(worker, (scope,), Cost(1, 500))
    assert worker.settle(less.reservation, Cost(1, 100))
    assert worker.settle(more.reservation, Cost(1, 900))
    assert list(worker.owed("a")) == [(scope, Cost(2, 1_000))]


@given(
    rate=st.integers(1, 400),
    capacity=st.integers(1, 400),
    used=st.integers(0, 600),
    outages=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 400)), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_a_store_that_comes_and_goes_unasked_gives_no_burst_twice(rate, capacity, used, outages):
    clock = HandClock()
    scope = scope_of("team", None, rate, None, capacity)
    store = store_with(clock, scope, Cost(0, used))
    (worker,) = shares(clock, 1, seen=standing_in(store, scope))
    left_units, began_ms, charged = (capacity - used) * UNITS, clock.ms, 0
    for passed_ms, tokens in outages:
        clock.ms += passed_ms
        if isinstance(reserve(worker, (scope,), Cost(0, tokens)), Admitted):
            charged += tokens * UNITS
        list(worker.owed("a"))
        assert charged <= max(0, left_units + rate * (clock.ms - began_ms))


def test_what_the_store_was_told_decays_here_as_it_does_there():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker,) = shares(clock, 1, seen=standing_in(MemoryLimiter(clock), scope))
    clock.ms += 3_600_000
    assert admitted_at_once(worker, scope) == 20
    list(worker.owed("a"))
    assert admitted_at_once(worker, scope) == 0
    list(worker.owed("a"))
    clock.ms += 6_000
    assert admitted_at_once(worker, scope) == 1


# Everybody, and nobody


def test_open_admits_and_counts_nothing():
    counted = []
    policy = Open(lambda: counted.append(1))
    scope = scope_of("team", 1)
    decisions = [reserve(policy, (scope,), Cost(1, 10**9)) for _ in range(5)]
    assert all(isinstance(decision, Admitted) for decision in decisions)
    assert len(counted) == 5
    assert decisions[0].standing == Standing()
    assert [policy.settle(decisions[0].reservation, NOTHING) for _ in range(2)] == [True, False]
    assert "a" not in policy
    assert list(policy.owed("a")) == []
    assert asyncio.run(policy.peek("a", (scope,), AWAY)) == (Standing(),)


def test_closed_says_that_the_store_is_away():
    with pytest.raises(StoreAway) as away:
        reserve(Closed(), (scope_of("team", 1),), Cost(1, 0))
    assert away.value.__cause__ is AWAY


def test_a_refusal_by_the_whole_is_told_even_where_the_part_is_too_small():
    clock = HandClock()
    scope = scope_of("team", 20, 40_000)
    (worker, _) = shares(clock, 2)
    never = reserve(worker, (scope,), Cost(1, 40_001))
    assert isinstance(never, NeverFits)
    assert (never.limit, never.requested, never.standing.tokens.limit) == (40_000, 40_001, 40_000)
