"""Every law of budgets on every engine, over histories that Hypothesis draws; and that each of them can fail."""

import importlib.util
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import proxy
from proxy.adapters.memory import budgets as memory_budgets
from proxy.core.bucket import Admitted, Cost, OverBudget, Scope
from proxy.core.budget import MINUTE_MS, Cap, Period, Spend, span_of
from proxy.core.tiers import Limits, Schedule
from tests.support.budget_laws import BUDGET_LAWS, begin_alike
from tests.support.limiter_engines import HandClock, memory_engine, redis_engine
from tests.support.redis_server import server_binary

HISTORIES = 60
of_an_engine = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
teams = (f"alike-{number}" for number in count())


@pytest.mark.parametrize("law", BUDGET_LAWS)
@of_an_engine
@given(chance=st.randoms(use_true_random=False))
async def test_of_every_history(engine, law, chance):
    await BUDGET_LAWS[law](engine, chance)


@of_an_engine
@given(chance=st.randoms(use_true_random=False))
async def test_the_answers_are_those_of_the_embedded_limiter(engine, clock, chance):
    begin_alike(engine)
    embedded, team = memory_engine(clock), next(teams)
    embedded.callers_clock, embedded.books = engine.callers_clock, engine.books
    embedded.limiter.budgets._reader._ledger = engine.books
    embedded.limiter.budgets._reader._clock = engine.callers_clock
    limits = chance.choice((Limits(100, 10_000), Limits(7, 70)))
    scopes = (Scope("team", Schedule(limits, limits)),)
    under_way = []
    for _ in range(25):
        match chance.choice("rrrrsswyl"):
            case "r":
                at_ms = engine.callers_clock.now_ms() - chance.choice((0, 0, 30_000, 20 * MINUTE_MS))
                caps = (
                    Cap("team", span_of(Period.MONTH, at_ms), chance.choice((100, 300)), 50),
                    Cap("key:k", span_of(Period.DAY, at_ms), None, 30),
                )
                spend = Spend(caps[: chance.randint(1, 2)], chance.choice((0, 7, 40)), at_ms)
                cost = Cost(1, chance.randint(0, 40))
                answers = [await each.limiter.reserve(team, scopes, cost, spend) for each in (engine, embedded)]
                if isinstance(answers[1], Admitted):
                    reservations = [each.reservation for each in answers]
                    assert reservations[0].minutes == reservations[1].minutes
                    under_way.append(reservations)
                    answers = [(each.standing, each.reached) for each in answers]
                if not isinstance(answers[1], OverBudget | tuple):
                    # A refusal of buckets may be told again for a moment.
                    clock.advance(50)
                assert answers[0] == answers[1]
            case "s" if under_way:
                actual, cost = chance.choice((0, 7, 90)), Cost(1, chance.randint(0, 60))
                for each, own in zip((engine, embedded), under_way.pop(chance.randrange(len(under_way))), strict=True):
                    each.limiter.settle(own, cost, actual)
                engine.books.write(team, "team", own.spend.at_ms, actual)
                engine.books.write(team, "key:k", own.spend.at_ms, actual)
            case "w":
                clock.advance(chance.choice((50, 1_000, MINUTE_MS, 7 * MINUTE_MS)))
            case "y":
                await engine.resync()
                await embedded.resync()
            case "l":
                name = f"team:{span_of(Period.MONTH, engine.callers_clock.now_ms()).id}"
                await engine.lose_account(team, name)
                await embedded.lose_account(team, name)
        assert await engine.limiter.peek(team, scopes) == await embedded.limiter.peek(team, scopes)


# The laws can fail

SPENT, PASSED = (
    "an_account_is_what_was_spent_and_what_is_reserved",
    "a_budget_is_passed_by_no_more_than_was_underestimated",
)
REFUSAL, WORD = "a_refusal_of_bucket_or_budget_changes_neither", "the_ledgers_word_holds_for_all_that_has_settled"
WARNING = "a_warning_is_reached_by_one_request_alone"


@dataclass(frozen=True)
class Mutation:
    """A replacement in the model or in the scripts, and the law it breaks."""

    name: str
    engine: str
    law: str
    pattern: str
    replacement: str

    def __str__(self):
        return f"{self.name}, {self.engine}"


