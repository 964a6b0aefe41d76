"""What every engine of `ports.Limiter` answers, whatever it keeps its buckets in."""

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.core.bucket import Admitted, Cost, Dimension, Gauge, NeverFits, Refused, Scope, Standing
from proxy.core.tiers import DEFAULT_TIERS, Limits, Schedule

# Each example takes teams of its own, so that one limiter serves all of them.
property_settings = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
team_names = (f"team-{number}" for number in count())


def scope(name="team", *limits, **named):
    held = Limits(*limits, **named)
    return Scope(name, Schedule(held, held))


TEAM = (scope("team", 10, 600),)
BOTH = (*TEAM, scope("key:k", 5, 1_200))
FULL = Standing(Gauge(10, 10, 0), Gauge(600, 600, 0))


async def admit(limiter, team, scopes, cost):
    decision = await limiter.reserve(team, scopes, cost)
    assert isinstance(decision, Admitted), decision
    return decision.reservation


# Reserving


async def test_a_team_never_seen_has_full_buckets(limiter):
    assert await limiter.peek("new", BOTH) == (FULL, Standing(Gauge(5, 5, 0), Gauge(1_200, 1_200, 0)))


async def test_an_admission_charges_every_scope_and_shows_the_first(limiter):
    decision = await limiter.reserve("a", BOTH, Cost(1, 60))
    assert isinstance(decision, Admitted)
    assert decision.standing == Standing(Gauge(10, 9, 6_000), Gauge(600, 540, 6_000))
    assert decision.reservation.team == "a"
    assert decision.reservation.scopes == BOTH
    assert decision.reservation.cost == Cost(1, 60)
    assert await limiter.peek("a", BOTH) == (
        decision.standing,
        Standing(Gauge(5, 4, 12_000), Gauge(1_200, 1_140, 3_000)),
    )


async def test_a_refusal_names_the_binding_limit_and_changes_no_scope(limiter):
    await admit(limiter, "a", BOTH, Cost(5, 100))
    before = await limiter.peek("a", BOTH)
    refused = await limiter.reserve("a", BOTH, Cost(1, 300))
    assert refused == Refused(12_000, "key:k", Dimension.REQUESTS, 5, 5, 1, before[0])
    refused = await limiter.reserve("a", BOTH, Cost(0, 560))
    assert refused == Refused(6_000, "team", Dimension.TOKENS, 600, 100, 560, before[0])
    assert await limiter.peek("a", BOTH) == before


async def test_what_can_never_fit_is_told_so_and_changes_no_scope(limiter):
    await admit(limiter, "a", BOTH, Cost(1, 100))
    before = await limiter.peek("a", BOTH)
    assert await limiter.reserve("a", BOTH, Cost(1, 601)) == NeverFits("team", Dimension.TOKENS, 600, 601, before[0])
    assert await limiter.reserve("a", BOTH, Cost(6, 1)) == NeverFits("key:k", Dimension.REQUESTS, 5, 6, before[0])
    assert await limiter.peek("a", BOTH) == before


async def test_a_wait_is_exact_to_the_millisecond(limiter, clock):
    await admit(limiter, "a", TEAM, Cost(1, 600))
    refused = await limiter.reserve("a", TEAM, Cost(1, 7))
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 700
    clock.advance(699)
    early = await limiter.reserve("a", TEAM, Cost(1, 7))
    assert isinstance(early, Refused)
    assert early.wait_ms == 1
    clock.advance(1)
    await admit(limiter, "a", TEAM, Cost(1, 7))


async def test_a_bucket_is_full_again_at_its_reset_and_not_before(limiter, clock):
    decision = await limiter.reserve("a", TEAM, Cost(0, 77))
    assert decision.standing.tokens.reset_ms == 7_700
    clock.advance(7_699)
    assert (await limiter.peek("a", TEAM))[0].tokens == Gauge(600, 599, 1)
    clock.advance(1)
    assert await limiter.peek("a", TEAM) == (FULL,)


