"""Budgets on the way of a request: asked on admission, settled once with the ledger's cost, whatever happens."""

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.budget_alerts import BudgetAlerts
from proxy.adapters.memory.budgets import MemoryBudgets
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.spent import SpentReader
from proxy.adapters.sql.spend import SqlSpendLedger
from proxy.adapters.sql.told import SqlToldWarnings
from proxy.adapters.tokenizer import BpeTokenizer
from proxy.core.answer import ChatStream
from proxy.core.bucket import Cost
from proxy.core.budget import MINUTE_MS, SETTLED_AFTER_MINUTES, Period, minute_of, nano_usd, span_of
from proxy.core.errors import (
    BudgetUsedUp,
    LimitReached,
    ModelNotPriced,
    Overloaded,
    StoreAway,
    UpstreamFailure,
    UpstreamFault,
)
from proxy.core.event import Outcome
from proxy.core.price import worst_case
from proxy.core.pricing import Unpriced, cost_pico_usd
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.budgets_spent import BudgetsSpent
from proxy.pipeline.forward import dispatch
from proxy.pipeline.me import show_caller
from proxy.pipeline.report import Ending, record_of
from proxy.pipeline.settle import settle, settle_broken, settle_collapsed, settle_hit, settle_refused, step_back
from proxy.pipeline.shadow import decide_shadow
from proxy.pipeline.team_reads import KEPT_MS
from proxy.ports import CachedAnswer

DAY_MS = 86_400_000
BODY = json.dumps(
    {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 200}
).encode()
STREAMED = json.dumps(
    {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 200, "stream": True}
).encode()
RESERVED = (100, 200)


class Purse:
    """A bench whose limiter holds budgets, and what an account of the team stands at."""

    def __init__(self, bench, registry):
        self.bench, self.registry, self.clock = bench, registry, bench.clock
        self.ledger = SqlSpendLedger(bench.database.engine)
        self.told = []
        self.begin()

    def begin(self):
        """Have a process that has just begun."""
        spool = self.bench.ledger
        reader = SpentReader(
            self.ledger, self.clock, self.bench.metrics.store_failed, lag_ms=lambda: spool.state().lag_ms
        )
        self.budgets = MemoryBudgets(reader, self.clock)
        self.services = replace(
            self.bench.services,
            limiter=MemoryLimiter(self.clock, self.budgets),
            budget_reached=self.told.append,
        )

    def give(self, **amounts):
        """Budgets of the team, by period: a limit, or a limit and a warning."""
        self.registry.set_team("growth", budgets=_changes(amounts))
        self.bench.services.principals.invalidate()

    def give_key(self, **amounts):
        (key,) = self.registry.list_keys()
        self.registry.set_key(key.kid, budgets=_changes(amounts))
        self.bench.services.principals.invalidate()
        return key.kid

    async def admitted(self, body=BODY):
        exchange = await self.bench.exchange(body)
        await admit(exchange, self.services)
        return exchange

    async def dispatched(self, body=BODY):
        self.clock.ms += 1
        exchange = await self.admitted(body)
        dispatch(exchange, self.services)
        exchange.attempts = 1
        return exchange

    def held(self, period=Period.MONTH, scope="team"):
        """What is spent and reserved of a budget, in nano-dollars."""
        kept = self.budgets._kept[("growth", f"{scope}:{span_of(period, self.clock.ms).id}")]
        return kept.account.spent_nano_usd

    async def ledgered(self):
        """What the ledger has of the team, in nano-dollars, all of it shipped."""
        await self.bench.events()
        spent = self.ledger.read("growth", "team", span_of(Period.TOTAL, self.clock.ms), minute_of(self.clock.ms) + 1)
        return spent.base_nano_usd


def _changes(amounts):
    found = {}
    for period, given_amounts in amounts.items():
        limit, warn = given_amounts if isinstance(given_amounts, tuple) else (given_amounts, None)
        found[Period(period)] = {"limit_nano_usd": limit, "warn_nano_usd": warn}
    return found


@pytest.fixture
def purse(bench, registry):
    registry.set_team("growth", requests_per_minute=None, tokens_per_minute=None, tier="unlimited")
    return Purse(bench, registry)


