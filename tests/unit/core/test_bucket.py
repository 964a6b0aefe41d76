import json
from pathlib import Path

import pytest

from proxy.core import bucket
from proxy.core.bucket import (
    EPOCH_SPAN,
    STEP_BACK_MS,
    UNITS,
    Admitted,
    Cost,
    Dimension,
    Gauge,
    Handle,
    NeverFits,
    Refused,
    Scope,
    Standing,
)
from proxy.core.durations import format_duration
from proxy.core.tiers import DEFAULT_TIERS, LARGEST_LIMIT, Limits, Schedule

VECTORS = json.loads(Path(__file__).with_name("rate_limit_vectors.json").read_text())
NOW = 1_700_000_000_000


def steady(limits):
    return Schedule(limits, limits)


def scope(limits, name="team"):
    return Scope(name, steady(limits))


def state(*, requests=0, tokens=0, at=NOW, epoch=1):
    return (epoch, at, requests * UNITS, 0, tokens * UNITS, 0)


def reserve(states, scopes, cost, now=NOW, epoch=99):
    answer, after = bucket.reserve(states, scopes, cost, now, epoch)
    return bucket.decision("team-a", scopes, cost, answer), after


# What OpenAI publishes


@pytest.mark.parametrize("vector", [v for v in VECTORS["refusals"] if v["window"] == "minute"])
def test_the_wait_and_the_figures_of_published_refusals(vector):
    tokens = vector["dimension"] == "tokens"
    limits = Limits(None, vector["limit"]) if tokens else Limits(vector["limit"])
    used = state(tokens=vector["used"]) if tokens else state(requests=vector["used"])
    cost = Cost(1, vector["requested"]) if tokens else Cost(vector["requested"], 10)
    refused, _ = reserve([used], (scope(limits),), cost)
    assert isinstance(refused, Refused)
    assert format_duration(refused.wait_ms) == vector["try_again_in"]
    assert refused.dimension == vector["dimension"]
    assert (refused.limit, refused.used, refused.requested) == (vector["limit"], vector["used"], vector["requested"])


@pytest.mark.parametrize("vector", [v for v in VECTORS["refusals"] if v["window"] == "day"])
def test_the_formula_of_the_wait_also_gives_a_published_daily_refusal_in_units_of_a_day(vector):
    # Buckets here are per minute. A day's is the same arithmetic with 86,400,000 units to a request.
    units = 86_400_000
    wait_ms = bucket._wait(
        vector["used"] * units, vector["requested"] * units, vector["limit"], vector["limit"] * units
    )
    assert format_duration(wait_ms) == vector["try_again_in"]


@pytest.mark.parametrize("vector", VECTORS["resets"])
def test_resets_are_the_published_ones(vector):
    limits = Limits(None, vector["limit"])
    used = state(tokens=vector["limit"] - vector["remaining"])
    gauge = bucket.standing(bucket.peek(used, steady(limits), NOW)).tokens
    assert gauge.remaining == vector["remaining"]
    assert format_duration(gauge.reset_ms) == vector["reset"]
    assert bucket.is_full(used, steady(limits), NOW + gauge.reset_ms + 1)
    assert not bucket.is_full(used, steady(limits), NOW + gauge.reset_ms - 1)


def test_a_reset_is_cut_and_fullness_is_not():
    # 170,633 tokens of 200,000 a minute take 51,189.9 ms.
    schedule, used = steady(Limits(None, 200_000)), state(tokens=170_633)
    assert bucket.standing(bucket.peek(used, schedule, NOW)).tokens.reset_ms == 51_189
    assert bucket.standing(bucket.peek(used, schedule, NOW + 51_189)).tokens == Gauge(200_000, 199_997, 0)
    assert not bucket.is_full(used, schedule, NOW + 51_189)
    assert bucket.is_full(used, schedule, NOW + 51_190)


