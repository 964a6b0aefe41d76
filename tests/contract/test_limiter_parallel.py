"""Places: how many requests of a scope may be under way at one time, whatever an engine counts them in."""

from collections import Counter
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.redis.limiter import RedisLimiter
from proxy.core.bucket import Admitted, Cost, Dimension, Gauge, NeverFits, Refused, Scope, Standing
from proxy.core.decision import PARALLEL_WAIT_MS
from proxy.core.tiers import Limits, Schedule

ONE = Cost(1, 10)
property_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
team_names = (f"team-{number}" for number in count())


def scope(name, max_parallel=None, limits=Limits()):  # noqa: B008 - frozen
    return Scope(name, Schedule(limits, limits), max_parallel)


TEAM = (scope("team", 2),)
BOTH = (scope("team", 3), scope("key:k", 1))


async def admit(limiter, team, scopes, cost=ONE):
    decision = await limiter.reserve(team, scopes, cost)
    assert isinstance(decision, Admitted), decision
    return decision.reservation


def go_on(limiter, clock, passed_ms):
    """Let time pass, less than a lease is for, for a process that lives and does its chores."""
    clock.advance(passed_ms)
    if isinstance(limiter, RedisLimiter):
        limiter.renew_leases()


async def assert_full(limiter, team, scopes, binding, most):
    assert await limiter.reserve(team, scopes, ONE) == Refused(
        PARALLEL_WAIT_MS, binding, Dimension.PARALLEL, most, most, 1, Standing()
    )


async def test_a_place_is_taken_at_admission_and_free_at_settlement(limiter):
    first = await admit(limiter, "a", TEAM)
    second = await admit(limiter, "a", TEAM)
    for reservation in (first, second):
        await assert_full(limiter, "a", TEAM, "team", 2)
        limiter.settle(reservation, Cost(1, 5))
        await admit(limiter, "a", TEAM)
    await assert_full(limiter, "a", TEAM, "team", 2)


@pytest.mark.parametrize("actual", [Cost(0, 0), Cost(1, 0), ONE, Cost(1, 500)], ids=repr)
async def test_a_place_is_free_whatever_the_request_came_to(limiter, actual):
    for _ in range(5):
        reservations = [await admit(limiter, "a", TEAM) for _ in range(2)]
        await assert_full(limiter, "a", TEAM, "team", 2)
        for reservation in reservations:
            limiter.settle(reservation, actual)


async def test_settling_again_frees_no_second_place(limiter):
    first = await admit(limiter, "a", TEAM)
    await admit(limiter, "a", TEAM)
    for _ in range(3):
        limiter.settle(first, Cost(1, 5))
    await admit(limiter, "a", TEAM)
    await assert_full(limiter, "a", TEAM, "team", 2)


async def test_a_refusal_in_one_scope_takes_no_place_in_another(limiter):
    mine = await admit(limiter, "a", BOTH)
    for _ in range(5):
        await assert_full(limiter, "a", BOTH, "key:k", 1)
    others = [await admit(limiter, "a", (BOTH[0], scope("key:other", 5))) for _ in range(2)]
    await assert_full(limiter, "a", BOTH, "team", 3)
    limiter.settle(others[0], ONE)
    await assert_full(limiter, "a", BOTH, "key:k", 1)
    limiter.settle(mine, ONE)
    await admit(limiter, "a", BOTH)


async def test_a_refusal_for_want_of_a_place_charges_nothing_and_shows_where_the_team_stands(limiter):
    scopes = (scope("team", 1, Limits(10, 600)),)
    await admit(limiter, "a", scopes)
    before = await limiter.peek("a", scopes)
    assert before == (Standing(Gauge(10, 9, 6_000), Gauge(600, 590, 1_000)),)
    refused = await limiter.reserve("a", scopes, ONE)
    assert refused == Refused(PARALLEL_WAIT_MS, "team", Dimension.PARALLEL, 1, 1, 1, before[0])
    assert await limiter.peek("a", scopes) == before


async def test_a_bucket_without_room_is_told_before_a_place_is(limiter, clock):
    scopes = (scope("team", 1, Limits(None, 600)),)
    first = await admit(limiter, "a", scopes, Cost(1, 600))
    refused = await limiter.reserve("a", scopes, Cost(1, 300))
    assert isinstance(refused, Refused)
    assert (refused.dimension, refused.wait_ms) == (Dimension.TOKENS, 30_000)
    never = await limiter.reserve("a", scopes, Cost(1, 601))
    assert isinstance(never, NeverFits)
    clock.advance(30_000)
    refused = await limiter.reserve("a", scopes, Cost(1, 300))
    assert isinstance(refused, Refused)
    assert refused.dimension is Dimension.PARALLEL
    limiter.settle(first, Cost(1, 600))
    await admit(limiter, "a", scopes, Cost(1, 300))


