"""What one worker decides by its part while the store is away, and what the store is charged with when it is back."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.outcomes import NeverSent, Why
from proxy.adapters.redis.share import Share, _used
from proxy.core import bucket
from proxy.core.bucket import UNITS, Admitted, Cost, Dimension, NeverFits, Refused, Scope
from proxy.core.errors import StoreAway
from proxy.core.share import LATER_MS, Away, Part
from proxy.core.tiers import DEFAULT_TIERS, Limits, Schedule

NEVER_SENT = NeverSent(Why.AWAY)
NOTICE_MS = 1_000
ONE, NOTHING = Cost(1, 0), Cost(0, 0)


class HandClock:
    ms = 1_000_000

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


def scope_of(name, *figures, places=None):
    limits = Limits(*figures)
    return Scope(name, Schedule(limits, limits), places)


class Worker:
    """A share, and the absence that it is told of."""

    def __init__(self, part, clock=None, counted=None):
        self.clock = clock or HandClock()
        self.part = part
        self.away = None
        self.share = Share(
            self.clock, lambda: self.part, counted or (lambda: None), away=lambda _: self.away, notice_ms=NOTICE_MS
        )

    def has_been_away(self, ms):
        self.away = Away(ms, ms, ms)

    def pass_ms(self, ms):
        self.clock.ms += ms
        if self.away is not None:
            self.has_been_away(self.away.failing_ms + ms)

    def reserve(self, *scopes, cost=ONE):
        return asyncio.run(self.share.reserve("a", scopes, cost, NEVER_SENT))

    def admits(self, *scopes, cost=ONE):
        return isinstance(self.reserve(*scopes, cost=cost), Admitted)

    def admitted_at_once(self, *scopes):
        count = 0
        while self.admits(*scopes):
            count += 1
        return count

    def sees(self, store, *scopes, cost=NOTHING, overtaken=False):
        """Ask the store and hear its decision."""
        decision = asyncio.run(store.reserve("a", scopes, cost))
        self.share.seen("a", scopes, decision, overtaken=overtaken)
        return decision

    def owed(self):
        return list(self.share.owed("a"))


def alone(store_used, *scopes):
    """A worker that is alone and has seen the store, in which so much is used of each scope."""
    worker = Worker(Part(0, 1))
    store = MemoryLimiter(worker.clock)
    store.charge("a", scopes, store_used)
    worker.sees(store, *scopes)
    return worker, store


# With others


def test_a_part_starts_empty_whatever_was_seen_and_gets_its_rate():
    team = scope_of("team", 20)
    for rank in range(2):
        worker = Worker(Part(rank, 2))
        worker.sees(MemoryLimiter(worker.clock), team)
        worker.has_been_away(0)
        assert worker.admitted_at_once(team) == 0
        worker.pass_ms(NOTICE_MS + 5_999)
        assert worker.admitted_at_once(team) == 0
        worker.pass_ms(1)
        assert worker.admitted_at_once(team) == 1
        worker.pass_ms(600_000)
        assert worker.admitted_at_once(team) == 10


def test_a_free_team_waits_thirteen_seconds_for_the_first_at_each_of_four_workers():
    free = Scope("team", DEFAULT_TIERS["free"].schedule(0, 0))
    for rank in range(4):
        worker = Worker(Part(rank, 4))
        worker.has_been_away(0)
        first = worker.reserve(free, cost=Cost(1, 1_500))
        assert (first.wait_ms, first.dimension) == (NOTICE_MS + 12_000, Dimension.REQUESTS)
        worker.pass_ms(first.wait_ms - 1)
        assert not worker.admits(free, cost=Cost(1, 1_500))
        worker.pass_ms(1)
        assert worker.admits(free, cost=Cost(1, 1_500))
        assert worker.reserve(free, cost=Cost(1, 10_000)).dimension is Dimension.TOKENS
        with pytest.raises(StoreAway):
            worker.reserve(free, cost=Cost(1, 10_001))


def test_a_burst_is_parted_and_what_does_not_divide_is_not_lost():
    team, admitted = scope_of("team", 22), []
    for rank in range(4):
        worker = Worker(Part(rank, 4))
        worker.has_been_away(NOTICE_MS + 60_000)
        admitted.append(worker.admitted_at_once(team))
    assert admitted == [6, 6, 5, 5]


def test_a_key_with_limits_of_its_own_is_not_starved():
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 30_000)
    assert worker.admitted_at_once(scope_of("team", 600), scope_of("key:k", 8)) == 2
    assert worker.admitted_at_once(scope_of("team", 600), scope_of("key:other", 8)) == 2


def test_an_absence_that_nobody_knows_of_gives_its_rate_from_the_first_decision():
    team = scope_of("team", 20)
    worker = Worker(Part(0, 2))
    assert worker.admitted_at_once(team) == 0
    worker.pass_ms(NOTICE_MS + 60_000)
    assert worker.admitted_at_once(team) == 10


def test_one_that_others_may_not_have_noticed_gives_nothing():
    team = scope_of("team", 600)
    worker = Worker(Part(0, 2))
    worker.away = Away(unheard_ms=90_000, failing_ms=90_000, proven_ms=NOTICE_MS // 2)
    assert worker.admitted_at_once(team) == 0
    worker.has_been_away(90_000)
    worker.pass_ms(200)
    assert worker.admitted_at_once(team) == 1


def test_an_absence_after_another_starts_empty_again():
    team = scope_of("team", 60)
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 60_000)
    assert worker.admits(team)
    worker.has_been_away(0)
    assert worker.admitted_at_once(team) == 0
    worker.pass_ms(NOTICE_MS + 2_000)
    assert worker.admitted_at_once(team) == 1


def test_what_was_in_debt_is_paid_off_first():
    team = scope_of("team", None, 60, None, 60)
    worker = Worker(Part(0, 2))
    store = MemoryLimiter(worker.clock)
    store.charge("a", (team,), Cost(0, 160))
    assert isinstance(worker.sees(store, team, cost=Cost(0, 1)), Refused)
    worker.has_been_away(0)
    # A hundred above the bucket: its half takes as long to pay off as the whole.
    worker.pass_ms(NOTICE_MS + 100_000)
    assert not worker.admits(team, cost=Cost(0, 1))
    # What is told of a debt is short of a millisecond.
    worker.pass_ms(2_001)
    assert worker.admits(team, cost=Cost(0, 1))


def test_a_part_that_grows_brings_no_burst():
    team = scope_of("team", 60)
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 600_000)
    assert worker.admits(team)
    worker.part = Part(0, 1, changes=1)
    assert worker.admitted_at_once(team) == 29
    worker.pass_ms(1_000)
    assert worker.admitted_at_once(team) == 1


def test_decisions_are_counted():
    counted = []
    Worker(Part(0, 1), counted=lambda: counted.append(1)).reserve(scope_of("team", 20))
    assert len(counted) == 1


# Alone


def test_who_is_alone_goes_on_where_the_store_was():
    team = scope_of("team", 20)
    worker, store = alone(Cost(15, 0), team)
    worker.sees(store, team, cost=Cost(1, 0))
    assert worker.admitted_at_once(team) == 4
    worker.pass_ms(3_000)
    assert worker.admitted_at_once(team) == 1


def test_who_is_alone_goes_on_with_a_key_as_well():
    team, key = scope_of("team", 600), scope_of("key:k", 20)
    worker, _ = alone(Cost(15, 0), team, key)
    assert worker.admitted_at_once(team, key) == 5


def test_a_key_that_was_not_seen_is_not_taken_to_stand_where_its_team_does():
    team, key = scope_of("team", 20), scope_of("key:k", 20)
    worker, _ = alone(NOTHING, team)
    assert isinstance(worker.reserve(team, key), Refused)


def test_a_shadow_is_not_taken_for_its_team():
    team = scope_of("team", 20)
    worker, _ = alone(NOTHING, scope_of("shadow", 3_500))
    assert worker.admitted_at_once(team) == 0


def test_what_is_charged_after_it_was_seen_counts():
    team = scope_of("team", 20)
    worker, _ = alone(Cost(5, 0), team)
    worker.share.charged("a", (team,), Cost(10, 0))
    assert worker.admitted_at_once(team) == 5


def test_an_answer_that_does_not_know_of_a_charge_yet_is_not_believed():
    team = scope_of("team", 20)
    worker, store = alone(Cost(5, 0), team)
    worker.share.charged("a", (team,), Cost(10, 0))
    worker.sees(store, team, cost=Cost(1, 0), overtaken=True)
    assert worker.admitted_at_once(team) == 4
    worker, store = alone(Cost(5, 0), team)
    store.charge("a", (team,), Cost(10, 0))
    worker.sees(store, team, cost=Cost(1, 0), overtaken=True)
    assert worker.admitted_at_once(team) == 4


def test_what_was_seen_before_somebody_came_and_went_is_not_believed():
    team = scope_of("team", 20)
    worker, _ = alone(NOTHING, team)
    worker.part = Part(0, 1, changes=2)
    assert worker.admitted_at_once(team) == 0


def test_buckets_not_seen_for_longest_are_forgotten(monkeypatch):
    monkeypatch.setattr("proxy.adapters.redis.share._MOST_SEEN", 2)
    team, first, second = scope_of("team", 600), scope_of("key:1", 20), scope_of("key:2", 20)
    worker, store = alone(NOTHING, team, first)
    worker.sees(store, team, second)
    assert worker.admitted_at_once(team, first) == 0
    assert worker.admitted_at_once(team, second) == 20


@given(
    rate=st.integers(1, 400),
    capacity=st.integers(1, 400),
    used=st.integers(0, 600),
    outages=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 400), st.booleans()), max_size=8),
)
@settings(max_examples=150, deadline=None)
def test_a_store_that_comes_and_goes_unasked_gives_no_burst_twice(rate, capacity, used, outages):
    team = scope_of("team", None, rate, None, capacity)
    worker, _ = alone(Cost(0, used), team)
    left_units, began_ms, charged = (capacity - used) * UNITS, worker.clock.ms, 0
    for passed_ms, tokens, told in outages:
        worker.pass_ms(passed_ms)
        if worker.admits(team, cost=Cost(0, tokens)):
            charged += tokens * UNITS
        if told:
            worker.owed()
        assert charged <= max(0, left_units + rate * (worker.clock.ms - began_ms))


@given(st.integers(1, 600), st.lists(st.tuples(st.integers(0, 15_000), st.integers(1, 3)), max_size=40))
@settings(max_examples=150, deadline=None)
def test_the_store_ends_with_what_one_bucket_would_have(used, history):
    team = scope_of("team", 60)
    worker, store = alone(Cost(used, 0), team)
    state = bucket.charge(None, team.schedule, Cost(used, 0), worker.clock.ms, 1)
    for passed_ms, requests in history:
        worker.pass_ms(passed_ms)
        if worker.admits(team, cost=Cost(requests, 0)):
            state = bucket.charge(state, team.schedule, Cost(requests, 0), worker.clock.ms, 2)
    for scope, cost in worker.owed():
        store.charge("a", (scope,), cost)
    true_units = bucket.advance(state, team.schedule, worker.clock.ms)[0][2]
    assert true_units <= store.used("a", team).requests * UNITS <= true_units + 2 * UNITS


@given(limit=st.integers(1, 10**7), used=st.integers(0, 3 * 10**7 * UNITS))
def test_what_a_standing_tells_is_never_less_than_what_is_used_and_hardly_more(limit, used):
    schedule = scope_of("team", None, limit).schedule
    gauge = bucket.standing(bucket.peek((1, 0, 0, 0, used, 0), schedule, 0)).tokens
    assert used <= _used(gauge, limit * UNITS) <= used + limit


# What clients are told


def test_a_refusal_speaks_of_the_whole_limit():
    team = scope_of("team", 20, 40_000)
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 60_000)
    assert worker.admitted_at_once(team) == 10
    refused = worker.reserve(team)
    # A tenth of this worker's minute: the rest of the limit is not its to give.
    assert (refused.limit, refused.used, refused.wait_ms) == (20, 20, 6_000)
    assert refused.dimension is Dimension.REQUESTS
    assert (refused.standing.requests.limit, refused.standing.tokens.limit) == (20, 40_000)
    worker.pass_ms(refused.wait_ms - 1)
    assert isinstance(worker.reserve(team), Refused)
    worker.pass_ms(1)
    assert worker.admits(team)


def test_places_are_parted_too_and_come_back():
    team = scope_of("team", places=3)
    worker = Worker(Part(0, 2))
    first, second = worker.reserve(team), worker.reserve(team)
    refused = worker.reserve(team)
    assert (refused.dimension, refused.limit, refused.used) == (Dimension.PARALLEL, 3, 3)
    assert worker.share.settle(first.reservation, Cost(1, 0))
    assert worker.admits(team)
    # The store is told meanwhile: the place comes back all the same.
    worker.owed()
    assert not worker.share.settle(second.reservation, Cost(1, 0))
    assert worker.admits(team)


def test_places_that_were_taken_in_the_store_are_taken():
    team = scope_of("team", places=4)
    worker = Worker(Part(0, 2))
    store = MemoryLimiter(worker.clock)
    first, _, third = (worker.sees(store, team, cost=ONE) for _ in range(3))
    assert not worker.admits(team)
    assert not worker.share.settle(first.reservation, ONE)
    assert not worker.admits(team)
    assert not worker.share.settle(third.reservation, ONE)
    assert worker.admits(team)
    assert not worker.admits(team)
    # One that takes no place of its own is let through.
    assert worker.admits(team, cost=NOTHING)


def test_a_question_too_large_for_a_part_is_not_answered():
    with pytest.raises(StoreAway):
        Worker(Part(0, 2)).reserve(scope_of("team", 20, 40_000), cost=Cost(1, 30_000))


def test_a_refusal_by_the_whole_is_told_even_where_the_part_is_too_small():
    never = Worker(Part(0, 2)).reserve(scope_of("team", 20, 40_000), cost=Cost(1, 40_001))
    assert isinstance(never, NeverFits)
    assert (never.limit, never.requested, never.standing.tokens.limit) == (40_000, 40_001, 40_000)


def test_a_part_that_is_nothing_answers_nothing():
    team, worker = scope_of("team", 1), Worker(Part(1, 2))
    with pytest.raises(StoreAway):
        worker.reserve(team)
    with pytest.raises(StoreAway):
        asyncio.run(worker.share.peek("a", (team,), NEVER_SENT))
    assert not worker.share.charge("a", (team,), Cost(1, 0))
    assert "a" not in worker.share


def test_it_knows_where_its_own_buckets_stand():
    team, worker = scope_of("team", 20), Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 60_000)
    worker.reserve(team)
    (standing,) = asyncio.run(worker.share.peek("a", (team,), NEVER_SENT))
    assert (standing.requests.limit, standing.requests.remaining) == (20, 9)


# When the store is back: what it is charged with


def test_the_store_is_charged_with_what_was_used_and_not_with_what_was_assumed():
    team, key = scope_of("team", 20), scope_of("key:k", 600)
    worker, _ = alone(Cost(20, 0), team)
    assert isinstance(worker.reserve(team, key), Refused)
    assert worker.owed() == []
    worker.pass_ms(6_000)
    assert worker.admits(team, key)
    assert (worker.share.untold(), "a" in worker.share) == (("a",), True)
    assert worker.owed() == [(team, Cost(1, 0)), (key, Cost(1, 0))]
    assert worker.owed() == []
    assert worker.share.untold() == ()


def test_with_others_nothing_decays_that_they_may_have_been_served_beside_and_no_more_is_charged_than_was_used():
    team = scope_of("team", 600)
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 60_000)
    assert worker.admitted_at_once(team) == 300
    worker.pass_ms(LATER_MS)
    assert worker.owed() == [(team, Cost(300, 0))]
    assert worker.admitted_at_once(team) == 25
    worker.pass_ms(2 * LATER_MS)
    # Half of it is too long ago.
    assert worker.owed() == [(team, Cost(25, 0))]
    assert worker.admits(team)
    worker.pass_ms(60_000)
    assert worker.owed() == [(team, Cost(1, 0))]


def test_what_ends_after_the_store_was_told_is_the_stores_to_settle_and_comes_back_nowhere():
    team = scope_of("team", 20, 40_000)
    worker, _ = alone(NOTHING, team)
    admitted = worker.reserve(team, cost=Cost(1, 10_000))
    assert admitted.reservation.scopes == (team,), "a settlement in the store is by the whole limits"
    assert worker.owed() == [(team, Cost(1, 10_000))]
    assert not worker.share.settle(admitted.reservation, Cost(1, 900))
    assert not worker.share.settle(admitted.reservation, Cost(1, 900))
    # Still away: what was told is still used, and what comes on top is told on top.
    assert not worker.admits(team, cost=Cost(1, 30_001))
    assert worker.admits(team, cost=Cost(1, 30_000))
    assert worker.owed() == [(team, Cost(1, 30_000))]


def test_what_ends_before_the_store_was_told_is_settled_here():
    team = scope_of("team", 20, 40_000)
    worker, _ = alone(NOTHING, team)
    less, more = worker.reserve(team, cost=Cost(1, 500)), worker.reserve(team, cost=Cost(1, 500))
    assert worker.share.settle(less.reservation, Cost(1, 100))
    assert worker.share.settle(more.reservation, Cost(1, 900))
    assert worker.owed() == [(team, Cost(2, 1_000))]


def test_what_was_told_decays_here_as_it_does_there():
    team = scope_of("team", 20, 40_000)
    worker, store = alone(NOTHING, team)
    assert worker.admitted_at_once(team) == 20
    ((_, cost),) = worker.owed()
    store.charge("a", (team,), cost)
    worker.sees(store, team)
    assert worker.admitted_at_once(team) == 0
    worker.pass_ms(6_000)
    assert worker.admitted_at_once(team) == 2


def test_what_was_told_of_a_key_counts_though_the_next_answer_is_not_of_it():
    team, key = scope_of("team", 600), scope_of("key:k", 20)
    worker, store = alone(NOTHING, team, key)
    assert worker.admitted_at_once(team, key) == 20
    worker.owed()
    worker.sees(store, team)
    assert worker.admitted_at_once(team, key) == 0


def test_an_answer_ends_what_was_held_here():
    team = scope_of("team", 60)
    worker = Worker(Part(0, 2))
    worker.has_been_away(NOTICE_MS + 60_000)
    assert worker.admitted_at_once(team) == 30
    worker.owed()
    worker.away = None
    worker.sees(MemoryLimiter(worker.clock), team, cost=Cost(1, 0))
    worker.has_been_away(NOTICE_MS + 10_000)
    assert worker.admitted_at_once(team) == 5


# When the store is back: what it is asked


def asked(worker, scope, cost, away):
    return worker.share.ask_with((scope,), cost, away)


def test_a_store_that_is_away_is_not_asked():
    assert asked(Worker(Part(0, 2)), scope_of("team", 20), Cost(1, 0), Away(5_000, 5_000, 5_000)) is None
    assert asked(Worker(Part(0, 1)), scope_of("team", 20), Cost(1, 0), Away(5_000, 5_000, 5_000)) is None


def test_who_is_alone_asks_for_all_there_is():
    scopes = (scope_of("team", 20),)
    assert Worker(Part(0, 1)).share.ask_with(scopes, Cost(1, 0), Away(90_000, 90_000, 90_000, 0)) is scopes


def test_room_is_left_for_what_others_may_have_given():
    worker, team = Worker(Part(0, 4)), scope_of("team", 600, 60_000, 300, 30_000)
    # Long enough for three parts of the bucket, and two seconds of three parts of the rate.
    (less,) = asked(worker, team, Cost(1, 1), Away(600_000, 600_000, 600_000, 2_000))
    assert less.schedule.before == less.schedule.after == Limits(600, 60_000, 300 - 225 - 15, 30_000 - 22_500 - 1_500)
    # Nothing yet where nobody can have begun.
    (less,) = asked(worker, team, Cost(1, 1), Away(700, 600, 0, 100))
    assert less.schedule == team.schedule


def test_what_is_too_large_for_that_room_is_refused_until_it_is_all_there_again():
    worker, team = Worker(Part(0, 2)), scope_of("team", 600, 60_000)
    away = Away(600_000, 600_000, 600_000, 1_000)
    refused = asked(worker, team, Cost(1, 31_000), away)
    assert (refused.wait_ms, refused.dimension, refused.limit) == (LATER_MS - 1_000, Dimension.TOKENS, 60_000)
    assert refused.used + refused.requested > 60_000
    assert refused.standing.tokens.remaining == 0
    # What never fits is the store's to say.
    assert not isinstance(asked(worker, team, Cost(1, 60_001), away), Refused)


def test_a_dimension_without_limit_is_left_alone():
    (less,) = asked(Worker(Part(0, 2)), scope_of("team", 60), Cost(1, 10**9), Away(600_000, 600_000, 600_000, 0))
    assert less.schedule.before == Limits(60, None, 30, None)


def test_a_refusal_for_want_of_that_room_is_told_as_of_the_whole_and_waits_no_longer_than_need_be():
    clock = HandClock()
    worker, team = Worker(Part(0, 2), clock), scope_of("team", 60)
    store = MemoryLimiter(clock)
    store.charge("a", (team,), Cost(30, 0))
    less = asked(worker, team, Cost(1, 0), Away(600_000, 600_000, 600_000, 0))
    decision = asyncio.run(store.reserve("a", less, Cost(1, 0)))
    assert (decision.wait_ms, decision.used) == (1_000, 30)
    told = worker.share.told((team,), less, decision)
    assert (told.wait_ms, told.used, told.limit) == (1_000, 60, 60)
    decision = asyncio.run(store.reserve("a", less, Cost(20, 0)))
    told = worker.share.told((team,), less, decision)
    # 20 s to so much room in a half; in the whole it is there as soon as nothing is kept any more.
    assert (decision.wait_ms, told.wait_ms) == (20_000, LATER_MS)
    never = asyncio.run(store.reserve("a", less, Cost(61, 0)))
    assert (never.limit, worker.share.told((team,), less, never).limit) == (30, 60)