def most(exchange):
    return nano_usd(worst_case(exchange.price, *RESERVED))


async def test_what_it_may_cost_is_reserved_and_then_what_it_cost_is_kept(purse):
    purse.give(month=10**9, day=10**9)
    exchange = await purse.dispatched()
    assert purse.held() == purse.held(Period.DAY) == most(exchange)
    settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    cost = cost_pico_usd(exchange.price, Usage(90, 20))
    assert purse.held() == purse.held(Period.DAY) == nano_usd(cost) == await purse.ledgered()


async def test_without_a_budget_nothing_is_asked(purse):
    exchange = await purse.dispatched()
    assert exchange.admitted.reservation.spend is None
    assert len(purse.budgets) == 0


async def test_what_would_pass_it_is_refused_before_anything_is_sent(purse):
    exchange = await purse.admitted()
    enough = most(exchange)
    purse.give(month=enough)
    await purse.admitted()
    with pytest.raises(BudgetUsedUp) as caught:
        await purse.admitted()
    refusal = caught.value.refusal
    assert (refusal.cap.scope, refusal.used_nano_usd, refusal.requested_nano_usd) == ("team", enough, enough)
    assert await purse.bench.events() == []
    exchange = await purse.bench.exchange(BODY)
    record = record_of(exchange, Ending(429, Outcome.LIMITED, "insufficient_quota", caught.value), purse.services)
    assert (record.limited_scope, record.limited_dimension, record.unpriced) == ("team", "budget", False)


async def test_a_budget_of_the_key_and_one_of_the_team_both_hold(purse):
    one = most(await purse.admitted())
    purse.give(month=3 * one)
    kid = purse.give_key(day=2 * one)
    await purse.admitted()
    await purse.admitted()
    with pytest.raises(BudgetUsedUp) as caught:
        await purse.admitted()
    assert caught.value.refusal.cap.scope == f"key:{kid}"
    assert purse.held() == purse.held(Period.DAY, f"key:{kid}") == 2 * one
    purse.give_key(day=9 * one)
    await purse.admitted()
    with pytest.raises(BudgetUsedUp) as caught:
        await purse.admitted()
    assert caught.value.refusal.cap.scope == "team"
    assert purse.held(Period.DAY, f"key:{kid}") == 3 * one, "a refusal changes nothing"


@pytest.mark.parametrize("period", [Period.DAY, Period.MONTH])
async def test_the_next_span_opens_again_and_the_whole_never(purse, period):
    one = most(await purse.admitted())
    purse.give(**{period.value: one})
    exchange = await purse.dispatched()
    settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(*RESERVED))
    with pytest.raises(BudgetUsedUp):
        await purse.admitted()
    purse.clock.ms = span_of(period, purse.clock.ms).end_ms - 1
    with pytest.raises(BudgetUsedUp):
        await purse.admitted()
    purse.clock.ms += 1
    settle_broken(await purse.admitted(), purse.services, RuntimeError())
    await purse.ledgered()
    purse.give(total=one)
    with pytest.raises(BudgetUsedUp) as caught:
        await purse.admitted()
    assert caught.value.refusal.cap.span.id == "total"


async def test_a_hit_and_one_that_another_pays_for_cost_nothing_and_are_never_refused(purse):
    purse.give(month=0)
    with pytest.raises(BudgetUsedUp):
        await purse.admitted()
    hit = await purse.bench.exchange(BODY)
    hit.hit = CachedAnswer(200, (), b"{}", "gpt-4o-mini", purse.clock.ms, 60_000, 5, 6, 777)
    await admit(hit, purse.services)
    settle_hit(hit, purse.services)
    leader, follower = await purse.bench.exchange(BODY), await purse.bench.exchange(BODY)
    leader.outcome = Outcome.OK
    follower.collapsed = True
    await admit(follower, purse.services)
    settle_collapsed(follower, leader, purse.services)
    assert len(purse.budgets) == 1
    assert purse.held() == 0