async def test_a_refusal_by_a_bucket_takes_no_place(limiter, clock):
    scopes = (scope("team", 1, Limits(1)),)
    limiter.settle(await admit(limiter, "a", scopes), ONE)
    assert isinstance(await limiter.reserve("a", scopes, ONE), Refused)
    assert isinstance(await limiter.reserve("a", scopes, Cost(2, 0)), NeverFits)
    clock.advance(60_000)
    await admit(limiter, "a", scopes)


async def test_what_takes_no_request_takes_no_place(limiter):
    free = await admit(limiter, "a", TEAM, Cost(0, 0))
    for _ in range(2):
        await admit(limiter, "a", TEAM)
    await assert_full(limiter, "a", TEAM, "team", 2)
    await admit(limiter, "a", TEAM, Cost(0, 0))
    limiter.settle(free, Cost(0, 0))
    await assert_full(limiter, "a", TEAM, "team", 2)


async def test_time_frees_no_place_of_a_request_that_goes_on(limiter, clock):
    await admit(limiter, "a", TEAM)
    await admit(limiter, "a", TEAM)
    for _ in range(20):
        go_on(limiter, clock, 20_000)
        await assert_full(limiter, "a", TEAM, "team", 2)
    clock.step(-86_400_000)
    await assert_full(limiter, "a", TEAM, "team", 2)


async def test_a_limit_that_is_lowered_holds_for_those_who_come(limiter):
    open_ones = [await admit(limiter, "a", (scope("team", 3),)) for _ in range(3)]
    lower = (scope("team", 1),)
    for reservation in open_ones:
        refused = await limiter.reserve("a", lower, ONE)
        assert isinstance(refused, Refused)
        assert (refused.limit, refused.dimension) == (1, Dimension.PARALLEL)
        limiter.settle(reservation, ONE)
    await admit(limiter, "a", lower)
    await assert_full(limiter, "a", lower, "team", 1)


async def test_a_limit_that_comes_and_goes_leaves_nothing_behind(limiter):
    before, during = await admit(limiter, "a", (scope("team"),)), await admit(limiter, "a", TEAM)
    limiter.settle(before, ONE)
    after = await admit(limiter, "a", (scope("team"),))
    limiter.settle(during, ONE)
    limiter.settle(after, ONE)
    for _ in range(2):
        await admit(limiter, "a", TEAM)
    await assert_full(limiter, "a", TEAM, "team", 2)


async def test_places_of_teams_are_apart(limiter):
    for team in ("a", "b", "a:team"):
        for _ in range(2):
            await admit(limiter, team, TEAM)
        await assert_full(limiter, team, TEAM, "team", 2)


@property_settings
@given(
    most=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    history=st.lists(
        st.tuples(st.sampled_from(["reserve", "reserve", "hit", "settle", "again", "wait"]), st.integers(0, 20)),
        max_size=60,
    ),
)
async def test_open_reservations_never_exceed_the_places_and_all_come_back(limiter, clock, most, history):
    """Two keys of one team and its own limit, in any order of arrivals and ends, held against a plain count."""
    team, limits = next(team_names), Limits(30, 600)
    whole = scope("team", most[0], limits)
    keys = [(whole, scope(f"key:{number}", most[1 + number])) for number in (0, 1)]
    under_way, settled = [], []

    def taken():
        return Counter(each.name for reservation in under_way for each in reservation.scopes)

    for verb, number in history:
        if verb in ("reserve", "hit"):
            scopes = keys[number % 2]
            cost = Cost(verb == "reserve", number)
            count_before = taken()
            decision = await limiter.reserve(team, scopes, cost)
            has_places = all(count_before[each.name] < each.max_parallel for each in scopes)
            if isinstance(decision, Admitted):
                assert has_places or not cost.requests
                if cost.requests:
                    under_way.append(decision.reservation)
                else:
                    limiter.settle(decision.reservation, cost)
            elif isinstance(decision, Refused) and decision.dimension is Dimension.PARALLEL:
                assert not has_places
                assert decision.used == count_before[decision.scope] == decision.limit
            assert all(taken()[each.name] <= each.max_parallel for pair in keys for each in pair)
        elif verb == "settle" and under_way:
            reservation = under_way.pop(number % len(under_way))
            settled.append(reservation)
            limiter.settle(reservation, Cost(number % 2, number))
        elif verb == "again" and settled:
            limiter.settle(settled[number % len(settled)], Cost(0, 0))
        elif verb == "wait":
            go_on(limiter, clock, number * 500)
    for reservation in under_way:
        limiter.settle(reservation, Cost(1, 0))
    clock.advance(600_000)
    for key in keys:
        places = min(each.max_parallel for each in key)
        again = [await admit(limiter, team, key, Cost(1, 0)) for _ in range(places)]
        refused = await limiter.reserve(team, key, Cost(1, 0))
        assert isinstance(refused, Refused)
        assert refused.dimension is Dimension.PARALLEL
        for reservation in again:
            limiter.settle(reservation, Cost(1, 0))