async def test_a_cache_hit_takes_a_request_and_no_tokens(limiter):
    limiter.charge("a", TEAM, Cost(0, 1_000))
    decision = await limiter.reserve("a", TEAM, Cost(1, 0))
    assert isinstance(decision, Admitted)
    assert decision.standing.requests.remaining == 9


async def test_without_limits_everything_passes(limiter):
    unlimited = (Scope("team", DEFAULT_TIERS["unlimited"].schedule(0, 0)),)
    for _ in range(3):
        reservation = await admit(limiter, "a", unlimited, Cost(10**9, 10**12))
        limiter.settle(reservation, Cost(10**9, 10**13))
    limiter.charge("a", unlimited, Cost(1, 1))
    assert await limiter.peek("a", unlimited) == (Standing(),)


# Settling


async def tokens_left(limiter, team="a", scopes=TEAM):
    return (await limiter.peek(team, scopes))[0].tokens.remaining


async def test_what_was_not_used_comes_back_to_every_scope(limiter):
    reservation = await admit(limiter, "a", BOTH, Cost(1, 500))
    limiter.settle(reservation, Cost(1, 100))
    team, key = await limiter.peek("a", BOTH)
    assert (team.requests.remaining, team.tokens.remaining) == (9, 500)
    assert (key.requests.remaining, key.tokens.remaining) == (4, 1_100)


async def test_a_request_that_was_not_made_comes_back_too(limiter):
    limiter.settle(await admit(limiter, "a", BOTH, Cost(1, 500)), Cost(0, 0))
    assert (await limiter.peek("a", BOTH))[0] == FULL


async def test_what_was_used_beyond_the_reservation_is_a_debt(limiter):
    limiter.settle(await admit(limiter, "a", BOTH, Cost(1, 500)), Cost(1, 900))
    refused = await limiter.reserve("a", BOTH, Cost(1, 100))
    assert isinstance(refused, Refused)
    assert (refused.wait_ms, refused.used) == (40_000, 900)
    assert refused.standing.tokens == Gauge(600, 0, 90_000)


async def test_settling_again_does_nothing(limiter):
    first = await admit(limiter, "a", BOTH, Cost(1, 300))
    await admit(limiter, "a", BOTH, Cost(1, 200))
    limiter.settle(first, Cost(1, 100))
    once = await limiter.peek("a", BOTH)
    limiter.settle(first, Cost(1, 100))
    limiter.settle(first, Cost(0, 0))
    limiter.settle(first, Cost(1, 10_000))
    assert await limiter.peek("a", BOTH) == once


async def test_settling_late_returns_only_what_refill_has_not(limiter, clock):
    reservation = await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.advance(30_000)
    await admit(limiter, "a", TEAM, Cost(1, 250))
    clock.advance(20_000)
    # 850 were charged, 500 have decayed: of the first 600 no more than 100 can still be there.
    limiter.settle(reservation, Cost(1, 50))
    assert await tokens_left(limiter) == 600 - 250


async def test_settling_after_the_bucket_was_full_and_charged_anew_returns_nothing(limiter, clock):
    reservation = await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.advance(3_600_000)
    for _ in range(3):  # Engines that drop full buckets get the occasion.
        clock.advance(1_000)
        await admit(limiter, "other", TEAM, Cost(1, 1))
    await admit(limiter, "a", TEAM, Cost(1, 400))
    limiter.settle(reservation, Cost(0, 0))
    assert await tokens_left(limiter) == 200


async def test_a_debt_survives_the_bucket_it_was_reserved_from(limiter, clock):
    reservation = await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.advance(3_600_000)
    await admit(limiter, "other", TEAM, Cost(1, 1))
    limiter.settle(reservation, Cost(1, 700))
    assert await tokens_left(limiter) == 500


