"""What every engine of `ports.Limiter` answers of budgets, whatever it keeps their accounts in."""

import asyncio

import pytest
from msgspec.structs import replace

from proxy.core.bucket import Admitted, Cost, Gauge, NeverFits, OverBudget, Refused, Scope, Standing
from proxy.core.budget import MINUTE_MS, SETTLED_AFTER_MINUTES, Cap, Period, Spend, minute_of, span_of
from proxy.core.errors import StoreAway
from proxy.core.tiers import Limits, Schedule
from tests.support.limiter_engines import memory_engine

ONE = Cost(1, 10)
HOUR_MS = 3_600_000
SETTLED_MS = SETTLED_AFTER_MINUTES * MINUTE_MS


def scope(*limits):
    held = Limits(*limits)
    return (Scope("team", Schedule(held, held)),)


WIDE, NARROW = scope(100_000, 10_000_000), scope(10, 600)


@pytest.fixture
def limiter(engine):
    return engine.limiter


def cap(engine, limit, warn=None, name="team", period=Period.DAY):
    return Cap(name, span_of(period, engine.callers_clock.now_ms()), limit, warn)


def spend(engine, amount, *caps):
    return Spend(caps, amount, engine.callers_clock.now_ms())


async def admit(limiter, team, wanted, scopes=WIDE, cost=ONE):
    decision = await limiter.reserve(team, scopes, cost, wanted)
    assert isinstance(decision, Admitted), decision
    return decision


async def used(engine, team, asked):
    """What an account has spent, as a refusal tells it."""
    decision = await engine.limiter.reserve(
        team, WIDE, Cost(0, 0), spend(engine, 1, replace(asked, limit_nano_usd=-(2**52)))
    )
    assert isinstance(decision, OverBudget)
    return decision.used_nano_usd


# Reserving


async def test_a_budget_is_spent_to_its_last_nano_dollar_and_no_further(engine, limiter):
    daily = cap(engine, 100)
    await admit(limiter, "a", spend(engine, 60, daily))
    over = await limiter.reserve("a", WIDE, ONE, spend(engine, 41, daily))
    assert isinstance(over, OverBudget)
    assert (over.cap, over.used_nano_usd, over.requested_nano_usd) == (daily, 60, 41)
    await admit(limiter, "a", spend(engine, 40, daily))
    assert await used(engine, "a", daily) == 100
    await admit(limiter, "a", spend(engine, 0, daily))


async def test_a_refusal_of_either_changes_neither(engine, limiter):
    daily, monthly = cap(engine, 100), cap(engine, 50, name="key:k", period=Period.MONTH)
    await admit(limiter, "a", spend(engine, 30, daily, monthly), NARROW, Cost(1, 500))
    before = await limiter.peek("a", NARROW)
    over = await limiter.reserve("a", NARROW, Cost(1, 50), spend(engine, 21, daily, monthly))
    assert isinstance(over, OverBudget)
    assert (over.cap, over.standing) == (monthly, before[0])
    refused = await limiter.reserve("a", NARROW, Cost(1, 101), spend(engine, 20, daily, monthly))
    assert isinstance(refused, Refused)
    never = await limiter.reserve("a", NARROW, Cost(1, 601), spend(engine, 20, daily, monthly))
    assert isinstance(never, NeverFits)
    assert await limiter.peek("a", NARROW) == before
    assert (await used(engine, "a", daily), await used(engine, "a", monthly)) == (30, 30)


async def test_the_budgets_refusal_wins_where_both_refuse(engine, limiter):
    daily = cap(engine, 10)
    for cost in (Cost(1, 601), Cost(11, 0)):
        assert isinstance(await limiter.reserve("a", NARROW, cost, spend(engine, 11, daily)), OverBudget)
        assert isinstance(await limiter.reserve("a", NARROW, cost, spend(engine, 10, daily)), NeverFits)
    await admit(limiter, "a", spend(engine, 5, daily), NARROW, Cost(1, 600))
    assert isinstance(await limiter.reserve("a", NARROW, Cost(1, 6), spend(engine, 6, daily)), OverBudget)


async def test_a_refused_budget_takes_no_place(engine, limiter):
    held = Limits(100)
    places = (Scope("team", Schedule(held, held), 1),)
    daily = cap(engine, 10)
    assert isinstance(await limiter.reserve("a", places, ONE, spend(engine, 11, daily)), OverBudget)
    first = await admit(limiter, "a", spend(engine, 4, daily), places)
    assert isinstance(await limiter.reserve("a", places, ONE, spend(engine, 4, daily)), Refused)
    limiter.settle(first.reservation, ONE, 3)
    assert await used(engine, "a", daily) == 3
    await admit(limiter, "a", spend(engine, 4, daily), places)


