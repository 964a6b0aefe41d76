from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.budget import (
    LARGEST_BUDGET_NANO_USD,
    Account,
    BadBudget,
    Budget,
    Period,
    nano_usd,
    parse_budget,
    span_of,
)

USD = 1_000_000_000


def ms(*fields: int) -> int:
    return int(datetime(*fields, tzinfo=UTC).timestamp()) * 1_000


@pytest.mark.parametrize(
    ("text", "amount", "period"),
    [
        ("500usd/month", 500 * USD, Period.MONTH),
        ("$12.50/day", 12_500_000_000, Period.DAY),
        ("10000 USD / total", 10_000 * USD, Period.TOTAL),
        ("0.000000001/day", 1, Period.DAY),
        ("0usd/total", 0, Period.TOTAL),
    ],
)
def test_reads_a_budget(text, amount, period):
    assert parse_budget(text) == (amount, period)


@pytest.mark.parametrize(
    "text",
    ["", "500", "500usd", "/month", "-1usd/day", "1e3usd/day", "5usd/week", "0.0000000001usd/day", "5eur/day",
     "99999999usd/total", "1.usd/day", "\u0665usd/day"],
)  # fmt: skip
def test_refuses_what_is_no_budget(text):
    with pytest.raises(BadBudget):
        parse_budget(text)


def test_prints_a_budget_as_it_is_read():
    assert str(Budget(Period.MONTH, 500 * USD)) == "500.00usd/month"
    assert parse_budget(str(Budget(Period.DAY, warn_nano_usd=USD))) == (USD, Period.DAY)


def test_spans_are_those_of_utc():
    last = ms(2026, 12, 31, 23, 59, 59) + 999
    assert span_of(Period.DAY, last).id == "2026-12-31"
    assert span_of(Period.MONTH, last).id == "2026-12"
    assert span_of(Period.DAY, last + 1).id == "2027-01-01"
    assert span_of(Period.MONTH, ms(2028, 2, 29)).end_ms == ms(2028, 3, 1)
    assert span_of(Period.TOTAL, last).end_ms is None


@given(st.integers(0, ms(2200, 1, 1)), st.sampled_from([Period.DAY, Period.MONTH]))
def test_spans_follow_each_other_without_a_gap(at_ms, period):
    span = span_of(period, at_ms)
    assert span.end_ms is not None
    assert span.start_ms <= at_ms < span.end_ms
    assert span_of(period, span.end_ms).start_ms == span.end_ms
    assert span_of(period, span.end_ms - 1) == span


@given(st.integers(0, 10**18))
def test_rounding_never_makes_a_request_cheaper(pico):
    assert 0 <= nano_usd(pico) * 1_000 - pico < 1_000


def test_a_budget_is_spent_to_its_last_nano_dollar_and_no_further():
    account = Account(base_nano_usd=90, boundary=100, minutes={100: 5})
    assert account.fits(100, 5)
    assert not account.fits(100, 6)
    assert account.fits(None, LARGEST_BUDGET_NANO_USD)


def test_the_warning_is_given_once():
    account = Account(0, 0, {})
    account.take(1, 9)
    assert not account.reach(10)
    account.take(1, 1)
    assert not account.reach(None)
    assert account.reach(10)
    assert not account.reach(10)


def test_a_minute_behind_the_boundary_is_reserved_into_the_tail():
    account = Account(0, 50, {})
    assert account.take(40, 7) == 50
    account.settle(50, 7, 3)
    assert account.spent_nano_usd == 3


def test_what_the_ledger_has_taken_over_is_not_settled_twice():
    account = Account(0, 0, {})
    minute = account.take(1, 10)
    account.resync(2, base_nano_usd=4)
    account.settle(minute, 10, 4)
    assert account.spent_nano_usd == 4


def test_an_old_word_of_the_ledger_does_not_turn_back_a_newer_one():
    account = Account(7, 20, {20: 1})
    account.resync(19, 3)
    assert (account.boundary, account.spent_nano_usd) == (20, 8)


requests = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(0, 60), st.booleans()), max_size=30
)  # minute, reserved, actual, settlement lost


@given(requests)
def test_whatever_was_lost_the_account_is_the_ledgers_once_the_boundary_has_passed(history):
    account, ledger = Account(0, 0, {}), []
    for minute, reserved, actual, lost in sorted(history):
        taken = account.take(minute, reserved)
        ledger.append((minute, actual))
        if not lost:
            account.settle(taken, reserved, actual)
        boundary = minute - 5
        account.resync(boundary, sum(cost for at, cost in ledger if at < boundary))
        if not any(was_lost for at, _, _, was_lost in history if at >= boundary):
            assert account.spent_nano_usd == sum(cost for _, cost in ledger)
    account.resync(31, sum(cost for _, cost in ledger))
    assert account.spent_nano_usd == sum(cost for _, cost in ledger)
