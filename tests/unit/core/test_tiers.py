import pickle
from dataclasses import asdict, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.tiers import DEFAULT_TIERS, LARGEST_LIMIT, UNITS, Limits, Phase, Tier

HOURS_48 = 172_800_000
SINCE = 1_700_000_000_000
FIRST = Limits(60, 60_000)
THEN = Limits(3_500, 90_000)

numbers = st.none() | st.integers(1, LARGEST_LIMIT)
limits = st.builds(Limits, numbers, numbers, numbers, numbers)


def test_the_documented_tiers():
    free, payg, unlimited = (DEFAULT_TIERS[name] for name in ("free", "payg", "unlimited"))
    assert free.phases == (Phase(Limits(20, 40_000)),)
    assert payg.phases == (Phase(FIRST, HOURS_48), Phase(THEN))
    assert unlimited.phases == (Phase(Limits()),)
    assert all(name == tier.name for name, tier in DEFAULT_TIERS.items())


@pytest.mark.parametrize(
    ("after_ms", "expected"),
    [(-1, FIRST), (0, FIRST), (HOURS_48 - 1, FIRST), (HOURS_48, THEN), (HOURS_48 + 1, THEN), (10 * HOURS_48, THEN)],
)
def test_payg_switches_after_48_hours_to_the_millisecond(after_ms, expected):
    now_ms = SINCE + after_ms
    assert DEFAULT_TIERS["payg"].schedule(SINCE, now_ms).limits_at(now_ms) == expected


@given(st.integers(-HOURS_48, 3 * HOURS_48), st.integers(-HOURS_48, 3 * HOURS_48))
def test_a_clock_that_is_off_does_not_move_the_switch(caller_ms, store_ms):
    schedule = DEFAULT_TIERS["payg"].schedule(SINCE, SINCE + caller_ms)
    assert schedule.limits_at(SINCE + store_ms) == (FIRST if store_ms < HOURS_48 else THEN)


@given(st.lists(st.integers(1, 1_000), max_size=5), st.integers(-10, 6_000))
def test_the_schedule_holds_the_phase_at_now_and_the_nearest_switch(lengths, now_ms):
    phases = [Phase(Limits(index + 1), length) for index, length in enumerate(lengths)]
    tier = Tier("t", (*phases, Phase(Limits(len(lengths) + 1))))
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    schedule = tier.schedule(0, now_ms)
    assert schedule.limits_at(now_ms) == Limits(1 + sum(end <= now_ms for end in ends))
    if not ends:
        assert schedule.switch_at_ms is None
        assert schedule.before == schedule.after
        return
    assert schedule.switch_at_ms in ends
    assert abs(schedule.switch_at_ms - now_ms) == min(abs(end - now_ms) for end in ends)
    for side in (schedule.switch_at_ms - 1, schedule.switch_at_ms):
        assert schedule.limits_at(side) == Limits(1 + sum(end <= side for end in ends))


def test_own_numbers_take_the_place_of_the_tiers_on_both_sides():
    schedule = DEFAULT_TIERS["payg"].schedule(SINCE, SINCE, Limits(tokens_per_minute=7))
    assert schedule.before == Limits(60, 7)
    assert schedule.after == Limits(3_500, 7)
    assert schedule.switch_at_ms == SINCE + HOURS_48


def test_a_rate_of_its_own_does_not_keep_the_burst_of_the_tier():
    tier = Tier("burst", (Phase(Limits(10, 100, 1_000, 10_000)),))
    assert tier.schedule(0, 0, Limits(requests_per_minute=5)).before == Limits(5, 100, None, 10_000)
    assert tier.schedule(0, 0, Limits(tokens_per_minute=5)).before == Limits(10, 5, 1_000, None)
    assert tier.schedule(0, 0, Limits(5, None, 6)).before == Limits(5, 100, 6, 10_000)
    assert tier.schedule(0, 0, Limits(request_capacity=6, token_capacity=7)).before == Limits(10, 100, 6, 7)


@given(limits, limits)
def test_overriding_twice_is_overriding_once(tier, own):
    once = tier.overridden_by(own)
    assert once.overridden_by(own) == once
    assert tier.overridden_by(None) == tier
    assert tier.overridden_by(Limits()) == tier
    assert Limits().overridden_by(own) == own


@given(limits)
def test_figures_are_the_limits_in_units(limits):
    request_rate, request_capacity, token_rate, token_capacity = limits.figures
    assert request_rate == (limits.requests_per_minute or 0)
    assert token_rate == (limits.tokens_per_minute or 0)
    assert request_capacity == (limits.effective_request_capacity or 0) * UNITS
    assert token_capacity == (limits.effective_token_capacity or 0) * UNITS
    assert max(limits.figures) < 2**53


def test_capacity_is_one_minute_unless_it_is_set():
    assert Limits(20, 40_000).effective_request_capacity == 20
    assert Limits(20, 40_000).effective_token_capacity == 40_000
    assert Limits(20, 40_000, 5, 80_000).effective_request_capacity == 5
    assert Limits(20, 40_000, 5, 80_000).effective_token_capacity == 80_000
    assert Limits(None, None, 5, 5).effective_request_capacity is None
    assert Limits(None, None, 5, 5).effective_token_capacity is None


def test_what_is_remembered_is_no_part_of_the_value():
    used, fresh = Limits(1, 2, 3, 4), Limits(1, 2, 3, 4)
    assert used.figures == (1, 3 * UNITS, 2, 4 * UNITS)
    assert used == fresh
    assert hash(used) == hash(fresh)
    assert set(asdict(used)) == {"requests_per_minute", "tokens_per_minute", "request_capacity", "token_capacity"}
    assert pickle.loads(pickle.dumps(used)).figures == used.figures
    assert replace(used, requests_per_minute=9).figures == (9, 3 * UNITS, 2, 4 * UNITS)


@pytest.mark.parametrize("field", ["requests_per_minute", "tokens_per_minute", "request_capacity", "token_capacity"])
@pytest.mark.parametrize("number", [0, -1, LARGEST_LIMIT + 1])
def test_limits_outside_their_range_are_refused(field, number):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: number})


@pytest.mark.parametrize(
    ("phases", "complaint"),
    [
        ((), "no phase"),
        ((Phase(FIRST, 1),), "without end"),
        ((Phase(FIRST), Phase(THEN)), "positive time"),
        ((Phase(FIRST, 0), Phase(THEN)), "positive time"),
        ((Phase(FIRST, -1), Phase(THEN)), "positive time"),
    ],
)
def test_phases_that_make_no_sense_are_refused(phases, complaint):
    with pytest.raises(ValueError, match=complaint):
        Tier("odd", phases)


def test_the_limits_of_the_default_tiers_only_rise():
    for tier in DEFAULT_TIERS.values():
        for earlier, later in pairwise(tier.phases):
            assert earlier.limits.figures <= later.limits.figures