async def test_the_standing_of_a_refusal_is_that_of_the_first_bucket(engine, limiter):
    over = await limiter.reserve("new", NARROW, ONE, spend(engine, 1, cap(engine, 0)))
    assert over.standing == Standing(Gauge(10, 10, 0), Gauge(600, 600, 0))


async def test_budgets_of_teams_keys_and_spans_are_apart(engine, limiter):
    caps = [
        cap(engine, 10, name=name, period=period)
        for name in ("team", "key:a", "key:b")
        for period in (Period.DAY, Period.MONTH, Period.TOTAL)
    ]
    for each in caps:
        await admit(limiter, "a", spend(engine, 10, each))
        await admit(limiter, "b", spend(engine, 10, each))
    for each in caps:
        assert await used(engine, "a", each) == 10


async def test_the_next_day_has_a_budget_of_its_own(engine, limiter, clock):
    today = cap(engine, 10)
    open_one = await admit(limiter, "a", spend(engine, 10, today))
    clock.advance(24 * HOUR_MS)
    tomorrow = cap(engine, 10)
    assert tomorrow != today
    await admit(limiter, "a", spend(engine, 10, tomorrow))
    limiter.settle(open_one.reservation, ONE, 0)
    assert await used(engine, "a", tomorrow) == 10


# Warnings


async def test_a_warning_is_reached_once_in_a_span(engine, limiter):
    warns = cap(engine, None, 50)
    decisions = [await admit(limiter, "a", spend(engine, 20, warns)) for _ in range(5)]
    assert [each.reached for each in decisions] == [(), (), (warns,), (), ()]


async def test_another_warning_is_another(engine, limiter):
    first, second = cap(engine, None, 50), cap(engine, None, 70)
    asked = [(60, first), (5, second), (5, second), (0, first), (0, second)]
    decisions = [await admit(limiter, "a", spend(engine, amount, each)) for amount, each in asked]
    assert [each.reached for each in decisions] == [(first,), (), (second,), (), ()]


async def test_a_warning_is_not_given_again_by_an_account_that_is_made_anew(engine, limiter):
    warns, other = cap(engine, 1_000, 50), cap(engine, None, 50, name="key:k")
    assert (await admit(limiter, "a", spend(engine, 60, warns, other))).reached == (warns, other)
    await engine.lose_account("a", warns.name)
    assert (await admit(limiter, "a", spend(engine, 60, warns, other))).reached == ()


# Settling


async def test_what_was_spent_takes_the_place_of_what_was_reserved(engine, limiter):
    daily = cap(engine, 100)
    less, more = [(await admit(limiter, "a", spend(engine, 40, daily))).reservation for _ in range(2)]
    limiter.settle(less, ONE, 5)
    assert await used(engine, "a", daily) == 45
    limiter.settle(more, ONE, 70)
    assert await used(engine, "a", daily) == 75
    for _ in range(2):
        limiter.settle(less, ONE, 0)
        limiter.settle(more, ONE, 1_000)
    assert await used(engine, "a", daily) == 75


async def test_a_request_is_settled_into_the_minute_of_its_admission(engine, limiter, clock):
    daily = cap(engine, 1_000)
    open_one = (await admit(limiter, "a", spend(engine, 40, daily))).reservation
    assert open_one.minutes == (minute_of(open_one.spend.at_ms),)
    clock.advance(10 * MINUTE_MS)
    limiter.settle(open_one, ONE, 7)
    engine.books.write("a", "team", open_one.spend.at_ms, 7)
    clock.advance(SETTLED_MS - 10 * MINUTE_MS)
    await engine.resync()
    assert await used(engine, "a", daily) == 7
    clock.advance(MINUTE_MS)
    await engine.resync()
    assert await used(engine, "a", daily) == 7


# The ledger


async def test_an_account_begins_with_what_the_ledger_has(engine, limiter, clock):
    now_ms = engine.callers_clock.now_ms()
    for ago_minutes, amount in ((0, 1), (3, 10), (SETTLED_AFTER_MINUTES + 1, 100), (2 * 1_440, 1_000)):
        engine.books.write("a", "team", now_ms - ago_minutes * MINUTE_MS, amount)
    engine.books.write("b", "team", now_ms, 10_000)
    assert await used(engine, "a", cap(engine, 1, period=Period.TOTAL)) == 1_111
    assert await used(engine, "a", cap(engine, 1)) == sum(
        amount
        for _, _, at_ms, amount in engine.books.entries[:4]
        if span_of(Period.DAY, at_ms) == span_of(Period.DAY, now_ms)
    )


