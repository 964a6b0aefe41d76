from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.breaker import TRANSITIONS, Breaker, BreakerEvent, BreakerPolicy, BreakerState

POLICY = BreakerPolicy(failures_to_open=3, rest_ms=100, max_rest_ms=350, probe_ms=50)


def opened(now_ms=0):
    breaker = Breaker(POLICY)
    for _ in range(3):
        breaker.failed(now_ms)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_it_opens_after_a_run_of_failures_and_not_before():
    breaker = Breaker(POLICY)
    breaker.failed(0)
    breaker.failed(1)
    assert breaker.admits(2)
    breaker.failed(2)
    assert breaker.state is BreakerState.OPEN
    assert not breaker.admits(2)
    assert breaker.openings == 1


def test_a_success_ends_the_run():
    breaker = Breaker(POLICY)
    for _ in range(10):
        breaker.failed(0)
        breaker.failed(0)
        breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED


def test_one_probe_is_let_through_when_the_rest_is_over():
    breaker = opened(1_000)
    assert not breaker.admits(1_099)
    assert breaker.admits(1_100)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admits(1_100)
    assert not breaker.admits(1_149)


def test_when_to_come_back_is_the_end_of_the_rest_or_as_long_again_while_one_tries():
    breaker = Breaker(BreakerPolicy(failures_to_open=1, rest_ms=100, max_rest_ms=400, probe_ms=250))
    breaker.failed(1_000)
    assert [breaker.asks_again_in_ms(at_ms) for at_ms in (1_000, 1_060, 1_100)] == [100, 40, 1]
    assert breaker.admits(1_100)
    assert [breaker.asks_again_in_ms(at_ms) for at_ms in (1_100, 1_300, 1_350)] == [100, 50, 1]
    breaker.failed(1_300)
    assert breaker.asks_again_in_ms(1_300) == 200
    assert breaker.admits(1_500)
    assert breaker.asks_again_in_ms(1_501) == 200


def test_a_probe_that_is_never_heard_of_makes_way_for_another():
    breaker = opened()
    assert breaker.admits(100)
    assert breaker.admits(150)
    assert not breaker.admits(199)
    assert breaker.admits(200)


def test_a_probe_that_is_withdrawn_makes_way_at_once():
    breaker = opened()
    assert breaker.admits(100)
    breaker.withdrawn(101)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.would_admit(101)
    assert breaker.admits(101)
    assert not breaker.would_admit(150)
    assert not breaker.admits(150)


def test_nothing_is_withdrawn_where_nobody_tries():
    closed, breaker = Breaker(POLICY), opened()
    closed.withdrawn(5)
    breaker.withdrawn(5)
    assert (closed.state, breaker.state, breaker.until_ms) == (BreakerState.CLOSED, BreakerState.OPEN, 100)


@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from(["ask", "succeed", "fail", "withdraw"])), max_size=60))
def test_to_look_is_to_know_and_moves_nothing(steps):
    breaker, now_ms = Breaker(POLICY), 0
    for step_ms, what in steps:
        now_ms += step_ms
        before = (breaker.state, breaker.until_ms, breaker.failures)
        would = breaker.would_admit(now_ms)
        assert (breaker.state, breaker.until_ms, breaker.failures) == before
        match what:
            case "ask":
                assert breaker.admits(now_ms) is would
            case "succeed":
                breaker.succeeded()
            case "fail":
                breaker.failed(now_ms)
            case _:
                breaker.withdrawn(now_ms)


def test_a_probe_that_succeeds_closes_and_the_run_begins_anew():
    breaker = opened()
    assert breaker.admits(100)
    breaker.succeeded()
    assert breaker.state is BreakerState.CLOSED
    breaker.failed(101)
    breaker.failed(101)
    assert breaker.admits(101)


def test_each_failed_probe_doubles_the_rest_up_to_a_bound_and_closing_forgets_it():
    breaker, now_ms, rests = opened(), 0, []
    for _ in range(4):
        rests.append(breaker.until_ms - now_ms)
        now_ms = breaker.until_ms
        assert breaker.admits(now_ms)
        breaker.failed(now_ms)
    assert rests == [100, 200, 350, 350]
    assert breaker.admits(breaker.until_ms)
    breaker.succeeded()
    for _ in range(3):
        breaker.failed(10_000)
    assert breaker.until_ms == 10_100


def test_answers_to_what_was_asked_before_it_opened_change_nothing():
    breaker = opened()
    breaker.succeeded()
    breaker.failed(50)
    assert (breaker.state, breaker.until_ms) == (BreakerState.OPEN, 100)


def test_no_move_leads_out_of_the_table():
    reachable = {BreakerState.CLOSED}
    for _ in BreakerState:
        reachable |= {after for (before, _), after in TRANSITIONS.items() if before in reachable}
    assert reachable == set(BreakerState)
    assert {event for _, event in TRANSITIONS} == set(BreakerEvent)


moves = st.lists(st.tuples(st.sampled_from(["ask", "succeeded", "failed"]), st.integers(0, 400)), max_size=60)


@given(moves)
def test_whatever_happens_it_lets_one_through_within_the_longest_rest(steps):
    breaker, now_ms = Breaker(POLICY), 0
    for what, later_ms in steps:
        now_ms += later_ms
        if what == "ask":
            breaker.admits(now_ms)
        elif what == "succeeded":
            breaker.succeeded()
        else:
            breaker.failed(now_ms)
    assert breaker.admits(now_ms + POLICY.max_rest_ms)


@given(moves)
def test_while_not_closed_at_most_one_is_let_through_in_each_probe_time(steps):
    breaker, now_ms = opened(), 0
    let_through_ms = []
    for what, later_ms in steps:
        now_ms += later_ms
        if what == "failed":
            breaker.failed(now_ms)
        elif what == "ask" and breaker.admits(now_ms):
            let_through_ms.append(now_ms)
    gaps = [later - earlier for earlier, later in pairwise(let_through_ms)]
    assert all(gap >= POLICY.probe_ms for gap in gaps)


@pytest.mark.parametrize("state", BreakerState)
def test_success_never_opens_and_failure_never_closes(state):
    after_success = TRANSITIONS[state, BreakerEvent.SUCCEEDED]
    assert after_success is state or after_success is BreakerState.CLOSED
    assert TRANSITIONS[state, BreakerEvent.FAILED] is not BreakerState.CLOSED or state is BreakerState.CLOSED
