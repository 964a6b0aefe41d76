"""What the embedded limiter keeps, for how long, and what it notices of the clock."""

from dataclasses import dataclass

import pytest

from proxy.adapters.memory.limiter import ClockSteps, MemoryLimiter
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.tiers import Limits, Schedule


@dataclass
class HandClock:
    wall_ms: int = 1_700_000_000_000
    monotonic_ms: int = 0

    def now_ms(self):
        return self.wall_ms

    def monotonic_ns(self):
        return self.monotonic_ms * 1_000_000

    def advance(self, passed_ms):
        self.wall_ms += passed_ms
        self.monotonic_ms += passed_ms


def scopes(*limits):
    held = Limits(*limits)
    return (Scope("team", Schedule(held, held)),)


SCOPES = scopes(10, 600)


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture
def limiter(clock):
    return MemoryLimiter(clock)


async def operate_for(limiter, clock, seconds):
    for _ in range(seconds):
        clock.advance(1_000)
        await limiter.peek("watcher", SCOPES)


async def test_idle_teams_are_forgotten_once_their_buckets_are_full(limiter, clock):
    for number in range(5_000):
        await limiter.reserve(f"team-{number}", SCOPES, Cost(1, 600))
    assert len(limiter) == 5_000
    await operate_for(limiter, clock, 59)
    assert len(limiter) == 5_000
    # A sixtieth of what is left in every second, and 64 at least.
    await operate_for(limiter, clock, 1 + 5_000 // 64)
    assert len(limiter) == 0
    assert not limiter._round


async def test_a_debt_is_kept_until_it_has_decayed(limiter, clock):
    limiter.charge("debtor", SCOPES, Cost(0, 6_000))
    await operate_for(limiter, clock, 599)
    assert len(limiter) == 1
    await operate_for(limiter, clock, 3)
    assert len(limiter) == 0


async def test_each_bucket_is_in_the_round_once_however_often_it_comes_and_goes(limiter, clock):
    for _ in range(20):
        decision = await limiter.reserve("a", SCOPES, Cost(1, 600))
        limiter.settle(decision.reservation, Cost(0, 0))
        await operate_for(limiter, clock, 3)
    await limiter.reserve("a", SCOPES, Cost(1, 1))
    assert len(limiter) == len(limiter._round) == 1


async def test_what_takes_nothing_is_not_kept(limiter):
    await limiter.peek("a", SCOPES)
    await limiter.reserve("a", SCOPES, Cost(0, 0))
    await limiter.reserve("a", SCOPES, Cost(11, 0))
    await limiter.reserve("b", scopes(), Cost(5, 5_000))
    limiter.charge("b", scopes(), Cost(5, 5_000))
    assert len(limiter) == 0


async def test_a_bucket_ahead_of_a_clock_that_was_set_back_is_still_forgotten(limiter, clock):
    await limiter.reserve("a", SCOPES, Cost(1, 600))
    clock.wall_ms -= 86_400_000
    await operate_for(limiter, clock, 63)
    assert len(limiter) == 0


async def test_a_bucket_made_anew_is_of_another_epoch(limiter, clock):
    first = await limiter.reserve("a", SCOPES, Cost(1, 600))
    await operate_for(limiter, clock, 63)
    assert len(limiter) == 0
    second = await limiter.reserve("a", SCOPES, Cost(1, 600))
    assert isinstance(second, Admitted)
    assert first.reservation.handles[0].epoch != second.reservation.handles[0].epoch
    limiter.settle(first.reservation, Cost(0, 0))
    assert (await limiter.peek("a", SCOPES))[0].tokens.remaining == 0


async def test_clock_steps_are_counted_and_idleness_is_not(limiter, clock):
    await limiter.peek("a", SCOPES)
    clock.advance(86_400_000)
    await limiter.peek("a", SCOPES)
    assert limiter.clock_steps == ClockSteps(back=0, ahead=0)
    clock.wall_ms += 2_001
    await limiter.peek("a", SCOPES)
    await limiter.peek("a", SCOPES)
    assert limiter.clock_steps == ClockSteps(back=0, ahead=1)
    clock.wall_ms -= 1
    await limiter.peek("a", SCOPES)
    clock.wall_ms -= 3_600_000
    await limiter.peek("a", SCOPES)
    await limiter.peek("a", SCOPES)
    assert limiter.clock_steps == ClockSteps(back=2, ahead=1)
    clock.advance(10_000)
    await limiter.peek("a", SCOPES)
    assert limiter.clock_steps == ClockSteps(back=2, ahead=1)


async def test_places_are_counted_while_there_are_any_and_not_with_the_buckets(limiter, clock):
    unlimited = Limits()
    parallel = (Scope("team", Schedule(unlimited, unlimited), 2), Scope("key:k", Schedule(unlimited, unlimited), 1))
    first = await limiter.reserve("a", parallel, Cost(1, 1))
    second = await limiter.reserve("a", parallel[:1], Cost(1, 1))
    assert limiter._in_flight == {("a", "team"): 2, ("a", "key:k"): 1}
    assert len(limiter) == 0
    await operate_for(limiter, clock, 100)
    limiter.settle(first.reservation, Cost(1, 1))
    assert limiter._in_flight == {("a", "team"): 1}
    limiter.settle(second.reservation, Cost(1, 1))
    assert limiter._in_flight == {}