async def test_many_who_come_at_once_have_the_ledger_read_once(engine, limiter):
    daily = cap(engine, 100)
    decisions = await asyncio.gather(*(limiter.reserve("a", WIDE, ONE, spend(engine, 30, daily)) for _ in range(20)))
    assert sum(isinstance(each, Admitted) for each in decisions) == 3
    assert engine.books.looks == 1


async def test_one_who_gives_up_does_not_take_the_others_along(engine, limiter):
    daily = cap(engine, 100)
    first, second = (asyncio.ensure_future(limiter.reserve("a", WIDE, ONE, spend(engine, 30, daily))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert isinstance(await second, Admitted)
    assert await used(engine, "a", daily) in (30, 60)


async def test_without_the_ledger_a_budget_that_refuses_cannot_be_held(engine, limiter, clock):
    engine.books.is_away = True
    hard, soft = cap(engine, 100), cap(engine, None, 50, name="key:k")
    with pytest.raises(StoreAway):
        await limiter.reserve("a", NARROW, ONE, spend(engine, 60, soft, hard))
    assert await limiter.peek("a", NARROW) == (Standing(Gauge(10, 10, 0), Gauge(600, 600, 0)),)
    passed_over = await admit(limiter, "a", spend(engine, 60, soft), NARROW)
    assert passed_over.reached == ()
    assert passed_over.reservation.spend.caps == ()
    assert engine.failures["ledger", "spent"] >= 2
    looks = engine.books.looks
    await admit(limiter, "a", spend(engine, 60, soft), NARROW)
    assert engine.books.looks == looks, "asked again at once"
    limiter.settle(passed_over.reservation, ONE, 60)
    engine.books.is_away = False
    clock.advance(1_000)
    assert (await admit(limiter, "a", spend(engine, 60, soft, hard), NARROW)).reached == (soft,)


async def test_an_account_that_is_there_needs_no_ledger(engine, limiter, clock):
    daily = cap(engine, 100)
    await admit(limiter, "a", spend(engine, 30, daily))
    engine.books.is_away = True
    clock.advance(MINUTE_MS)
    await engine.resync()
    assert engine.failures["ledger", "spent"] == 1
    await admit(limiter, "a", spend(engine, 70, daily))
    assert await used(engine, "a", daily) == 100


async def test_the_ledgers_word_puts_right_what_was_lost(engine, limiter, clock):
    daily = cap(engine, 100)
    never_settled = (await admit(limiter, "a", spend(engine, 90, daily))).reservation
    engine.books.write("a", "team", never_settled.spend.at_ms, 4)
    clock.advance(SETTLED_MS)
    await engine.resync()
    assert await used(engine, "a", daily) == 90
    clock.advance(MINUTE_MS)
    await engine.resync()
    assert await used(engine, "a", daily) == 4
    limiter.settle(never_settled, ONE, 50)
    assert await used(engine, "a", daily) == 4


async def test_a_clock_that_is_set_back_takes_no_older_word(engine, limiter, clock):
    daily = cap(engine, 100)
    await admit(limiter, "a", spend(engine, 20, daily))
    engine.books.write("a", "team", engine.callers_clock.now_ms(), 20)
    clock.advance(SETTLED_MS + MINUTE_MS)
    await engine.resync()
    clock.step(-2 * MINUTE_MS)
    await engine.resync()
    assert await used(engine, "a", daily) == 20


async def test_a_lost_account_is_made_anew_and_holds_what_is_spent_since(engine, limiter, clock):
    daily = cap(engine, 100)
    settled = (await admit(limiter, "a", spend(engine, 30, daily))).reservation
    limiter.settle(settled, ONE, 20)
    engine.books.write("a", "team", settled.spend.at_ms, 20)
    under_way = (await admit(limiter, "a", spend(engine, 50, daily))).reservation
    await engine.lose_account("a", daily.name)
    # What has not reached the ledger is missing, until it is settled.
    assert await used(engine, "a", daily) == 20
    await admit(limiter, "a", spend(engine, 10, daily))
    limiter.settle(under_way, ONE, 40)
    assert await used(engine, "a", daily) == 70


async def test_an_account_nobody_asks_for_goes(clock):
    engine = memory_engine(clock)
    budgets = engine.limiter.budgets
    for number in range(100):
        await admit(engine.limiter, f"team-{number}", spend(engine, 1, cap(engine, 10)))
    assert len(budgets) == 100
    clock.advance(2 * SETTLED_MS - 1)
    await admit(engine.limiter, "team-0", spend(engine, 1, cap(engine, 10)))
    clock.advance(1)
    await engine.resync()
    assert len(budgets) == 1
    clock.advance(2 * SETTLED_MS)
    await admit(engine.limiter, "another", spend(engine, 1, cap(engine, 10)))
    assert len(budgets) == 1