MODEL, SCRIPTS = "core/budget.py", "scripts"
SCRIPT_LIMIT = "if tonumber(held[2]) + amount > unpack_from('<d', terms, 9 + 24 * i) then"
SCRIPT_EPOCH = "local added = tonumber(held[3]) == epoch and spent - reserved or spent"
MUTATIONS = (
    Mutation("the limit is not asked", MODEL, PASSED,
             "self.spent_nano_usd + amount <= limit_nano_usd", "True"),
    Mutation("the limit is not asked", SCRIPTS, PASSED, SCRIPT_LIMIT, SCRIPT_LIMIT.replace("if ", "if false and ")),
    Mutation("a nano-dollar too much passes", MODEL, PASSED,
             "self.spent_nano_usd + amount <= limit_nano_usd", "self.spent_nano_usd + amount <= limit_nano_usd + 1"),
    Mutation("a nano-dollar too much passes", SCRIPTS, PASSED,
             SCRIPT_LIMIT, SCRIPT_LIMIT.replace("> unpack", "> 1 + unpack")),
    Mutation("settled twice", MODEL, SPENT, "+ actual - held", "+ 2 * (actual - held)"),
    Mutation("settled twice", SCRIPTS, SPENT,
             SCRIPT_EPOCH, SCRIPT_EPOCH.replace("spent - reserved", "2 * (spent - reserved)")),
    Mutation("settled into the total alone", SCRIPTS, WORD,
             "whole(minute), whole((held[4] or 0) + added))", "whole(minute), whole(held[4] or 0))"),
    Mutation("what the ledger has taken over is settled as well", MODEL, WORD,
             "if minute >= self.boundary:", "if True:"),
    Mutation("what the ledger has taken over is settled as well", SCRIPTS, WORD,
             "if held[1] and minute >= tonumber(held[1]) then", "if held[1] then"),
    Mutation("an older word is taken", MODEL, WORD, "if boundary < self.boundary:", "if False:"),
    Mutation("an older word is taken", SCRIPTS, WORD, "if boundary >= tonumber(held[2]) then", "if true then"),
    Mutation("the word does not replace the tail", MODEL, WORD, "if minute >= boundary}", "}"),
    Mutation("the word does not replace the tail", SCRIPTS, WORD, "total = total - fields[i + 1]", "total = total"),
    Mutation("told too late", MODEL, WARNING,
             "self.spent_nano_usd < warn_nano_usd", "self.spent_nano_usd <= warn_nano_usd"),
    Mutation("everybody is told", SCRIPTS, WARNING,
             "reached = redis.call('SET', account_keys[2 * i], '', 'NX', 'PXAT', whole(told_until_ms)) and 1 or 0",
             "redis.call('HDEL', key, 'warned') reached = 1"),
    Mutation("told again by a new account", SCRIPTS, WARNING, "'', 'NX', 'PXAT'", "'', 'PXAT'"),
    Mutation("a refused bucket is charged to the budget", SCRIPTS, REFUSAL,
             "if answer[2] ~= 0 then\n  return answer\n",
             "if answer[2] ~= 0 then redis.call('HINCRBY', account_keys[1], 'total', whole(amount)) return answer\n"),
    Mutation("buckets are charged before budgets are asked", SCRIPTS, REFUSAL,
             "local accounts, absent = {}, {}", "local early = decide()\nlocal accounts, absent = {}, {}"),
)  # fmt: skip


@asynccontextmanager
async def mutated(mutation, redis_servers, monkeypatch):
    clock = HandClock()
    if mutation.engine == MODEL:
        path = Path(proxy.__file__).parent / MODEL
        text = path.read_text("utf-8")
        assert text.count(mutation.pattern) == 1, mutation
        module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutated_budget", None))
        monkeypatch.setitem(importlib.import_module("sys").modules, "mutated_budget", module)
        exec(compile(text.replace(mutation.pattern, mutation.replacement), path, "exec"), module.__dict__)
        monkeypatch.setattr(memory_budgets, "Account", module.Account)
        yield memory_engine(clock)
        return
    changed = []

    def change(verb, text):
        if mutation.pattern in text:
            changed.append(verb)
        return text.replace(mutation.pattern, mutation.replacement)

    server = redis_servers(server_binary())
    server.ask("FLUSHALL")
    async with redis_engine(server.url, clock, change) as engine:
        assert changed, mutation
        yield engine


async def counter_example(engine, law):
    for number in range(HISTORIES):
        try:
            await BUDGET_LAWS[law](engine, random.Random(f"history {number}"))
        except AssertionError as error:
            return error
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
async def test_a_mutation_breaks_its_law(mutation, redis_servers, monkeypatch):
    async with mutated(mutation, redis_servers, monkeypatch) as engine:
        assert await counter_example(engine, mutation.law) is not None


@pytest.mark.parametrize("law", BUDGET_LAWS)
async def test_the_text_as_it_is_keeps_the_law_over_the_same_histories(engine, law):
    assert await counter_example(engine, law) is None
