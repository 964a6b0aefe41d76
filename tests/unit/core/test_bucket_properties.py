"""Properties of any history of a bucket, held against one that is charged with the actual use at admission."""

from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core import bucket
from proxy.core.bucket import STEP_BACK_MS, UNITS, Admitted, Cost, NeverFits, Refused, Scope
from proxy.core.tiers import Limits, Schedule

START = 1_700_000_000_000
STEADY_LIMITS = (Limits(6, 60), Limits(60, 6_000), Limits(None, 60, None, 90), Limits(6), Limits(7, 70, 3, 40))


def steady(limits):
    return Schedule(limits, limits)


class Truth:
    """A bucket that knows at admission what will be used: no reservation, no refund, no debt. Shares no code."""

    def __init__(self, schedule):
        self.schedule = schedule
        self.used = (0, 0)
        self.at_ms = START

    def until(self, now_ms):
        switch_ms = self.schedule.switch_at_ms
        split = switch_ms is not None and self.at_ms < switch_ms < now_ms
        for stop_ms in (switch_ms, now_ms) if split else (now_ms,):
            held = self.schedule.limits_at(stop_ms - 1)
            rates = (held.requests_per_minute or 0, held.tokens_per_minute or 0)
            passed_ms = stop_ms - self.at_ms
            self.used = tuple(max(0, used - rate * passed_ms) for used, rate in zip(self.used, rates, strict=True))
            self.at_ms = stop_ms
        now = self.schedule.limits_at(now_ms)
        limited = (now.requests_per_minute is not None, now.tokens_per_minute is not None)
        self.used = tuple(used if is_limited else 0 for used, is_limited in zip(self.used, limited, strict=True))
        return limited

    def charge(self, actual, now_ms):
        limited = self.until(now_ms)
        taken = (actual.requests * limited[0], actual.tokens * limited[1])
        self.used = tuple(used + count * 60_000 for used, count in zip(self.used, taken, strict=True))


class Team:
    """Buckets of a few scopes, moved by the functions under test, and for each the truth beside it."""

    def __init__(self, schedules):
        self.scopes = tuple(Scope(f"scope-{index}", schedule) for index, schedule in enumerate(schedules))
        self.states = [None] * len(self.scopes)
        self.truth = [Truth(schedule) for schedule in schedules]
        self.now = START
        self.epoch = 0
        self.open = []

    def next_epoch(self):
        self.epoch += 1
        return self.epoch

    def reserve(self, cost):
        answer, after = bucket.reserve(self.states, self.scopes, cost, self.now, self.next_epoch())
        decision = bucket.decision("team", self.scopes, cost, answer)
        self.states = [new or old for new, old in zip(after, self.states, strict=True)]
        return decision

    def admit(self, cost, actual):
        decision = self.reserve(cost)
        if isinstance(decision, Admitted):
            self.open.append((decision.reservation, actual))
            for truth in self.truth:
                truth.charge(actual, self.now)
        return decision

    def settle(self, which):
        reservation, actual = self.open.pop(which % len(self.open))
        for index, scope in enumerate(self.scopes):
            self.states[index] = bucket.settle(
                self.states[index],
                scope.schedule,
                reservation.handles[index],
                reservation.cost,
                actual,
                self.now,
                self.next_epoch(),
            )

    def lose(self, which):
        """The store forgets a bucket, as after an eviction: the truth starts anew with it."""
        which %= len(self.scopes)
        self.states[which] = None
        self.truth[which].used = (0, 0)

    def expire(self):
        for index, scope in enumerate(self.scopes):
            state = self.states[index]
            if state is not None and bucket.is_full(state, scope.schedule, self.now):
                self.states[index] = None

    def assert_nothing_is_counted_twice(self):
        for state, truth, scope in zip(self.states, self.truth, self.scopes, strict=True):
            truth.until(self.now)
            level, _ = bucket.advance(state or (0, self.now, 0, 0, 0, 0), scope.schedule, self.now)
            assert level[2] >= truth.used[0]
            assert level[4] >= truth.used[1]