async def test_what_is_free_passes_a_budget_that_is_overspent(purse):
    one = most(await purse.admitted())
    purse.give(month=one)
    exchange = await purse.dispatched()
    settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(900, 800))
    assert purse.held() > one
    free = await purse.dispatched(BODY.replace(b"gpt-4o-mini", b"omni-moderation-latest"))
    assert free.admitted.reservation.spend is None
    settle(free, purse.services, status=200, outcome=Outcome.OK, usage=Usage(900, 800))
    assert purse.held() == await purse.ledgered()
    with pytest.raises(BudgetUsedUp):
        await purse.admitted()


async def test_what_was_spent_while_there_was_no_budget_is_counted_once_the_ledgers_word_is_taken(purse):
    one = most(await purse.admitted())
    purse.give(month=9 * one)
    for budget in (None, 2 * one):
        exchange = await purse.dispatched()
        settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(*RESERVED))
        purse.give(month=budget)
    assert (purse.held(), await purse.ledgered()) == (one, 2 * one)
    purse.clock.ms += (SETTLED_AFTER_MINUTES + 1) * MINUTE_MS
    await purse.budgets.resync()
    assert purse.held() == 2 * one
    with pytest.raises(BudgetUsedUp):
        await purse.admitted()


async def test_what_waits_in_the_spool_for_an_hour_stays_spent(purse):
    one = most(await purse.admitted())
    purse.give(month=one)
    exchange = await purse.dispatched()
    settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(*RESERVED))
    for _ in range(60):
        purse.clock.ms += MINUTE_MS
        await purse.budgets.resync()
        with pytest.raises(BudgetUsedUp):
            await purse.admitted()
    assert await purse.ledgered() == one
    await purse.budgets.resync()
    assert purse.held() == one


def ends():
    """Every way an admitted request can end, by name; each takes the services and the exchange."""
    left, gone, cut = ConnectionResetError(), asyncio.CancelledError(), UpstreamFailure("openai", UpstreamFault.BROKEN)
    usage = Usage(90, 20)
    return {
        "whole": lambda s, e: settle(e, s, status=200, outcome=Outcome.OK, usage=usage),
        "more than was reserved": lambda s, e: settle(e, s, status=200, outcome=Outcome.OK, usage=Usage(900, 800)),
        "without usage": lambda s, e: settle(
            e, s, status=200, outcome=Outcome.OK, usage=None, counted_output_tokens=33
        ),
        "refused by upstream": lambda s, e: settle_refused(e, s, 400),
        "upstream unreachable": lambda s, e: settle_broken(e, s, cut),
        "client gone": lambda s, e: settle_broken(e, s, left),
        "cancelled": lambda s, e: settle_broken(e, s, gone),
        "spool full": lambda s, e: settle_broken(e, s, Overloaded("full")),
        "our fault": lambda s, e: settle_broken(e, s, RuntimeError()),
    }


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("end", sorted(ends()))
async def test_however_it_ends_the_budget_has_what_the_ledger_has(purse, end, running):
    purse.give(month=10**9)
    exchange = await purse.dispatched()
    exchange.running = running
    for _ in range(2):
        ends()[end](purse.services, exchange)
    assert purse.held() == nano_usd(exchange.cost_pico_usd) == await purse.ledgered()


@pytest.mark.parametrize("error", [Overloaded("full"), ConnectionResetError(), RuntimeError()])
async def test_what_was_never_sent_costs_nothing(purse, error):
    purse.give(month=10**9)
    exchange = await purse.admitted()
    settle_broken(exchange, purse.services, error)
    assert purse.held() == 0


async def test_an_admission_that_is_stepped_back_from_is_asked_anew(purse):
    purse.give(month=10**9)
    exchange = await purse.admitted()
    step_back(exchange, purse.services)
    assert purse.held() == 0
    await admit(exchange, purse.services)
    assert purse.held() == most(exchange)


