"""Retries stay a share of requests: for every run of events, at every moment."""

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.retry_budget import SECONDS, RetryBudget

events = st.lists(st.tuples(st.integers(0, 4_000), st.booleans()), max_size=200)


def in_window(times, now_ms):
    """Those of the last ten seconds, the present one included, by whole seconds."""
    return sum(now_ms // 1_000 - SECONDS < at // 1_000 <= now_ms // 1_000 for at in times)


@given(events, st.integers(0, 100), st.integers(0, 3))
def test_a_retry_is_made_exactly_while_it_fits(events, percent, floor):
    budget = RetryBudget(percent, floor)
    requests, retries, now_ms = [], [], 1_000_000
    for step_ms, is_request in events:
        now_ms += step_ms
        if is_request:
            budget.requested(now_ms)
            requests.append(now_ms)
            continue
        room = in_window(requests, now_ms) * percent + floor * SECONDS * 100
        fits = (in_window(retries, now_ms) + 1) * 100 <= room
        assert budget.take(now_ms) is fits
        if fits:
            retries.append(now_ms)


def test_an_outage_of_a_busy_upstream_adds_a_fifth_and_the_floor():
    budget, made = RetryBudget(percent=20, floor_per_second=5), 0
    for at_ms in range(0, 10_000, 10):
        budget.requested(at_ms)
        made += budget.take(at_ms) + budget.take(at_ms)
    assert made == 1_000 * 20 // 100 + 50


def test_a_quiet_proxy_may_retry():
    budget = RetryBudget(percent=20, floor_per_second=5)
    budget.requested(0)
    assert [budget.take(0) for _ in range(51)] == [True] * 50 + [False]
    assert budget.take(10_000), "ten seconds later all of it is there again"


def test_no_share_and_no_floor_is_no_retry():
    budget = RetryBudget(percent=0, floor_per_second=0)
    for at_ms in range(1_000):
        budget.requested(at_ms)
    assert not budget.take(1_000)


def test_a_long_silence_is_no_work():
    budget = RetryBudget(percent=100, floor_per_second=0)
    budget.requested(0)
    assert not budget.take(10**15)
    budget.requested(10**15)
    assert budget.take(10**15)
    assert not budget.take(10**15)
