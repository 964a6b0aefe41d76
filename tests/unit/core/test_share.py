from hypothesis import given
from hypothesis import strategies as st

from proxy.core.bucket import Scope
from proxy.core.share import Part, part_of, part_of_scope
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule

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
