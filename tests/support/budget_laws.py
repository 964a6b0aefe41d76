"""What holds of every limiter's budgets over random histories: laws to put an engine through.

A law draws a history from `chance`, drives one engine through it, and raises AssertionError on a counter-example.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

from msgspec import structs

from proxy.core.bucket import Admitted, Cost, OverBudget, Reservation, Scope
from proxy.core.budget import LARGEST_BUDGET_NANO_USD, MINUTE_MS, SETTLED_AFTER_MINUTES, Cap, Period, Spend, span_of
from proxy.core.tiers import Limits, Schedule
from tests.support.limiter_engines import Engine

__all__ = ["BUDGET_LAWS", "BudgetLaw", "begin_alike"]

BudgetLaw = Callable[[Engine, Random], Awaitable[None]]
BUDGET_LAWS: dict[str, BudgetLaw] = {}

_OPERATIONS = 30
_SETTLED_MS = SETTLED_AFTER_MINUTES * MINUTE_MS
_PAUSES_MS = (0, 1, 20_000, MINUTE_MS, 5 * MINUTE_MS, _SETTLED_MS, _SETTLED_MS + MINUTE_MS)
_LONGEST_MS = 10 * MINUTE_MS
_teams = (f"budget-{number}" for number in count())


def _law(law: BudgetLaw) -> BudgetLaw:
    BUDGET_LAWS[law.__name__] = law
    return law


@dataclass
class _Request:
    reservation: Reservation
    spend: Spend
    actual: int


@dataclass
class _Team:
    """A team with a few budgets, what it has under way, and what it really spent."""

    engine: Engine
    chance: Random
    caps: tuple[Cap, ...]
    scopes: tuple[Scope, ...]
    over: int
    """How much more than reserved a request may cost."""
    name: str = field(default_factory=lambda: next(_teams))
    under_way: list[_Request] = field(default_factory=list)
    spent: list[tuple[int, int]] = field(default_factory=list)
    """Admission and cost of what has settled."""
    to_write: list[tuple[int, int]] = field(default_factory=list)
    """Of these, what has not reached the ledger."""
    reached: list[Cap] = field(default_factory=list)
    lost: list[_Request] = field(default_factory=list)
    """Whose settlement did not come."""
    beyond: int = 0
    """By how much requests cost more than they had reserved."""

    async def reserve(self, amount: int, cost: Cost) -> Admitted | None:
        spend = Spend(self.caps, amount, self.engine.callers_clock.now_ms())
        decision = await self.engine.limiter.reserve(self.name, self.scopes, cost, spend)
        if not isinstance(decision, Admitted):
            if isinstance(decision, OverBudget):
                assert decision.used_nano_usd + amount > (decision.cap.limit_nano_usd or 0)
            return None
        actual = self.chance.choice((0, amount, self.chance.randint(0, amount + self.over)))
        self.under_way.append(_Request(decision.reservation, spend, actual))
        self.reached += decision.reached
        return decision

    def settle(self, request: _Request, *, is_lost: bool = False) -> None:
        self.under_way.remove(request)
        self.beyond += max(0, request.actual - request.spend.nano_usd)
        if is_lost:
            self.lost.append(request)
        else:
            self.engine.limiter.settle(request.reservation, request.reservation.cost, request.actual)
            if self.chance.random() < 0.3:
                self.engine.limiter.settle(request.reservation, request.reservation.cost, request.actual)
        self.spent.append((request.spend.at_ms, request.actual))
        self.to_write.append((request.spend.at_ms, request.actual))

    def write(self) -> None:
        """Have everything settled reach the ledger."""
        for at_ms, amount in self.to_write:
            self.engine.books.write(self.name, "team", at_ms, amount)
        self.to_write.clear()

    def wait(self, passed_ms: int) -> None:
        """Let time pass: no request goes on for longer than one may, and the ledger follows."""
        for request in tuple(self.under_way):
            if self.engine.callers_clock.now_ms() + passed_ms - request.spend.at_ms > _LONGEST_MS:
                self.settle(request)
        if passed_ms >= MINUTE_MS:
            self.write()
        self.engine.clock.advance(passed_ms)

    def truth(self) -> int:
        """What is spent, and what those under way have reserved."""
        return sum(amount for _, amount in self.spent) + sum(each.spend.nano_usd for each in self.under_way)


def begin_alike(engine: Engine) -> None:
    """Go on to the third of the next month, midnight.

    Engines keep time from one history to the next, and what a history comes to depends on when minutes, days and
    months end: one that is gone through again has to come to the same.
    """
    now = datetime.fromtimestamp(engine.clock.now_ms() / 1_000, UTC)
    start = (now.replace(day=1) + timedelta(days=32)).replace(day=3, hour=0, minute=0, second=0, microsecond=0)
    engine.clock.advance(int(start.timestamp()) * 1_000 - engine.clock.now_ms())


def _team(engine: Engine, chance: Random, *, over: int = 0) -> _Team:
    begin_alike(engine)
    span = span_of(Period.TOTAL, 0)
    limit = chance.choice((50, 100, 300))
    caps = (Cap("team", span, limit, chance.choice((None, limit // 2))),)
    limits = chance.choice((Limits(1_000, 100_000), Limits(20, 600)))
    return _Team(engine, chance, caps, (Scope("team", Schedule(limits, limits)),), over)


async def _used(team: _Team, cap: Cap) -> int:
    asked = structs.replace(cap, limit_nano_usd=-LARGEST_BUDGET_NANO_USD, warn_nano_usd=None)
    spend = Spend((asked,), 0, team.engine.callers_clock.now_ms())
    decision = await team.engine.limiter.reserve(team.name, team.scopes, Cost(0, 0), spend)
    assert isinstance(decision, OverBudget)
    return decision.used_nano_usd


async def _wander(team: _Team, *, losing: bool = False) -> None:
    chance = team.chance
    for _ in range(_OPERATIONS):
        match chance.choice("rrrrsswl"):
            case "r":
                await team.reserve(chance.choice((0, 1, 10, 25, 60)), Cost(1, chance.randint(0, 100)))
            case "s" if team.under_way:
                team.settle(chance.choice(team.under_way), is_lost=losing and chance.random() < 0.5)
            case "w":
                team.wait(chance.choice(_PAUSES_MS))
            case "l":
                await team.engine.resync()


@_law
async def an_account_is_what_was_spent_and_what_is_reserved(engine: Engine, chance: Random) -> None:
    """Whatever is reserved, settled, settled again and taken over by the ledger, and in whatever order."""
    team = _team(engine, chance, over=chance.choice((0, 40)))
    for _ in range(3):
        await _wander(team)
        assert await _used(team, team.caps[0]) == team.truth()


@_law
async def a_budget_is_passed_by_no_more_than_was_underestimated(engine: Engine, chance: Random) -> None:
    """And not at all while estimates are upper bounds; a request that fits is admitted."""
    team = _team(engine, chance, over=chance.choice((0, 0, 40)))
    limit = team.caps[0].limit_nano_usd or 0
    for _ in range(_OPERATIONS):
        amount = chance.choice((1, 10, 25, 60))
        fits = team.truth() + amount <= limit
        admitted = await team.reserve(amount, Cost(0, 0))
        assert (admitted is not None) == fits
        if team.under_way and chance.random() < 0.6:
            team.settle(chance.choice(team.under_way))
        if chance.random() < 0.2:
            team.wait(chance.choice(_PAUSES_MS))
            await engine.resync()
        assert team.truth() <= limit + team.beyond


@_law
async def a_refusal_of_bucket_or_budget_changes_neither(engine: Engine, chance: Random) -> None:
    """Across all accounts and all buckets."""
    team = _team(engine, chance)
    first = team.caps[0]
    team.caps += (Cap("key:k", first.span, chance.choice((30, 400)), 20),)
    for _ in range(_OPERATIONS):
        engine.clock.advance(1)
        before = (await engine.limiter.peek(team.name, team.scopes), [await _used(team, each) for each in team.caps])
        amount = chance.choice((1, 10, 25, 60))
        admitted = await team.reserve(amount, Cost(1, chance.randint(0, 400)))
        after = (await engine.limiter.peek(team.name, team.scopes), [await _used(team, each) for each in team.caps])
        if admitted is None:
            assert after == before
        else:
            assert after[1] == [used + amount for used in before[1]]
        if team.under_way and chance.random() < 0.3:
            team.settle(team.under_way[0])


@_law
async def the_ledgers_word_holds_for_all_that_has_settled(engine: Engine, chance: Random) -> None:
    """Whatever settlements were lost, and whichever words come late."""
    team = _team(engine, chance, over=30)
    await _wander(team, losing=True)
    for request in tuple(team.under_way):
        team.settle(request, is_lost=chance.random() < 0.5)
    if not team.spent:
        return
    team.write()
    await _used(team, team.caps[0])
    engine.clock.advance(_SETTLED_MS + MINUTE_MS)
    await engine.resync()
    if chance.random() < 0.5:
        # A worker whose clock is behind brings an older word.
        engine.clock.step(-5 * MINUTE_MS)
        await engine.resync()
        engine.clock.step(5 * MINUTE_MS)
    for request in team.lost:
        # It comes, and late.
        engine.limiter.settle(request.reservation, request.reservation.cost, request.actual)
    assert await _used(team, team.caps[0]) == team.truth()


@_law
async def a_warning_is_reached_by_one_request_alone(engine: Engine, chance: Random) -> None:
    """Of all in a span, and by the first that brings it there; not again where the account is made anew."""
    team = _team(engine, chance)
    warning = chance.choice((20, 60))
    team.caps = (structs.replace(team.caps[0], limit_nano_usd=None, warn_nano_usd=warning),)
    has_reached = False
    for _ in range(_OPERATIONS):
        had = len(team.reached)
        if await team.reserve(chance.choice((1, 10, 25)), Cost(0, 0)) is not None:
            is_there = await _used(team, team.caps[0]) >= warning
            assert len(team.reached) - had == (is_there and not has_reached)
            has_reached = has_reached or is_there
        if team.under_way and chance.random() < 0.5:
            team.settle(team.under_way[0])
        if chance.random() < 0.1:
            await engine.lose_account(team.name, team.caps[0].name)
