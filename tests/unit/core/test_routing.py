"""Who is asked for a model, and in which order."""

from collections import Counter
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.routing import Candidate, identity_of, ordered, serving

draws = st.floats(0, 1, exclude_max=True)
names = st.sampled_from(["gpt-4o", "gpt-5", "fast"])
candidates = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        identity=st.sampled_from(["http://a/v1", "http://b/v1", "http://c"]),
        weight=st.integers(1, 1_000),
        priority=st.integers(0, 3),
        models=st.none() | st.dictionaries(names, names | st.just("deployment")),
    ),
    max_size=6,
    unique_by=lambda each: each.name,
)


def site(name, weight=1, priority=0, models=None):
    return Candidate(name, f"http://{name}/v1", weight, priority, models)


@given(candidates, draws)
def test_an_order_loses_nobody_and_keeps_priorities(candidates, draw):
    order = ordered(candidates, draw)
    assert sorted(order, key=lambda each: each.name) == sorted(candidates, key=lambda each: each.name)
    assert [each.priority for each in order] == sorted(each.priority for each in candidates)


@given(candidates, names)
def test_a_map_serves_what_it_names_and_nothing_else(candidates, model):
    for each in candidates:
        assert (each in serving(candidates, model)) is (each.models is None or model in each.models)
        assert each.name_of(model) == (model if each.models is None else each.models.get(model))


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (1, 2, 3), (5, 1, 1, 1)])
def test_each_place_goes_by_weight(weights):
    """Over all draws each order comes as often as it would by drawing each place from those left."""
    sites = [site(f"s{number}", weight) for number, weight in enumerate(weights)]
    steps = 100_000
    seen = Counter(tuple(each.name for each in ordered(sites, (step + 0.5) / steps)) for step in range(steps))
    for order in permutations(sites):
        expected, left = Fraction(1), sum(weights)
        for each in order:
            expected *= Fraction(each.weight, left)
            left -= each.weight
        assert abs(seen[tuple(each.name for each in order)] / steps - expected) < 0.002


def test_fallbacks_come_after_all_of_a_better_priority():
    first, second, third = site("a", 1, 5), site("b", 1_000, 7), site("c", 1, 0)
    for draw in (0.0, 0.5, 0.999_999_999_999_999_9):
        assert ordered([first, second, third], draw) == (third, first, second)


@given(candidates, st.sampled_from([0.0, 0.999_999_999_999_999_9]))
def test_the_ends_of_the_range_are_draws_too(candidates, draw):
    assert len(ordered(candidates, draw)) == len(candidates)


def test_nobody_serves_it():
    assert serving([site("a", models={"gpt-4o": "x"})], "gpt-5") == ()
    assert ordered([], 0.5) == ()


def test_one_plain_upstream_is_its_own_identity():
    assert identity_of([site("a")], "gpt-4o") == "http://a/v1"
    assert identity_of([site("a", models={"gpt-4o": "gpt-4o"})], "gpt-4o") == "http://a/v1"


def test_what_is_asked_under_another_name_is_another_answer():
    assert identity_of([site("a", models={"gpt-4o": "gpt-5"})], "gpt-4o") != "http://a/v1"
    assert identity_of([site("a", models={"gpt-4o": "x"})], "gpt-4o") != identity_of(
        [site("a", models={"gpt-4o": "y"})], "gpt-4o"
    )


@given(candidates, candidates, names)
def test_identities_agree_where_the_same_would_answer(some, others, model):
    def who(candidates):
        return sorted((each.identity, each.name_of(model)) for each in serving(candidates, model))

    same = identity_of(serving(some, model), model) == identity_of(serving(others, model), model)
    assert same is (who(some) == who(others))


@given(candidates, names, st.randoms())
def test_an_identity_does_not_depend_on_order_weight_or_priority(candidates, model, random):
    shuffled = [
        Candidate(each.name, each.identity, random.randint(1, 9), random.randint(0, 9), each.models)
        for each in random.sample(candidates, len(candidates))
    ]
    assert identity_of(serving(candidates, model), model) == identity_of(serving(shuffled, model), model)