schedules = st.lists(
    st.one_of(
        st.sampled_from(STEADY_LIMITS).map(steady),
        st.builds(
            Schedule,
            st.sampled_from(STEADY_LIMITS),
            st.sampled_from(STEADY_LIMITS),
            st.integers(START - 1_000, START + 90_000),
        ),
    ),
    min_size=1,
    max_size=2,
)
# Few sizes and pauses, large against the buckets: histories that collide, instead of ones that pass each other by.
pauses_ms = st.sampled_from([0, 1, 1_000, 10_000, 30_000, 60_000]) | st.integers(0, 3_000)
sizes = st.sampled_from([1, 10, 30, 60]) | st.integers(0, 60)
waits = st.tuples(st.just("wait"), pauses_ms)
settlements = st.tuples(st.just("settle"), st.integers(0, 9))
upper_bounds = st.tuples(
    st.just("admit"), sizes.flatmap(lambda most: st.tuples(st.just(most), st.just(0) | st.integers(0, most)))
)
any_estimates = st.tuples(st.just("admit"), st.tuples(sizes, sizes | st.integers(60, 200)))
losses = st.tuples(st.just("lose"), st.integers(0, 1))
expiries = st.tuples(st.just("expire"), st.none())


def histories(*operations, at_least=0):
    return st.lists(st.one_of(*operations), min_size=at_least, max_size=40)


def run(team, history, after_each):
    for name, detail in history:
        if name == "wait":
            team.now += detail
        elif name == "admit":
            tokens, actual = detail
            team.admit(Cost(1, tokens), Cost(actual % 2, actual))
        elif name == "settle" and team.open:
            team.settle(detail)
        elif name == "lose":
            team.lose(detail)
        elif name == "expire":
            team.expire()
        after_each()


@settings(max_examples=500)
@given(schedules, histories(waits, settlements, upper_bounds, upper_bounds, losses, expiries, at_least=8))
def test_the_level_is_never_below_the_truth_while_estimates_are_upper_bounds(schedules, history):
    team = Team(schedules)
    run(team, history, team.assert_nothing_is_counted_twice)


@settings(max_examples=200)
@given(
    schedules,
    histories(waits, settlements, upper_bounds, upper_bounds, expiries, at_least=8),
    st.sampled_from([1, 2**21]),
)
def test_nor_while_epochs_are_short(schedules, history, span):
    team = Team(schedules)
    with patch.object(bucket, "EPOCH_SPAN", span):
        run(team, history, team.assert_nothing_is_counted_twice)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(STEADY_LIMITS).map(steady), min_size=1, max_size=2),
    histories(waits, settlements, any_estimates, any_estimates, at_least=8),
)
def test_the_level_is_never_below_the_truth_once_all_have_settled(schedules, history):
    team = Team(schedules)
    run(team, history, lambda: None if team.open else team.assert_nothing_is_counted_twice())
    while team.open:
        team.settle(0)
    team.assert_nothing_is_counted_twice()


@settings(max_examples=200)
@given(
    st.sampled_from(STEADY_LIMITS),
    st.lists(st.one_of(waits, settlements, upper_bounds, upper_bounds), min_size=10, max_size=50),
)
def test_actual_use_in_any_span_stays_within_capacity_and_rate(limits, history):
    team = Team([steady(limits)])
    admissions = []
    for name, detail in history:
        if name == "wait":
            team.now += detail
        elif name == "settle" and team.open:
            team.settle(detail)
        elif name == "admit":
            tokens, actual = detail
            if isinstance(team.admit(Cost(1, tokens), Cost(1, actual)), Admitted):
                admissions.append((team.now, actual))
    request_rate, request_capacity, token_rate, token_capacity = limits.figures
    for first, (begin, _) in enumerate(admissions):
        for last in range(first, len(admissions)):
            span_ms = admissions[last][0] - begin
            within = admissions[first : last + 1]
            assert not request_rate or len(within) * UNITS <= request_capacity + span_ms * request_rate
            if token_rate:
                assert sum(actual for _, actual in within) * UNITS <= token_capacity + span_ms * token_rate


