from datetime import date, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.reconcile import ALL_MODELS, MEASURES, Entry, base_name, compare

DAY = date(2026, 11, 1)
DAYS = [DAY + timedelta(days=number) for number in range(4)]

amounts = st.dictionaries(st.sampled_from(MEASURES), st.integers(0, 10**15), max_size=4)
models = st.sampled_from(["gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20", "gpt-4o-mini", "gpt-4", "gpt-4-0613"])
entries = st.lists(st.builds(Entry, st.sampled_from(DAYS), models, amounts), max_size=12)
sides = st.lists(st.builds(Entry, st.sampled_from(DAYS), st.none() | models, amounts), max_size=12)


def total(side, measure):
    return sum(each.amounts.get(measure, 0) for each in side)


def stated_measures(side):
    return {measure for each in side for measure in each.amounts}


@given(entries)
def test_a_ledger_ties_out_with_itself(ledger):
    found = compare(ledger, ledger, DAYS)
    assert found.differing() == ()
    assert found.together == {}
    assert {figure.measure: figure.ledger for figure in found.totals()} == {
        measure: total(ledger, measure) for measure in MEASURES if total(ledger, measure)
    }


@given(entries, sides)
def test_nothing_is_lost_and_nothing_is_added(ledger, stated):
    found = compare(ledger, stated, DAYS)
    for measure in MEASURES:
        figures = [each for each in found.figures if each.measure == measure]
        if measure not in stated_measures(stated):
            assert figures == [], "what the other side does not state is not compared"
            continue
        assert sum(each.ledger for each in figures) == total(ledger, measure)
        assert sum(each.stated for each in figures) == total(stated, measure)


@given(entries, sides, st.integers(0, 3), st.randoms(use_true_random=False))
def test_how_it_is_written_changes_nothing(ledger, stated, cut, random):
    halves = []
    for each in stated:
        first = {measure: amount // 2 for measure, amount in each.amounts.items()}
        second = {measure: amount - first[measure] for measure, amount in each.amounts.items()}
        halves += [Entry(each.day, each.model, first), Entry(each.day, each.model, second)]
    random.shuffle(halves)
    turned = ledger[cut:] + ledger[:cut]
    assert compare(turned, halves, DAYS).figures == compare(ledger, stated, reversed(DAYS)).figures


@given(entries, entries)
def test_the_other_way_round_every_difference_is_the_opposite(one, other):
    shared = stated_measures(one) & stated_measures(other)

    def differences(left, right):
        figures = compare(left, right, DAYS).figures
        return {(f.day, f.model, f.measure): f.difference for f in figures if f.measure in shared}

    forth, back = differences(one, other), differences(other, one)
    assert forth == {place: -difference for place, difference in back.items()}


@given(st.lists(st.builds(Entry, st.sampled_from(DAYS), st.just("gpt-4o"), amounts), max_size=6))
def test_an_alias_ties_out_with_its_snapshots(ledger):
    names = ["gpt-4o-2024-08-06", "gpt-4o-2024-11-20"]
    stated = [Entry(each.day, names[number % 2], each.amounts) for number, each in enumerate(ledger)]
    found = compare(ledger, stated, DAYS)
    assert found.differing() == ()
    assert found.together == ({"gpt-4o": ("gpt-4o", *names[: len(ledger)])} if ledger else {})


def test_names_both_sides_have_stay_apart():
    both = [Entry(DAY, "gpt-4o", {"requests": 1}), Entry(DAY, "gpt-4o-2024-08-06", {"requests": 2})]
    swapped = [Entry(DAY, "gpt-4o", {"requests": 2}), Entry(DAY, "gpt-4o-2024-08-06", {"requests": 1})]
    found = compare(both, swapped, [DAY])
    assert (len(found.differing()), found.together) == (2, {})


def test_what_only_one_side_has_is_shown():
    found = compare(
        [Entry(DAY, "llama", {"requests": 1})], [Entry(DAY, "Web search tool calls", {"requests": 2})], [DAY]
    )
    assert [(each.model, each.ledger, each.stated) for each in found.differing()] == [
        ("Web search tool calls", 0, 2),
        ("llama", 1, 0),
    ]


def test_what_is_stated_without_a_model_is_compared_by_day():
    ledger = [
        Entry(DAY, "a", {"requests": 1, "cost_pico_usd": 5}, 1),
        Entry(DAY, "b", {"requests": 2, "cost_pico_usd": 7}),
    ]
    stated = [Entry(DAY, None, {"cost_pico_usd": Fraction(25, 2)}), Entry(DAY, "a", {"requests": 1})]
    figures = compare(ledger, stated, [DAY]).figures
    assert [(each.model, each.measure, each.difference, each.estimated) for each in figures] == [
        (ALL_MODELS, "cost_pico_usd", Fraction(-1, 2), 1),
        ("a", "requests", 0, 1),
        ("b", "requests", 2, 0),
    ]


def test_days_that_are_not_covered_are_not_compared():
    ledger = [Entry(day, "a", {"requests": 1}) for day in DAYS]
    stated = [Entry(DAYS[0], "a", {"requests": 1})]
    assert compare(ledger, stated, [DAYS[0]]).differing() == ()
    assert [each.day for each in compare(ledger, stated, DAYS[:2]).differing()] == [DAYS[1]]


@pytest.mark.parametrize(
    ("ledger", "stated", "tolerance", "ties"),
    [
        (100, 100, Fraction(0), True),
        (101, 100, Fraction(0), False),
        (101, 100, Fraction(1, 100), True),
        (99, 100, Fraction(1, 100), True),
        (98, 100, Fraction(1, 100), False),
        (1, 0, Fraction(1), False),
    ],
)
def test_tolerance_is_a_part_of_what_is_stated(ledger, stated, tolerance, ties):
    found = compare([Entry(DAY, "a", {"requests": ledger})], [Entry(DAY, "a", {"requests": stated})], [DAY])
    assert (found.differing(tolerance) == ()) is ties


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("gpt-4-0613", "gpt-4"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
        ("gpt-4o", "gpt-4o"),
        ("gpt-4-1106-preview", "gpt-4-1106-preview"),
        ("o3-deep-research-2025-06-26", "o3-deep-research"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "ft:gpt-4o-mini-2024-07-18:org::id"),
        ("-2024-08-06", "-2024-08-06"),
        ("", ""),
    ],
)
def test_a_snapshot_has_the_name_of_its_model(model, base):
    assert base_name(model) == base