@pytest.mark.parametrize("counts", [True, False])
async def test_one_whose_tokens_are_counted_later_is_settled_then_and_once(purse, counts):
    purse.give(month=10**9)
    tokenizer = BpeTokenizer(purse.bench.services.telemetry)
    services = replace(purse.services, tokenizer=tokenizer)
    exchange = await purse.dispatched(STREAMED)
    exchange.stream, exchange.status, exchange.running = ChatStream(choices=1, hide_usage=True), 200, True
    piece = {"choices": [{"index": 0, "delta": {"content": "As deep as a minute is long."}}]}
    exchange.stream.feed(b"data: " + json.dumps(piece).encode() + b"\n\n")
    if not counts:
        tokenizer.count_later = lambda _encoding, _said, then: asyncio.get_running_loop().call_soon(then, None)
    settle_broken(exchange, services, ConnectionResetError())
    assert purse.held() == most(exchange), "nothing is known yet"
    await exchange.counting
    assert purse.held() == nano_usd(exchange.cost_pico_usd) == await purse.ledgered()
    assert 0 < purse.held() < most(exchange)
    await tokenizer.close()


async def test_limits_beside_a_budget_are_charged_what_was_counted_later(purse):
    purse.registry.set_team("growth", requests_per_minute=10, tokens_per_minute=10_000)
    purse.give(month=10**9)
    tokenizer = BpeTokenizer(purse.bench.services.telemetry)
    services = replace(purse.services, tokenizer=tokenizer)
    said = [{"role": "user", "content": "How deep is the bucket?"}]
    exchange = await purse.dispatched(json.dumps({"model": "gpt-4o-mini", "messages": said, "stream": True}).encode())
    stream = exchange.stream = ChatStream(choices=1, hide_usage=True)
    piece = {"choices": [{"index": 0, "delta": {"content": "As deep as a minute is long."}}]}
    stream.feed(b"data: " + json.dumps(piece).encode() + b"\n\n")
    settle(exchange, services, status=200, outcome=Outcome.OK, usage=None, said=stream.transcript.said())
    by_characters = exchange.usage.total_tokens
    await exchange.counting
    assert exchange.usage.total_tokens > by_characters
    used = services.limiter.used("growth", exchange.admitted.reservation.scopes[0])
    assert used == Cost(1, exchange.usage.total_tokens)
    await tokenizer.close()


async def test_what_a_shadow_tier_says_takes_nothing_of_a_budget(purse):
    purse.give(month=10**9)
    purse.registry.set_team("growth", shadow_tier="payg")
    purse.bench.services.principals.invalidate()
    exchange = await purse.dispatched()
    await decide_shadow(exchange, purse.services)
    assert exchange.shadow.decision.reservation.spend is None
    assert purse.held() == most(exchange)


async def test_a_limit_that_refuses_takes_nothing_of_a_budget(purse):
    purse.registry.set_team("growth", requests_per_minute=1)
    purse.give(month=10**9)
    held = most(await purse.admitted())
    with pytest.raises(LimitReached):
        await purse.admitted()
    assert purse.held() == held


async def test_a_model_without_a_price_is_refused_where_there_is_a_budget_unless_that_is_allowed(purse):
    body = BODY.replace(b"gpt-4o-mini", b"nobody-knows")
    await purse.admitted(body)
    purse.give_key(day=1)
    with pytest.raises(ModelNotPriced) as caught:
        await purse.admitted(body)
    exchange = await purse.bench.exchange(body)
    assert record_of(exchange, Ending(403, error=caught.value), purse.services).unpriced
    policy = replace(purse.services.policy, unpriced=Unpriced.ALLOW)
    await admit(exchange, replace(purse.services, policy=policy))
    assert exchange.admitted.reservation.spend is None
    hit = await purse.bench.exchange(body)
    hit.hit = CachedAnswer(200, (), b"{}", "nobody-knows", purse.clock.ms, 60_000, 5, 6, 0)
    await admit(hit, purse.services)


async def test_without_the_ledger_a_budget_that_refuses_is_not_passed_and_one_that_warns_is(purse):
    purse.give(month=(None, 5))
    await purse.admitted()
    purse.begin()
    with purse.bench.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE usage_daily RENAME TO away")
    await purse.admitted()
    purse.clock.ms += 2_000
    purse.give(month=(10**9, 5))
    with pytest.raises(StoreAway):
        await purse.admitted()