@settings(max_examples=300)
@given(
    schedules,
    histories(waits, settlements, any_estimates, any_estimates),
    st.integers(1, 3),
    sizes,
    st.sampled_from([0, 0, 1, 1_999, 2_000, 3_600_000]),
    st.data(),
)
def test_a_refusal_changes_nothing_and_its_wait_is_exact(schedules, history, requests, tokens, back_ms, data):
    team = Team(schedules)
    run(team, history, lambda: None)
    team.now -= back_ms
    for _ in range(20):
        before = list(team.states)
        decision = team.reserve(Cost(requests, tokens))
        if not isinstance(decision, Admitted):
            break
    else:
        return
    for old, new in zip(before, team.states, strict=True):
        if new is not old:
            assert back_ms >= STEP_BACK_MS
            assert new == (old[0], team.now, *old[2:])
    refused_at = team.now
    if isinstance(decision, Refused):
        assert decision.wait_ms > 0
        earlier = data.draw(st.integers(0, decision.wait_ms - 1))
        for wait_ms, admitted in ((decision.wait_ms - 1, False), (earlier, False), (decision.wait_ms, True)):
            team.now, states = refused_at + wait_ms, list(team.states)
            assert isinstance(team.reserve(Cost(requests, tokens)), Admitted) == admitted
            team.states = states
    else:
        assert isinstance(decision, NeverFits)
        assert decision.requested > decision.limit


@settings(max_examples=200)
@given(schedules, histories(waits, settlements, any_estimates, any_estimates), st.data())
def test_a_cost_within_what_remains_is_admitted_at_once_and_one_above_is_not(schedules, history, data):
    team = Team(schedules[:1])
    run(team, history, lambda: None)
    stands = bucket.standing(bucket.peek(team.states[0], team.scopes[0].schedule, team.now))
    requests = stands.requests.remaining if stands.requests else 5
    tokens = stands.tokens.remaining if stands.tokens else 500
    states = team.states
    if stands.requests:
        assert not isinstance(team.reserve(Cost(requests + 1, 0)), Admitted)
    if stands.tokens:
        assert not isinstance(team.reserve(Cost(0, tokens + 1)), Admitted)
    assert team.states == states
    cost = Cost(data.draw(st.integers(0, requests)), data.draw(st.integers(0, tokens)))
    assert isinstance(team.reserve(cost), Admitted)


@given(schedules, st.integers(1, 6), st.integers(1, 20), histories(waits, any_estimates))
def test_many_small_ones_cost_what_one_large_one_costs(schedules, count, tokens, history):
    one, many = Team(schedules), Team(schedules)
    run(one, history, lambda: None)
    run(many, history, lambda: None)
    at_once = one.reserve(Cost(count, count * tokens))
    one_by_one = [many.reserve(Cost(1, tokens)) for _ in range(count)]
    assert isinstance(at_once, Admitted) == all(isinstance(decision, Admitted) for decision in one_by_one)
    if isinstance(at_once, Admitted):
        assert [state[1:] for state in one.states] == [state[1:] for state in many.states]
        assert one_by_one[-1].standing == at_once.standing


@given(schedules, histories(waits, settlements, any_estimates), st.lists(st.integers(0, 30_000), max_size=6))
def test_looking_often_changes_nothing(schedules, history, pauses):
    team = Team(schedules)
    run(team, history, lambda: None)
    for state, scope in zip(team.states, team.scopes, strict=True):
        if state is None:
            continue
        now, polled = team.now, state
        for pause in pauses:
            now += pause
            polled, _ = bucket.advance(polled, scope.schedule, now)
        assert bucket.advance(polled, scope.schedule, now) == bucket.advance(state, scope.schedule, now)


