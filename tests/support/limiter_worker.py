"""A process that reserves and settles on a shared Redis: `python -m tests.support.limiter_worker URL SEED [hand]`.

Each line it reads is a round, `same N`, `wander N`, `places N` or `capped N`; it answers with one line, how many
reservations were admitted and how many were not. Its decisions are logged by the script that makes them.
"""

from __future__ import annotations

import asyncio
import random
import sys

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.spent import SpentReader
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.budget import Cap, Period, Spend, span_of
from proxy.core.tiers import DEFAULT_TIERS, Limits, Schedule
from tests.support.limiter_build import log_decisions, on_hand_clock, scripts_with
from tests.support.redis_route import open_route
from tests.support.spend_books import SpendBooks

CALLERS = 8
FREE = (Scope("team", DEFAULT_TIERS["free"].schedule(0, 0)),)


ATTEMPTS = 10_000
WIDE = Schedule(Limits(600_000), Limits(600_000))
CAP = Cap("team", span_of(Period.TOTAL, 0), 1_000, 500)
THREE = (Scope("team", WIDE, 3), Scope("key:k", WIDE, 5))


def scopes_at(started_ms: int) -> tuple[Scope, ...]:
    """Three buckets: steady; small; and with a switch in the middle of the round."""
    team, key, before, after = Limits(600, 60_000), Limits(None, 9_000), Limits(300, 9_000), Limits(900, 12_000)
    return (
        Scope("team", Schedule(team, team)),
        Scope("key:k", Schedule(key, key)),
        Scope("model:m", Schedule(before, after, started_ms)),
    )


async def same(limiter: RedisLimiter) -> bool:
    """The same question by everybody."""
    return isinstance(await limiter.reserve("shared", FREE, Cost(1, 100)), Admitted)


async def spend(limiter: RedisLimiter, chance: random.Random) -> bool:
    """A request of 7 nano-dollars against a budget of 1,000, which settles at what it reserved."""
    decision = await limiter.reserve("capped", THREE, Cost(0, 0), Spend((CAP,), 7, SystemClock().now_ms()))
    if isinstance(decision, Admitted):
        await asyncio.sleep(chance.random() / 200)
        limiter.settle(decision.reservation, Cost(0, 0), 7)
    return isinstance(decision, Admitted)


async def take_place(limiter: RedisLimiter, chance: random.Random) -> bool:
    """A request that comes again until it has a place, and is then under way for a moment."""
    for _ in range(ATTEMPTS):
        decision = await limiter.reserve("of three places", THREE, Cost(1, 0))
        if isinstance(decision, Admitted):
            await asyncio.sleep(chance.random() / 200)
            limiter.settle(decision.reservation, Cost(1, 0))
            return True
        await asyncio.sleep(chance.random() / 20)
    return False


async def wander(limiter: RedisLimiter, chance: random.Random, scopes: tuple[Scope, ...]) -> bool:
    """One reservation with what follows it, for one of a few teams."""
    team = f"team-{chance.randrange(4)}"
    some = scopes[: chance.randint(1, 3)]
    if chance.random() < 0.1:
        limiter.charge(team, some, Cost(0, chance.randint(0, 30)))
    decision = await limiter.reserve(team, some, Cost(chance.randint(0, 2), chance.randint(0, 120)))
    if not isinstance(decision, Admitted):
        return False
    if chance.random() < 0.5:
        await asyncio.sleep(chance.random() / 100)
    if chance.random() < 0.9:
        limiter.settle(decision.reservation, Cost(1, chance.randint(0, 150)))
    return True


async def main(url: str, seed: str, *flags: str) -> None:
    """Serve rounds until there are no more."""
    failed: list[tuple[str, str]] = []
    changes = (on_hand_clock, log_decisions) if "hand" in flags else (log_decisions,)
    chance = random.Random(seed)
    async with open_route(url) as route:
        limiter = RedisLimiter(
            Scripts(route),
            SystemClock(),
            Closed(),
            lambda store, operation: failed.append((store, operation)),
            verbs=scripts_with(*changes),
            deny_ms=0,
            reader=SpentReader(SpendBooks(), SystemClock(), lambda store, operation: failed.append((store, operation))),
        )
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            kind, number = line.split()
            scopes = scopes_at(SystemClock().now_ms() + 300)

            async def caller(count: int, kind: str = kind, scopes: tuple[Scope, ...] = scopes) -> int:
                if kind == "same":
                    return sum([await same(limiter) for _ in range(count)])
                if kind == "capped":
                    return sum([await spend(limiter, chance) for _ in range(count)])
                if kind == "places":
                    return sum([await take_place(limiter, chance) for _ in range(count)])
                return sum([await wander(limiter, chance, scopes) for _ in range(count)])

            each = int(number) // CALLERS
            admitted = sum(await asyncio.gather(*(caller(each) for _ in range(CALLERS))))
            await limiter.peek("shared", FREE)
            assert not failed, failed
            print(admitted, each * CALLERS - admitted, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