@pytest.mark.parametrize("switch_ms", [100, 51_189, 51_190, 51_191])
def test_a_reset_is_cut_on_the_side_of_the_switch_on_which_it_falls(switch_ms):
    schedule = Schedule(Limits(None, 200_000), Limits(None, 7), NOW + switch_ms)
    used = state(tokens=170_633)
    reset_ms = bucket.standing(bucket.peek(used, schedule, NOW)).tokens.reset_ms
    # Units left at the switch take their time at the second rate.
    left = 170_633 * UNITS - switch_ms * 200_000
    assert reset_ms == (switch_ms + left // 7 if left > 0 else 51_189)
    full_ms = next(ms for ms in (reset_ms, reset_ms + 1) if bucket.is_full(used, schedule, NOW + ms))
    assert not bucket.is_full(used, schedule, NOW + full_ms - 1)


# Deciding


def test_an_absent_bucket_is_full_and_its_standing_shows_the_charge():
    decision, after = reserve([None], (scope(Limits(20, 40_000)),), Cost(1, 500))
    assert isinstance(decision, Admitted)
    assert decision.standing == Standing(Gauge(20, 19, 3_000), Gauge(40_000, 39_500, 750))
    assert after == [(99, NOW, UNITS, 0, 500 * UNITS, 0)]
    assert decision.reservation.team == "team-a"
    assert decision.reservation.cost == Cost(1, 500)
    assert len(decision.reservation.handles) == 1


def test_capacity_lets_a_burst_pass_and_the_rate_refills_it():
    scopes = (scope(Limits(60, None, 5)),)
    states = [None]
    for _ in range(5):
        decision, states = reserve(states, scopes, Cost(1, 0))
        assert isinstance(decision, Admitted)
    decision, _ = reserve(states, scopes, Cost(1, 0))
    assert isinstance(decision, Refused)
    assert decision.wait_ms == 1_000
    assert decision.standing.requests == Gauge(60, 0, 5_000)


@pytest.mark.parametrize(
    ("states", "cost", "binding"),
    [
        ((state(requests=10), state()), Cost(1, 1), ("team", Dimension.REQUESTS, 6_000)),
        ((state(requests=10), state(tokens=50)), Cost(1, 60), ("key:k", Dimension.TOKENS, 12_000)),
        ((state(requests=10, tokens=100), state()), Cost(1, 50), ("team", Dimension.TOKENS, 30_000)),
        ((state(requests=10, tokens=100), state()), Cost(1, 10), ("team", Dimension.REQUESTS, 6_000)),
        ((state(requests=9), state(requests=10)), Cost(2, 0), ("key:k", Dimension.REQUESTS, 12_000)),
    ],
    ids=["the only one", "second scope", "tokens", "equal waits: the first", "both scopes: the longer"],
)
def test_the_binding_limit_is_the_one_with_the_longest_wait(states, cost, binding):
    limits = Limits(10, 100)
    token_limits = Limits(10, 50, None, 100)
    scopes = (scope(limits), scope(token_limits if binding[0] == "key:k" and cost.tokens else limits, "key:k"))
    refused, after = reserve(states, scopes, cost)
    assert isinstance(refused, Refused)
    assert (refused.scope, refused.dimension, refused.wait_ms) == binding
    assert after == [None, None]


def test_used_is_rounded_up_so_that_the_figures_explain_the_refusal():
    half_a_request_back = state(requests=20, at=NOW - 1_500)
    refused, _ = reserve([half_a_request_back], (scope(Limits(20)),), Cost(1, 0))
    assert isinstance(refused, Refused)
    assert (refused.used, refused.requested, refused.limit, refused.wait_ms) == (20, 1, 20, 1_500)
    assert refused.standing.requests == Gauge(20, 0, 58_500)


def test_a_cost_above_capacity_never_fits_and_is_told_so_at_once():
    scopes = (scope(Limits(20, 40_000)), scope(Limits(None, 40_000, None, 90_000), "model:m"))
    decision, after = reserve([None, None], scopes, Cost(1, 40_001))
    assert decision == NeverFits(
        "team", Dimension.TOKENS, 40_000, 40_001, Standing(Gauge(20, 20, 0), Gauge(40_000, 40_000, 0))
    )
    assert after == [None, None]
    assert isinstance(reserve([None, None], scopes, Cost(1, 40_000))[0], Admitted)
    only_second = (scope(Limits(20)), scopes[1])
    refused, _ = reserve([state(requests=20), None], only_second, Cost(1, 90_001))
    assert isinstance(refused, NeverFits)
    assert (refused.scope, refused.limit, refused.standing.tokens) == ("model:m", 90_000, None)


def test_a_dimension_without_limit_is_neither_checked_nor_charged():
    unlimited = scope(DEFAULT_TIERS["unlimited"].phases[0].limits)
    decision, after = reserve([None], (unlimited,), Cost(10**15, 10**15))
    assert isinstance(decision, Admitted)
    assert decision.standing == Standing()
    assert after[0][2:] == (0, 0, 0, 0)
    requests_only = scope(Limits(1))
    _, after = reserve([None], (requests_only,), Cost(1, 10**15))
    assert after[0][2:] == (UNITS, 0, 0, 0)


def test_negative_counts_take_and_give_nothing():
    scopes = (scope(Limits(2, 2)),)
    decision, after = reserve([state(requests=1, tokens=1)], scopes, Cost(-1, -1))
    assert isinstance(decision, Admitted)
    assert after[0][2:] == (UNITS, 0, UNITS, 0)
    handle = decision.reservation.handles[0]
    assert bucket.settle(after[0], scopes[0].schedule, handle, Cost(-1, -1), Cost(-5, -5), NOW, 2) == after[0]
    assert bucket.charge(after[0], scopes[0].schedule, Cost(-5, -5), NOW, 2) == after[0]


# Settling


def test_requests_that_end_small_after_a_minute_do_not_hand_their_reservation_out_twice():
    scopes = (scope(Limits(None, 40_000)),)
    states, open_reservations = [None], []
    for minute in range(10):
        decision, states = reserve(states, scopes, Cost(1, 40_000), NOW + minute * 60_000)
        assert isinstance(decision, Admitted)
        open_reservations.append(decision.reservation)
    # The last one has just been let in: all of its use is still in the bucket, all of the others' has decayed.
    now = NOW + 9 * 60_000
    for reservation in open_reservations:
        settled = bucket.settle(
            states[0], scopes[0].schedule, reservation.handles[0], Cost(1, 40_000), Cost(1, 100), now, 2
        )
        states = [settled]
    assert settled[4] == 100 * UNITS
    admitted = 0
    while isinstance(reserve(states, scopes, Cost(1, 39_900), now)[0], Admitted):
        _, states = reserve(states, scopes, Cost(1, 39_900), now)
        admitted += 1
    assert admitted == 1


def settled(*, reserved, actual, later_ms=0):
    scopes = (scope(Limits(10, 600)),)
    decision, after = reserve([None], scopes, reserved)
    handle = decision.reservation.handles[0]
    return bucket.settle(after[0], scopes[0].schedule, handle, reserved, actual, NOW + later_ms, 2)


def test_what_was_not_used_comes_back_in_both_dimensions():
    assert settled(reserved=Cost(1, 500), actual=Cost(0, 100))[2:] == (0, UNITS, 100 * UNITS, 400 * UNITS)


def test_what_refill_has_returned_does_not_come_back_again():
    # 600 a minute: after 20 s 200 of the 500 are back already, and of the 400 unused only 300 are still there.
    assert settled(reserved=Cost(1, 500), actual=Cost(1, 100), later_ms=20_000)[4] == 0
    # Content that came in later is not touched by it.
    limits = Limits(None, 600)
    decision, after = reserve([None], (scope(limits),), Cost(1, 500))
    _, after = reserve(after, (scope(limits),), Cost(1, 250), NOW + 20_000)
    handle = decision.reservation.handles[0]
    later = bucket.settle(after[0], steady(limits), handle, Cost(1, 500), Cost(1, 100), NOW + 20_000, 2)
    assert later[4] == 250 * UNITS


def test_what_was_used_above_the_reservation_is_a_debt_that_is_never_forgiven():
    debt = settled(reserved=Cost(1, 500), actual=Cost(1, 1_500))
    assert debt[4] == 1_500 * UNITS
    refused, _ = reserve([debt], (scope(Limits(10, 600)),), Cost(1, 100))
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 100_000
    assert refused.used == 1_500
    assert refused.standing.tokens == Gauge(600, 0, 150_000)


@pytest.mark.parametrize("gone", [None, state(tokens=300, epoch=2)], ids=["absent", "another epoch"])
def test_a_bucket_that_was_made_anew_takes_debts_and_gives_no_refunds(gone):
    handle = Handle(1, 0, UNITS, 0, 500 * UNITS)
    schedule = steady(Limits(10, 600))
    before = gone or (7, NOW, 0, 0, 0, 0)
    refund = bucket.settle(gone, schedule, handle, Cost(1, 500), Cost(0, 0), NOW, 7)
    assert refund == before
    debt = bucket.settle(gone, schedule, handle, Cost(1, 500), Cost(1, 700), NOW, 7)
    assert debt[4] == before[4] + 200 * UNITS


def test_limits_that_change_between_reservation_and_settlement_need_no_conversion():
    small, large = Limits(10, 600), Limits(10, 6_000)
    schedule = Schedule(small, large, NOW + 10_000)
    scopes = (Scope("team", schedule),)
    decision, after = reserve([None], scopes, Cost(1, 600))
    handle = decision.reservation.handles[0]
    # 10 s at 600 a minute return 100, then 3 s at 6,000 a minute return 300.
    late = bucket.settle(after[0], schedule, handle, Cost(1, 600), Cost(1, 500), NOW + 13_000, 2)
    assert late[4:] == (100 * UNITS, 500 * UNITS)
    raised = bucket.settle(after[0], steady(large), handle, Cost(1, 600), Cost(1, 500), NOW, 2)
    assert raised[4:] == (500 * UNITS, 100 * UNITS)
    became_unlimited = bucket.settle(after[0], steady(Limits()), handle, Cost(1, 600), Cost(1, 500), NOW, 2)
    assert became_unlimited[4:] == (500 * UNITS, 100 * UNITS)


def test_what_was_reserved_without_limit_is_not_settled_once_there_is_one():
    decision, after = reserve([None], (scope(Limits(10)),), Cost(1, 600))
    handle = decision.reservation.handles[0]
    limited = steady(Limits(10, 600))
    _, charged = reserve(after, (Scope("team", limited),), Cost(1, 300))
    for actual in (0, 900):
        assert bucket.settle(charged[0], limited, handle, Cost(1, 600), Cost(1, actual), NOW, 2) == charged[0]


def test_what_was_used_before_a_limit_was_lifted_is_forgotten():
    _, after = reserve([state(tokens=600)], (scope(Limits(10)),), Cost(1, 5))
    assert after[0][4:] == (0, 600 * UNITS)


# Epochs and bounds


@pytest.mark.parametrize("act", ["reserve", "settle", "charge"])
def test_a_long_count_of_removals_starts_a_new_epoch(act):
    schedule = steady(Limits(10, 600))
    long = (1, NOW, 0, 0, 500 * UNITS, EPOCH_SPAN + 1)
    issued = Handle(1, 0, UNITS, EPOCH_SPAN, 100 * UNITS)
    if act == "reserve":
        decision, (after,) = reserve([long], (Scope("team", schedule),), Cost(1, 100), epoch=7)
        assert decision.reservation.handles[0].epoch == 7
    elif act == "settle":
        after = bucket.settle(long, schedule, issued, Cost(1, 100), Cost(1, 200), NOW, 7)
    else:
        after = bucket.charge(long, schedule, Cost(1, 100), NOW, 7)
    assert after[:2] == (7, NOW)
    assert after[3:] == (0, 600 * UNITS, 0)
    assert bucket.settle(after, schedule, issued, Cost(1, 100), Cost(1, 0), NOW, 8) == after


def test_debts_stop_growing_before_sums_lose_exactness():
    schedule = steady(Limits(LARGEST_LIMIT, LARGEST_LIMIT))
    after = None
    for _ in range(20):
        after = bucket.charge(after, schedule, Cost(10**18, 10**18), NOW, 1)
    assert max(after) == 2**52
    after = bucket.settle(after, schedule, Handle(1, 0, 0, 0, 0), Cost(0, 0), Cost(10**18, 10**18), NOW, 1)
    assert max(after) == 2**52


# The clock


def test_a_clock_a_little_behind_is_waited_for_and_the_wait_says_so():
    limits = scope(Limits(60))
    full = state(requests=60)
    refused, after = reserve([full], (limits,), Cost(1, 0), NOW - STEP_BACK_MS + 1)
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 1_000 + STEP_BACK_MS - 1
    assert refused.standing.requests == Gauge(60, 0, 60_000 + STEP_BACK_MS - 1)
    assert after == [None]
    assert isinstance(reserve([full], (limits,), Cost(1, 0), NOW + 1_000)[0], Admitted)
    assert isinstance(reserve([full], (limits,), Cost(1, 0), NOW + 999)[0], Refused)


def test_what_is_full_within_a_millisecond_of_a_clock_that_is_waited_for_is_told_so():
    nearly = (1, NOW, 1, 0, 0, 0)
    schedule = steady(Limits(60, 600))
    assert bucket.standing(bucket.peek(nearly, schedule, NOW)) == Standing(Gauge(60, 59, 0), Gauge(600, 600, 0))
    assert bucket.standing(bucket.peek(nearly, schedule, NOW - 10)) == Standing(Gauge(60, 59, 10), Gauge(600, 600, 0))


def test_a_clock_far_behind_is_adopted_even_by_a_refusal_and_refills_nothing():
    limits = scope(Limits(60))
    hour_ago = NOW - 3_600_000
    refused, after = reserve([state(requests=60), None], (limits, scope(Limits(1), "key:k")), Cost(1, 0), hour_ago)
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 1_000
    assert after == [state(requests=60, at=hour_ago), None]
    assert isinstance(reserve([after[0]], (limits,), Cost(1, 0), hour_ago + 1_000)[0], Admitted)


def test_a_clock_far_ahead_gives_one_refill():
    limits = scope(Limits(60))
    year = 365 * 86_400_000
    decision, after = reserve([state(requests=60)], (limits,), Cost(60, 0), NOW + year)
    assert isinstance(decision, Admitted)
    assert isinstance(reserve(after, (limits,), Cost(1, 0), NOW + year)[0], Refused)


# Around a switch


def payg(name="team"):
    return Scope(name, DEFAULT_TIERS["payg"].schedule(NOW, NOW))


SWITCH = NOW + 172_800_000


def test_a_wait_over_the_switch_is_counted_on_both_sides_of_it():
    full = state(requests=60, at=SWITCH - 100)
    # 100 ms at 60 a minute return 0.1 of a request; the capacity of 3,500 is there at once.
    refused, _ = reserve([full], (payg(),), Cost(1, 0), SWITCH - 100)
    assert isinstance(refused, Refused)
    assert (refused.wait_ms, refused.limit, refused.used) == (100, 60, 60)
    assert refused.standing.requests == Gauge(60, 0, 100 + (60 * UNITS - 100 * 60) // 3_500)
    admitted, _ = reserve([full], (payg(),), Cost(1, 0), SWITCH)
    assert isinstance(admitted, Admitted)
    assert admitted.standing.requests.limit == 3_500


def test_a_cost_the_next_phase_has_no_room_for_never_fits_if_it_would_have_to_wait_for_it():
    scopes = (Scope("team", Schedule(Limits(None, 100), Limits(None, 50), NOW + 1_000)),)
    soon, _ = reserve([state(tokens=41)], scopes, Cost(1, 60), NOW)
    assert isinstance(soon, Refused)
    assert soon.wait_ms == 600
    late, _ = reserve([state(tokens=50)], scopes, Cost(1, 60), NOW)
    assert late == NeverFits("team", Dimension.TOKENS, 50, 60, Standing(None, Gauge(100, 50, 59_000)))


def test_a_switch_that_takes_room_away_on_the_way_lengthens_the_wait():
    # Tokens have room only after 2 s; by then the request limit has dropped to one that needs longer.
    dropping = Schedule(Limits(60), Limits(6), NOW + 1_000)
    scopes = (Scope("team", steady(Limits(None, 600))), Scope("key:k", dropping))
    states = (state(tokens=600), state(requests=10))
    refused, _ = reserve(states, scopes, Cost(1, 20), NOW)
    assert isinstance(refused, Refused)
    assert (refused.scope, refused.dimension) == ("team", Dimension.TOKENS)
    # 10 requests used, 1 back by the switch, then 6 a minute: 4 more must go.
    assert refused.wait_ms == 1_000 + 40_000
    assert isinstance(reserve(states, scopes, Cost(1, 20), NOW + refused.wait_ms)[0], Admitted)
    assert isinstance(reserve(states, scopes, Cost(1, 20), NOW + refused.wait_ms - 1)[0], Refused)


def test_a_debt_in_one_dimension_does_not_hold_up_what_takes_none_of_it():
    scopes = (scope(Limits(10, 600)),)
    decision, after = reserve([state(tokens=900)], scopes, Cost(1, 0))
    assert isinstance(decision, Admitted)
    assert decision.standing.tokens == Gauge(600, 0, 90_000)
    assert isinstance(reserve(after, scopes, Cost(1, 1))[0], Refused)