@settings(max_examples=200)
@given(
    schedules, histories(waits, any_estimates, any_estimates), st.integers(0, 60), st.tuples(*4 * [st.integers(0, 10)])
)
def test_raising_a_limit_never_lengthens_a_wait(schedules, history, tokens, raises):
    def raised(limits):
        rates = (limits.requests_per_minute, limits.tokens_per_minute)
        capacities = (limits.effective_request_capacity, limits.effective_token_capacity)
        return Limits(*(old and old + by for old, by in zip((*rates, *capacities), raises, strict=True)))

    team = Team(schedules)
    run(team, history, lambda: None)
    before = bucket.reserve(team.states, team.scopes, Cost(1, tokens), team.now, 99)[0]
    higher = [
        Scope(scope.name, Schedule(raised(s.before), raised(s.after), s.switch_at_ms))
        for scope in team.scopes
        for s in [scope.schedule]
    ]
    after = bucket.reserve(team.states, higher, Cost(1, tokens), team.now, 99)[0]

    def wait_ms(answer):
        return {0: 0, 1: answer[7], 2: float("inf")}[answer[0]]

    assert wait_ms(after) <= wait_ms(before)


@settings(max_examples=200)
@given(
    st.sampled_from(STEADY_LIMITS).map(steady),
    histories(waits, any_estimates, any_estimates),
    st.integers(1, 5_000) | st.integers(1, 10**9),
    st.integers(0, 20_000),
)
def test_a_clock_that_is_set_back_creates_nothing(schedule, history, back_ms, later_ms):
    team = Team([schedule])
    run(team, history, lambda: None)
    if team.states[0] is None:
        team.admit(Cost(1, 1), Cost(1, 1))
    then, _ = bucket.advance(team.states[0], schedule, team.now)
    set_back, figures = bucket.advance(then, schedule, team.now - back_ms)
    assert set_back[2:] == then[2:]
    later, _ = bucket.advance(set_back, schedule, team.now - back_ms + later_ms)
    without, _ = bucket.advance(then, schedule, team.now + later_ms)
    assert later[2] >= without[2]
    assert later[4] >= without[4]
    assert then[2] - later[2] <= figures[0] * later_ms
    assert then[4] - later[4] <= figures[2] * later_ms


@given(
    st.sampled_from(STEADY_LIMITS),
    st.sampled_from(STEADY_LIMITS),
    histories(waits, any_estimates, settlements),
    st.integers(-100_000, 100_000),
)
def test_the_limits_of_a_decision_are_those_of_its_millisecond(before, after, history, offset_ms):
    team = Team([Schedule(before, after, START + 50_000)])
    run(team, history, lambda: None)
    team.now = max(team.now, START + 50_000 + offset_ms)
    standing = team.reserve(Cost(0, 0)).standing
    limits = before if team.now < START + 50_000 else after
    assert (standing.requests.limit if standing.requests else None) == limits.requests_per_minute
    assert (standing.tokens.limit if standing.tokens else None) == limits.tokens_per_minute


huge = st.integers(0, 10**10) | st.integers(0, 2**70)
enormous_limits = st.builds(
    Limits, *[st.none() | st.sampled_from([1, 10**10]) | st.integers(1, 10**10) for _ in range(4)]
)


@settings(max_examples=200)
@given(
    enormous_limits,
    st.lists(st.tuples(st.sampled_from("rcsw"), huge, huge), max_size=30),
    st.sampled_from([0, bucket.EPOCH_SPAN]),
)
def test_every_number_stays_exact_in_a_double(limits, operations, removed):
    team = Team([steady(limits)])
    team.states = [(0, START, 0, removed, 0, removed)]
    for name, one, other in operations:
        if name == "w":
            team.now += one % 10**9
        elif name == "c":
            team.states = [bucket.charge(team.states[0], steady(limits), Cost(one, other), team.now, team.next_epoch())]
        elif name == "r":
            team.admit(Cost(one, other), Cost(other, one))
        elif team.open:
            team.settle(one)
        assert all(0 <= number < 2**53 for number in team.states[0])