async def test_a_charge_takes_without_asking(limiter):
    await admit(limiter, "a", BOTH, Cost(1, 500))
    limiter.charge("a", BOTH, Cost(2, 400))
    team, key = await limiter.peek("a", BOTH)
    assert team == Standing(Gauge(10, 7, 18_000), Gauge(600, 0, 90_000))
    assert key.tokens == Gauge(1_200, 300, 45_000)


# Teams and scopes


async def test_teams_and_scopes_with_names_alike_are_apart(limiter):
    await admit(limiter, "a", TEAM, Cost(1, 600))
    for team, name in [("a:team", "team"), ("a", "team:team"), ("", "a:team"), ("b", "team"), ("A", "team")]:
        assert await limiter.peek(team, (scope(name, 10, 600),)) == (FULL,)


operations = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "reserve", "settle", "charge", "wait"]),
        st.booleans(),
        st.integers(0, 400),
        st.integers(0, 400),
    ),
    min_size=5,
    max_size=30,
)


async def play(limiter, clock, history, names):
    """Both teams' answers to a history; a name of None leaves that team's part out."""
    answers, open_reservations = [], {True: [], False: []}
    for verb, who, one, other in history:
        name = names[who]
        if verb == "wait":
            clock.advance(one * 50)
        elif name is None:
            continue
        elif verb == "reserve":
            decision = await limiter.reserve(name, BOTH, Cost(1, one))
            if isinstance(decision, Admitted):
                open_reservations[who].append((decision.reservation, other))
            answers.append((who, decision.standing, type(decision), getattr(decision, "wait_ms", 0)))
        elif verb == "charge":
            limiter.charge(name, BOTH, Cost(0, one // 4))
        elif open_reservations[who]:
            reservation, actual = open_reservations[who].pop(one % len(open_reservations[who]))
            limiter.settle(reservation, Cost(1, actual))
            answers.append((who, await limiter.peek(name, BOTH)))
    return answers


@property_settings
@given(history=operations)
async def test_teams_never_interact(limiter, clock, history):
    together = await play(limiter, clock, history, {True: next(team_names), False: next(team_names)})
    for who in (True, False):
        alone = await play(limiter, clock, history, {who: next(team_names), (not who): None})
        assert alone == [answer for answer in together if answer[0] is who]


@property_settings
@given(history=operations)
async def test_actual_use_stays_within_capacity_and_rate_in_every_span(limiter, clock, history):
    team, used, open_reservations = next(team_names), [], []
    for verb, _, one, other in history:
        if verb in ("wait", "charge"):
            clock.advance(one * 100)
        elif verb == "reserve":
            decision = await limiter.reserve(team, TEAM, Cost(1, one))
            if isinstance(decision, Admitted):
                actual = min(one, other)
                used.append((clock.now_ms(), actual))
                open_reservations.append((decision.reservation, actual))
        elif open_reservations:
            reservation, actual = open_reservations.pop(one % len(open_reservations))
            limiter.settle(reservation, Cost(1, actual))
    for first, (begin, _) in enumerate(used):
        for last in range(first, len(used)):
            span_ms = used[last][0] - begin
            assert (last - first + 1) * 60_000 <= 10 * 60_000 + span_ms * 10
            assert sum(tokens for _, tokens in used[first : last + 1]) * 60_000 <= 600 * 60_000 + span_ms * 600


@property_settings
@given(history=operations, requests=st.integers(0, 6), tokens=st.integers(0, 700))
async def test_refused_until_the_wait_is_over_and_admitted_then(limiter, clock, history, requests, tokens):
    team = next(team_names)
    await play(limiter, clock, history, {True: team, False: team})
    before = await limiter.peek(team, BOTH)
    decision = await limiter.reserve(team, BOTH, Cost(requests, tokens))
    if isinstance(decision, Admitted):
        return
    assert await limiter.peek(team, BOTH) == before
    if isinstance(decision, NeverFits):
        assert decision.requested > decision.limit
        return
    clock.advance(decision.wait_ms - 1)
    assert isinstance(await limiter.reserve(team, BOTH, Cost(requests, tokens)), Refused)
    clock.advance(1)
    assert isinstance(await limiter.reserve(team, BOTH, Cost(requests, tokens)), Admitted)


# The clock


async def test_a_clock_set_back_a_little_is_waited_for(limiter, clock):
    await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.step(-1_999)
    refused = await limiter.reserve("a", TEAM, Cost(1, 6))
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 1_999 + 600
    clock.advance(refused.wait_ms - 1)
    assert isinstance(await limiter.reserve("a", TEAM, Cost(1, 6)), Refused)
    clock.advance(1)
    await admit(limiter, "a", TEAM, Cost(1, 6))


@pytest.mark.parametrize("back_ms", [2_000, 86_400_000])
async def test_a_clock_set_back_further_is_adopted_and_creates_nothing(limiter, clock, back_ms):
    await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.step(-back_ms)
    refused = await limiter.reserve("a", TEAM, Cost(1, 6))
    assert isinstance(refused, Refused)
    assert refused.wait_ms == 600
    clock.advance(599)
    assert isinstance(await limiter.reserve("a", TEAM, Cost(1, 6)), Refused)
    clock.advance(1)
    await admit(limiter, "a", TEAM, Cost(1, 6))


async def test_a_clock_set_ahead_gives_one_refill_at_most(limiter, clock):
    await admit(limiter, "a", TEAM, Cost(1, 600))
    clock.step(86_400_000)
    await admit(limiter, "a", TEAM, Cost(1, 600))
    assert isinstance(await limiter.reserve("a", TEAM, Cost(1, 1)), Refused)


# The tier


async def test_payg_switches_on_the_millisecond_after_48_hours(limiter, clock):
    payg, since_ms = DEFAULT_TIERS["payg"], clock.now_ms()
    # One caller asked for its schedule long before the switch, the other's clock runs a minute ahead.
    early = (Scope("team", payg.schedule(since_ms, since_ms)),)
    ahead = (Scope("team", payg.schedule(since_ms, since_ms + 172_800_000 + 60_000)),)
    clock.advance(172_800_000 - 1)
    for team, scopes in (("early", early), ("ahead", ahead)):
        await admit(limiter, team, scopes, Cost(60, 60_000))
        refused = await limiter.reserve(team, scopes, Cost(1, 1))
        assert isinstance(refused, Refused)
        assert (refused.limit, refused.wait_ms) == (60, 1)
        assert isinstance(await limiter.reserve(team, scopes, Cost(1, 60_001)), NeverFits)
    clock.advance(1)
    for team, scopes in (("early", early), ("ahead", ahead)):
        decision = await limiter.reserve(team, scopes, Cost(3_440, 30_000))
        assert isinstance(decision, Admitted)
        assert decision.standing == Standing(Gauge(3_500, 0, 59_999), Gauge(90_000, 1, 59_999))
        refused = await limiter.reserve(team, scopes, Cost(1, 1))
        assert isinstance(refused, Refused)
        assert (refused.limit, refused.dimension) == (3_500, Dimension.REQUESTS)


async def test_a_reservation_from_before_the_switch_settles_after_it(limiter, clock):
    payg, since_ms = DEFAULT_TIERS["payg"], clock.now_ms()
    scopes = (Scope("team", payg.schedule(since_ms, since_ms)),)
    clock.advance(172_800_000 - 10_000)
    reservation = await admit(limiter, "a", scopes, Cost(1, 60_000))
    clock.advance(20_000)
    # 10 s at 60,000 and 10 s at 90,000 a minute have returned 25,000.
    assert await tokens_left(limiter, scopes=scopes) == 90_000 - 35_000
    limiter.settle(reservation, Cost(1, 50_000))
    assert await tokens_left(limiter, scopes=scopes) == 90_000 - 25_000
