import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.bucket import Scope
from proxy.core.share import (
    LATER_MS,
    Away,
    Part,
    credit_ms,
    kept_for_others,
    opening,
    owing,
    part_of,
    part_of_scope,
)
from proxy.core.tiers import LARGEST_LIMIT, UNITS, Limits, Schedule

figures = st.none() | st.integers(1, 200) | st.integers(1, LARGEST_LIMIT)
limits = st.builds(Limits, figures, figures, figures, figures)
scopes = st.builds(
    Scope,
    st.just("team"),
    st.builds(Schedule, limits, limits, st.none() | st.integers(0, 10**13)),
    st.none() | st.integers(1, 300),
)
workers = st.integers(1, 256)


def parts_of(scope, count):
    return [part_of_scope(scope, Part(rank, count)) for rank in range(count)]


@given(st.integers(0, LARGEST_LIMIT), workers)
def test_parts_add_up_to_the_limit_and_differ_by_one_at_most(limit, count):
    parts = [part_of(limit, Part(rank, count)) for rank in range(count)]
    assert sum(parts) == limit
    assert parts == sorted(parts, reverse=True)
    assert max(parts) - min(parts) <= 1


@given(scopes, st.integers(1, 64), st.integers(0, 2 * 10**13))
def test_no_figure_of_all_parts_is_above_the_whole(scope, count, now_ms):
    whole = scope.schedule.limits_at(now_ms)
    parts = [part for part in parts_of(scope, count) if part is not None]
    own = [part.schedule.limits_at(now_ms) for part in parts]
    for name in (
        "requests_per_minute",
        "tokens_per_minute",
        "effective_request_capacity",
        "effective_token_capacity",
    ):
        figure = getattr(whole, name)
        if figure is None:
            assert all(getattr(each, name) is None for each in own)
        else:
            assert sum(getattr(each, name) for each in own) <= figure
    if scope.max_parallel is not None:
        assert sum(part.max_parallel for part in parts) <= scope.max_parallel


@given(scopes, st.integers(1, 64))
def test_a_part_is_of_the_same_scope_and_switches_when_it_does(scope, count):
    for part in parts_of(scope, count):
        if part is not None:
            assert (part.name, part.schedule.switch_at_ms) == (scope.name, scope.schedule.switch_at_ms)


@given(scopes)
def test_one_worker_has_it_all(scope):
    part = part_of_scope(scope, Part(0, 1))
    assert part is not None
    assert part.max_parallel == scope.max_parallel
    assert part.schedule.before.figures == scope.schedule.before.figures
    assert part.schedule.after.figures == scope.schedule.after.figures


def test_what_does_not_go_round_leaves_the_last_without_a_part():
    steady = Limits(2, 40_000)
    parts = parts_of(Scope("team", Schedule(steady, steady)), 3)
    assert [part and part.schedule.before for part in parts] == [
        Limits(1, 13_334, 1, 13_334),
        Limits(1, 13_333, 1, 13_333),
        None,
    ]


def test_a_worker_without_a_place_has_no_part():
    parts = parts_of(Scope("team", Schedule(Limits(), Limits()), 1), 2)
    assert [part and part.max_parallel for part in parts] == [1, None]


# While the store is away


def scope_with(*limits_of):
    steady = Limits(*limits_of)
    return Scope("team", Schedule(steady, steady))


NOW = 1_700_000_000_000


def test_a_part_opens_empty_and_has_its_rate_since():
    own = scope_with(60, 600, 30, 300)
    for had_ms, requests, tokens in (
        (-1_000, 30 * UNITS + 60_000, 300 * UNITS + 600_000),
        (0, 30 * UNITS, 300 * UNITS),
        (1, 30 * UNITS - 60, 300 * UNITS - 600),
        (10**9, 0, 0),
    ):
        state = opening(own, (0, 0), had_ms, NOW)
        assert (state[1], state[2], state[4]) == (NOW, requests, tokens)
    assert opening(own, (5, 7), 0, NOW)[2::2] == (30 * UNITS + 5, 300 * UNITS + 7)


def test_a_part_that_opens_after_a_switch_has_had_each_rate_in_its_time():
    before, after = Limits(60), Limits(6_000)
    own = Scope("team", Schedule(before, after, NOW - 1_000))
    assert opening(own, (0, 0), 3_000, NOW)[2] == 6_000 * UNITS - 2_000 * 60 - 1_000 * 6_000


@pytest.mark.parametrize(
    ("away", "had_ms"),
    [
        (None, -1_000),
        (Away(300, 200, 200), -800),
        (Away(9_100, 9_000, 9_000), 8_000),
        (Away(9_100, 9_000, 750), 8_000),
        # So short that others may have been served meanwhile.
        (Away(9_100, 9_000, 749), 0),
        (Away(800, 700, 0), -300),
        (Away(9_100, 9_000, 8_000, 500), 8_000),
    ],
)
def test_the_rate_counts_from_when_all_know(away, had_ms):
    assert credit_ms(away, 1_000) == had_ms


def test_who_is_alone_owes_what_it_used_and_has_not_decayed():
    one, whole = Part(0, 1), (60, 60 * UNITS)
    assert owing(60, 60 * UNITS, whole, one, 50, 30) == 30
    assert owing(60, 60 * UNITS, whole, one, 20, 30) == 20


def test_with_others_it_owes_what_has_decayed_too_early():
    part = Part(0, 4)
    # A quarter of 5 is rounded up to 2: its 3 of 10 are there after 1.5 minutes, and all 10 after two.
    whole, given = (5, 10 * UNITS), 9 * UNITS
    assert owing(2, 3 * UNITS, whole, part, 0, given) == 1 * UNITS + 2 * LATER_MS
    assert owing(2, 3 * UNITS, whole, part, UNITS, given) == 2 * UNITS + 2 * LATER_MS
    assert owing(1, 3 * UNITS, whole, part, 0, given) == LATER_MS
    assert owing(2, 3 * UNITS, whole, part, 0, 7) == 7
    assert owing(2, 3 * UNITS, whole, part, 5, 0) == 0


@pytest.mark.parametrize(
    ("away", "kept"),
    [
        # 200 of 300 a minute are others': 10 in three seconds, of which all but one may have passed by.
        (Away(750, 700, 700, 0), 0),
        (Away(3_750, 3_700, 3_700, 0), 10),
        (Away(3_751, 3_700, 3_700, 0), 11),
        # Two parts of the bucket, and no more, by the time it was back.
        (Away(3_600_000, 3_600_000, 3_600_000, 0), 20),
        (Away(3_600_000, 3_600_000, 3_600_000, 3_000), 30),
        # So late that nobody had begun when it was back.
        (Away(3_750, 100, 100, 3_600), 10),
    ],
)
def test_room_is_kept_for_what_others_may_have_given(away, kept):
    assert kept_for_others(300, 30, Part(0, 3), away, 1_000) == kept


def test_nothing_is_kept_by_who_is_alone():
    assert kept_for_others(300, 30, Part(0, 1), Away(10**6, 10**6, 10**6, 1_000), 1_000) == 0
