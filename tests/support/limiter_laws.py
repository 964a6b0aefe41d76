"""What holds of every limiter, whatever it keeps its buckets in: laws to put an engine through.

A law draws a history from `chance`, drives one engine through it, and raises AssertionError on a counter-example. It
takes a team of its own, so that one engine serves many histories. What it expects it reckons by itself, in few lines
and without the code under test.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

from proxy.core.bucket import UNITS, Admitted, Cost, Dimension, Gauge, NeverFits, Refused, Reservation, Scope, Standing
from proxy.core.tiers import Limits, Phase, Schedule, Tier
from tests.support.limiter_engines import Engine

__all__ = ["LAWS", "Law"]

Law = Callable[[Engine, Random], Awaitable[None]]
LAWS: dict[str, Law] = {}

# Few sizes and pauses, large against the buckets: histories that collide, instead of ones that pass each other by.
_SMALL = (
    Limits(6, 60),
    Limits(60, 60),
    Limits(60, 600, 9, 90),
    Limits(None, 60, None, 90),
    Limits(6),
    Limits(7, 70, 3, 40),
)
_PAUSES_MS = (0, 0, 1, 1_000, 10_000, 30_000, 60_000)
_OPERATIONS = 40
_teams = (f"team-{number}" for number in count())


def _law(law: Law) -> Law:
    LAWS[law.__name__] = law
    return law


def _steady(limits: Limits) -> Schedule:
    return Schedule(limits, limits)


def _scopes(chance: Random, most: int = 2) -> tuple[Scope, ...]:
    return tuple(Scope(f"scope-{index}", _steady(chance.choice(_SMALL))) for index in range(chance.randint(1, most)))


def _size(chance: Random) -> int:
    return chance.choice((1, 10, 30, 40, 60, chance.randint(0, 60)))


async def _settled(
    engine: Engine, team: str, scopes: Sequence[Scope], reservation: Reservation, actual: Cost
) -> tuple[Standing, ...]:
    engine.limiter.settle(reservation, actual)
    return await engine.limiter.peek(team, scopes)


async def _wander(engine: Engine, chance: Random, team: str, scopes: Sequence[Scope], operations: int = 8) -> None:
    """Bring a team somewhere: part used, part refilled, maybe in debt; all of it settled."""
    for _ in range(chance.randint(0, operations)):
        decision = await engine.limiter.reserve(team, scopes, Cost(1, _size(chance)))
        engine.clock.advance(chance.choice(_PAUSES_MS))
        if isinstance(decision, Admitted):
            engine.limiter.settle(decision.reservation, Cost(1, _size(chance)))


@dataclass
class _Truth:
    """A bucket that knows at admission what will be used: no reservation, no refund, no debt."""

    limits: Limits
    at_ms: int
    used: tuple[int, int] = (0, 0)

    def charge(self, actual: Cost, now_ms: int) -> None:
        self._refill(now_ms)
        self.used = (self.used[0] + actual.requests * UNITS, self.used[1] + actual.tokens * UNITS)

    def assert_not_above(self, standing: Standing, now_ms: int) -> None:
        self._refill(now_ms)
        capacities = (self.limits.effective_request_capacity, self.limits.effective_token_capacity)
        for gauge, used, capacity in zip((standing.requests, standing.tokens), self.used, capacities, strict=True):
            if gauge is not None and capacity is not None:
                assert gauge.remaining <= max(0, capacity * UNITS - used) // UNITS
                assert gauge.reset_ms >= used // gauge.limit

    def _refill(self, now_ms: int) -> None:
        rates = (self.limits.requests_per_minute or 0, self.limits.tokens_per_minute or 0)
        passed_ms, self.at_ms = now_ms - self.at_ms, now_ms
        self.used = (max(0, self.used[0] - rates[0] * passed_ms), max(0, self.used[1] - rates[1] * passed_ms))


@_law
async def nothing_is_counted_twice(engine: Engine, chance: Random) -> None:
    """1. The level is at least that of a bucket charged with the actual use at admission.

    While estimates are upper bounds; always once all have settled. Stores may lose buckets on the way.
    """
    team, scopes, clock = next(_teams), _scopes(chance, most=chance.choice((1, 1, 2))), engine.clock
    truths = [_Truth(scope.schedule.before, clock.now_ms()) for scope in scopes]
    room = min(scope.schedule.before.effective_token_capacity or 60 for scope in scopes)
    under_way: list[tuple[Reservation, Cost]] = []
    over = chance.choice((0, 0, 30, 200))

    async def look() -> None:
        for truth, standing in zip(truths, await engine.limiter.peek(team, scopes), strict=True):
            truth.assert_not_above(standing, clock.now_ms())

    for _ in range(_OPERATIONS):
        match chance.choice("rrrsswwl"):
            case "r":
                # Mostly as much as there is: what is given out twice is soon used twice.
                stands = await engine.limiter.peek(team, scopes)
                left = min(room if each.tokens is None else each.tokens.remaining for each in stands)
                size = chance.choice((left, left, left // 2, chance.randint(0, room)))
                decision = await engine.limiter.reserve(team, scopes, Cost(1, size))
                if isinstance(decision, Admitted):
                    actual = Cost(chance.randint(0, 1), chance.choice((0, size, chance.randint(0, size + over))))
                    under_way.append((decision.reservation, actual))
                    for truth in truths:
                        truth.charge(actual, clock.now_ms())
            case "s" if under_way:
                engine.limiter.settle(*under_way.pop(chance.choice((0, chance.randrange(len(under_way))))))
            case "w":
                full_ms = room * UNITS // (scopes[0].schedule.before.tokens_per_minute or 60)
                clock.advance(chance.choice((0, 1, full_ms // 4, full_ms // 3, full_ms // 2, full_ms)))
            case "l" if chance.random() < 0.3:
                index = chance.randrange(len(scopes))
                await engine.lose(team, scopes[index].name)
                truths[index].used = (0, 0)
        if not (over and under_way):
            await look()
    for reservation, actual in under_way:
        engine.limiter.settle(reservation, actual)
    await look()


@_law
async def a_refusal_changes_nothing_and_its_wait_is_exact(engine: Engine, chance: Random) -> None:
    """2, 3. Refused in every scope or in none; admitted at now + wait and not a millisecond before; never, if never."""
    team, clock = next(_teams), engine.clock
    scopes = list(_scopes(chance, most=3))
    if chance.random() < 0.5:
        switch_ms = clock.now_ms() + chance.choice((1_000, 90_000, 600_000))
        switching = Scope("switching", Schedule(chance.choice(_SMALL), chance.choice(_SMALL), switch_ms))
        scopes = [switching, *scopes[2:]]
    await _wander(engine, chance, team, scopes)
    brim = scopes[0].schedule.limits_at(clock.now_ms()).effective_token_capacity or 60
    cost = Cost(chance.choice((1, 1, 3, 7)), chance.choice((brim, brim + 1, chance.randint(0, 100))))
    for _ in range(12):
        before = await engine.limiter.peek(team, scopes)
        decision = await engine.limiter.reserve(team, scopes, cost)
        if not isinstance(decision, Admitted):
            break
    else:
        return
    assert await engine.limiter.peek(team, scopes) == before
    held = [scope.schedule.limits_at(clock.now_ms()) for scope in scopes]
    never = any(
        wanted > (capacity or wanted)
        for limits in held
        for wanted, capacity in (
            (cost.requests, limits.effective_request_capacity),
            (cost.tokens, limits.effective_token_capacity),
        )
    )
    if isinstance(decision, NeverFits):
        assert decision.requested > decision.limit
        return
    assert not never, "told to come again for what can never fit"
    clock.advance(decision.wait_ms - 1)
    assert isinstance(await engine.limiter.reserve(team, scopes, cost), Refused)
    clock.advance(1)
    assert isinstance(await engine.limiter.reserve(team, scopes, cost), Admitted)


@_law
async def what_remains_is_admitted_at_once_and_no_more(engine: Engine, chance: Random) -> None:
    """4. A cost within `remaining` is admitted; one more of either is not."""
    team, scopes = next(_teams), _scopes(chance, most=1)
    await _wander(engine, chance, team, scopes)
    (standing,) = await engine.limiter.peek(team, scopes)
    requests, tokens = standing.requests, standing.tokens
    if requests is not None:
        assert not isinstance(await engine.limiter.reserve(team, scopes, Cost(requests.remaining + 1, 0)), Admitted)
    if tokens is not None:
        assert not isinstance(await engine.limiter.reserve(team, scopes, Cost(0, tokens.remaining + 1)), Admitted)
    cost = Cost(*(chance.randint(0, 5 if gauge is None else gauge.remaining) for gauge in (requests, tokens)))
    assert isinstance(await engine.limiter.reserve(team, scopes, cost), Admitted)


@_law
async def settling_never_adds_capacity(engine: Engine, chance: Random) -> None:
    """5. Late, after the bucket's expiry, in a bucket made anew, and again: no more comes back than is still there."""
    team, clock = next(_teams), engine.clock
    limits = chance.choice((Limits(60, 60), Limits(60, 600, 9, 90), Limits(None, 60, None, 90)))
    scopes = (Scope("team", _steady(limits)),)
    await _wander(engine, chance, team, scopes, operations=2)
    size = _size(chance) + 1
    decision = await engine.limiter.reserve(team, scopes, Cost(1, size))
    if not isinstance(decision, Admitted):
        return
    tokens = _tokens((decision.standing,))
    requests = decision.standing.requests or tokens
    # As of the reservation, rounded up.
    level = (tokens.reset_ms + 1) * tokens.limit // UNITS + 1
    fate = chance.choice(("late", "full", "expired", "lost"))
    full_ms = max(tokens.reset_ms, requests.reset_ms) + 1
    late_ms = full_ms if fate in ("full", "expired") else chance.choice(_PAUSES_MS)
    clock.advance(late_ms)
    if fate in ("expired", "lost"):
        await engine.lose(team, "team")
    for _ in range(chance.randint(0, 3)):
        await engine.limiter.reserve(team, scopes, Cost(1, _size(chance)))
    before = await engine.limiter.peek(team, scopes)
    actual = Cost(chance.randint(0, 1), chance.randint(0, size))
    after = await _settled(engine, team, scopes, decision.reservation, actual)
    if fate == "late":
        gained = _tokens(after).remaining - _tokens(before).remaining
        assert gained <= min(size - actual.tokens, max(0, level - late_ms * tokens.limit // UNITS))
    else:
        assert after == before
    for again in (0, 10 * size):
        assert await _settled(engine, team, scopes, decision.reservation, Cost(again, again)) == after


def _tokens(standings: tuple[Standing, ...]) -> Gauge:
    gauge = standings[0].tokens
    assert gauge is not None
    return gauge


@_law
async def many_small_ones_cost_what_one_large_one_costs(engine: Engine, chance: Random) -> None:
    """6. n requests of cost c leave what one of n x c leaves; looking at it on the way changes nothing."""
    scopes, number, size = _scopes(chance), chance.randint(1, 5), chance.randint(0, 12)
    passed_ms = [chance.choice(_PAUSES_MS) for _ in range(3)]
    seed = chance.getrandbits(32)
    ends: list[object] = []
    for looks, cuts in ((False, 1), (True, number)):
        team = next(_teams)
        await _wander(engine, Random(seed), team, scopes)
        cost = Cost(number // cuts, number * size // cuts)
        decisions = [await engine.limiter.reserve(team, scopes, cost) for _ in range(cuts)]
        admitted = all(isinstance(decision, Admitted) for decision in decisions)
        for pause_ms in passed_ms:
            engine.clock.advance(pause_ms)
            for _ in range(3 * looks):
                await engine.limiter.peek(team, scopes)
        ends.append((admitted, await engine.limiter.peek(team, scopes) if admitted else ()))
    assert ends[0] == ends[1]


@_law
async def raising_a_limit_never_lengthens_a_wait(engine: Engine, chance: Random) -> None:
    """7. Of two limits the higher refuses for no longer, in whatever state the bucket is."""
    team, scopes = next(_teams), _scopes(chance)
    await _wander(engine, chance, team, scopes)
    raised = []
    for scope in scopes:
        low = scope.schedule.before
        numbers = (low.requests_per_minute, low.tokens_per_minute)
        rooms = (low.effective_request_capacity, low.effective_token_capacity)
        high = Limits(*(number and number + chance.randint(0, 9) for number in (*numbers, *rooms)))
        raised.append(Scope(scope.name, _steady(high)))
    cost = Cost(1, _size(chance))
    waits = []
    for those in (scopes, raised):
        decision = await engine.limiter.reserve(team, those, cost)
        if isinstance(decision, Admitted):
            return
        waits.append(float("inf") if isinstance(decision, NeverFits) else decision.wait_ms)
    assert waits[1] <= waits[0]


@_law
async def a_clock_that_steps_back_creates_nothing(engine: Engine, chance: Random) -> None:
    """7. A step of less than 2 s is waited for; a longer one is believed at once, and neither refills."""
    team, clock = next(_teams), engine.clock
    limits = chance.choice((Limits(600, 6_000), Limits(600, 600)))
    scopes = (Scope("team", _steady(limits)),)
    engine.limiter.charge(team, scopes, Cost(400, chance.randint(400, 3_000)))
    (before,) = await engine.limiter.peek(team, scopes)
    back_ms = chance.choice((1, 500, 1_999, 2_000, 86_400_000))
    clock.step(-back_ms)
    engine.limiter.charge(team, scopes, Cost(1, 1))
    if back_ms < 2_000:
        clock.step(back_ms)
    (after,) = await engine.limiter.peek(team, scopes)
    for was, now in ((before.requests, after.requests), (before.tokens, after.tokens)):
        assert was is not None
        assert now is not None
        assert now.remaining == max(0, was.remaining - 1)
        # One more takes so long to come back, a frozen clock no longer.
        assert was.reset_ms < now.reset_ms <= was.reset_ms + UNITS // now.limit + 1


@_law
async def the_stores_clock_switches_the_tier(engine: Engine, chance: Random) -> None:
    """8. On the same millisecond for every caller, whatever its clock said when it looked up its limits."""
    clock, team = engine.clock, next(_teams)
    first, then = (Limits(*(chance.randint(1, 50) * ten for ten in (10, 100))) for _ in range(2))
    lasts_ms, since_ms = chance.choice((10_000, 172_800_000)), clock.now_ms()
    tier = Tier("own", (Phase(first, lasts_ms), Phase(then)))
    callers = [
        (Scope("team", tier.schedule(since_ms, since_ms + looked_up_ms)),)
        for looked_up_ms in (0, lasts_ms // 3, lasts_ms, lasts_ms + 60_000)
    ]
    clock.advance(lasts_ms - chance.choice((1, 1, 9_999)))
    for held in (first, then):
        told = set()
        for scopes in callers:
            (standing,) = await engine.limiter.peek(team, scopes)
            decision = await engine.limiter.reserve(team, scopes, Cost(0, 0))
            assert decision.standing == standing
            assert standing.requests is not None
            assert standing.tokens is not None
            assert standing.requests.limit == held.requests_per_minute
            assert standing.tokens.limit == held.tokens_per_minute
            refused = await engine.limiter.reserve(team, scopes, Cost((held.requests_per_minute or 0) + 1, 0))
            assert isinstance(refused, NeverFits)
            told.add((standing.requests, standing.tokens, refused.limit))
        assert len(told) == 1
        engine.limiter.charge(team, callers[0], Cost(1, 1))
        clock.advance(since_ms + lasts_ms + chance.choice((0, 0, 1)) - clock.now_ms())


@_law
async def places_are_never_more_than_there_are_and_all_come_back(engine: Engine, chance: Random) -> None:
    """Requests under way against a plain count of them, in two scopes that differ."""
    team = next(_teams)
    scopes = tuple(Scope(name, _steady(Limits()), chance.randint(1, 3)) for name in ("team", "key:k"))
    places = min(scope.max_parallel or 0 for scope in scopes)
    under_way: list[Reservation] = []
    for _ in range(_OPERATIONS):
        if chance.random() < 0.6:
            decision = await engine.limiter.reserve(team, scopes, Cost(1, 1))
            assert isinstance(decision, Admitted) == (len(under_way) < places)
            if isinstance(decision, Admitted):
                under_way.append(decision.reservation)
            else:
                assert isinstance(decision, Refused)
                assert decision.dimension is Dimension.PARALLEL
        elif under_way:
            engine.limiter.settle(under_way.pop(chance.randrange(len(under_way))), Cost(chance.randint(0, 1), 1))