async def test_a_warning_is_told_once_over_spans_and_restarts(purse, caplog):
    bench, telling = purse.bench, []

    def tell(reached):
        alerts = BudgetAlerts(
            SqlToldWarnings(bench.database.engine), purse.ledger, bench.metrics, purse.clock, telling.append
        )
        alerts.reached(reached)

    async def go():
        services = replace(purse.services, budget_reached=tell)
        exchange = await bench.exchange(BODY)
        await admit(exchange, services)
        dispatch(exchange, services)
        settle(exchange, services, status=200, outcome=Outcome.OK, usage=Usage(*RESERVED))
        purse.clock.ms += 1
        await bench.events()
        while telling:
            await telling.pop()

    one = most(await purse.admitted())
    purse.give(month=(100 * one, 2 * one))
    await go()
    assert caplog.messages == []
    for _ in range(3):
        await go()
    purse.begin()
    await go()
    told = "team growth has reached the warning of its budget: "
    assert len([line for line in caplog.messages if line.startswith(told)]) == 1
    labels = {"team": "growth", "period": "month"}
    assert bench.metrics.registry.get_sample_value("tollgate_budget_warnings_total", labels) == 1
    purse.clock.ms = span_of(Period.MONTH, purse.clock.ms).end_ms
    for _ in range(3):
        await go()
    assert bench.metrics.registry.get_sample_value("tollgate_budget_warnings_total", labels) == 2


turns = st.lists(
    st.tuples(st.sampled_from(sorted(ends())), st.booleans(), st.integers(0, 3), st.integers(0, 20 * MINUTE_MS)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns, room=st.integers(1, 12))
async def test_never_more_is_overspent_than_what_was_under_way_was_estimated_short(purse, turns, room):
    """Requests overlap, end in every way, and the ledger's word is taken between them."""
    purse.begin()
    purse.clock.ms = span_of(Period.MONTH, purse.clock.ms).end_ms + 5
    one = most(await purse.bench.exchange(BODY))
    limit = room * one
    purse.give(month=limit)
    under_way, refused, short = [], [], 0
    before = await purse.ledgered()
    for end, running, wait, passes_ms in turns:
        try:
            exchange = await purse.dispatched()
        except BudgetUsedUp as error:
            refused.append(error.refusal.used_nano_usd + error.refusal.requested_nano_usd)
        else:
            exchange.running = running
            under_way.append((wait, end, exchange))
        for left, how, each in [each for each in under_way if each[0] <= wait]:
            ends()[how](purse.services, each)
            short += max(0, nano_usd(each.cost_pico_usd) - one)
            under_way.remove((left, how, each))
        if not under_way:
            purse.clock.ms += passes_ms
        spent = await purse.ledgered() - before
        assert spent <= limit + short
        await purse.budgets.resync()
    for _, how, each in under_way:
        ends()[how](purse.services, each)
        short += max(0, nano_usd(each.cost_pico_usd) - one)
    assert await purse.ledgered() - before <= limit + short
    assert all(asked > limit for asked in refused)


async def test_a_team_sees_its_budgets_and_those_of_the_key_it_asks_with(purse):
    services = replace(
        purse.services,
        budgets_spent=BudgetsSpent(purse.registry.budgets_spent, purse.clock, purse.bench.services.telemetry),
    )

    async def seen():
        exchange = await purse.bench.exchange(BODY, headers={"Authorization": f"Bearer {purse.bench.key}"})
        told = json.loads((await show_caller(exchange, services)).body)
        return [
            [
                (each["period"], each["limit_nano_usd"], each["spent_nano_usd"], each["left_nano_usd"])
                for each in told[of]
            ]
            for of in ("budgets", "key_budgets")
        ]

    assert await seen() == [[], []]
    purse.give(month=10**9, total=(None, 5))
    purse.give_key(day=7)
    assert await seen() == [[("month", 10**9, 0, 10**9), ("total", None, 0, None)], [("day", 7, 0, 7)]]
    purse.give_key(day=10**9)
    exchange = await purse.dispatched()
    settle(exchange, purse.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    cost = await purse.ledgered()
    purse.clock.ms += KEPT_MS
    assert await seen() == [
        [("month", 10**9, cost, 10**9 - cost), ("total", None, cost, None)],
        [("day", 10**9, cost, 10**9 - cost)],
    ]
    with purse.bench.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE usage_daily RENAME TO away")
    purse.clock.ms += KEPT_MS
    assert await seen() == [[("month", 10**9, None, None), ("total", None, None, None)], [("day", 10**9, None, None)]]
