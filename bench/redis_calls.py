"""What one command to Redis costs: our multiplexer against redis-py's pool, interleaved in one run.

    python bench/redis_calls.py [--callers 64] [--rounds 7] [--seconds 1.0] [--url redis://...] [--loop asyncio]

Starts a server of its own unless given a URL. Prints medians of the rounds: commands per second, CPU time of this
process per command, and its ratio to the pool. CPU time is what counts: it is taken from the loop that serves requests.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import redis.asyncio
from servers import redis_server

from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.scripts import Script
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds

SCRIPT = Script("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])")

Command = Callable[[], Awaitable[object]]


async def measure(command: Command, callers: int, seconds: float) -> tuple[float, float]:
    """Commands per second and CPU microseconds per command with so many callers, each in a loop of its own."""
    until = time.monotonic() + seconds
    done = 0

    async def caller() -> None:
        nonlocal done
        while time.monotonic() < until:
            await command()
            done += 1

    cpu, began = time.process_time(), time.monotonic()
    await asyncio.gather(*(caller() for _ in range(callers)))
    spent, took = time.process_time() - cpu, time.monotonic() - began
    return done / took, spent / done * 1e6


async def compare(url: str, callers: int, rounds: int, seconds: float) -> None:
    """Measure everything in turn, several times, and print medians."""
    tasks: set[asyncio.Task[None]] = set()

    def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
        tasks.add(asyncio.get_running_loop().create_task(coroutine))

    # A loaded machine may pause us: the figure is the cost of an answer, not of a deadline.
    ours = route_for(url, spawn, MultiplexerOptions(Bounds(deadline_seconds=5.0, silence_seconds=10.0)))
    await ours.open()
    theirs = redis.asyncio.Redis.from_url(url, max_connections=callers)
    one = ours.route("k")
    await one.execute("SET", "k", "0")
    await one.execute("SCRIPT", "LOAD", SCRIPT.text)
    contenders: dict[str, dict[str, Command]] = {
        "EVALSHA": {
            "multiplexer": lambda: one.call("EVALSHA", SCRIPT.digest, 1, "k", 1),
            "multiplexer, through the route": lambda: ours.execute("k", "EVALSHA", SCRIPT.digest, 1, "k", 1),
            "redis-py pool": lambda: theirs.evalsha(SCRIPT.digest, 1, "k", 1),
        },
        "GET": {
            "multiplexer": lambda: one.call("GET", "k"),
            "multiplexer, through the route": lambda: ours.execute("k", "GET", "k"),
            "redis-py pool": lambda: theirs.get("k"),
        },
    }
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for _ in range(rounds):
            for verb, commands in contenders.items():
                for name, command in commands.items():
                    figures.setdefault((verb, name), []).append(await measure(command, callers, seconds))
    finally:
        await ours.close()
        await theirs.aclose()
    report(figures)


def report(figures: dict[tuple[str, str], list[tuple[float, float]]]) -> None:
    """Print the table: medians, and how many times the pool's CPU time each takes."""
    print(f"{'command':8} {'client':32} {'per second':>11} {'CPU us':>8} {'of pool':>8}")
    for (verb, name), rounds in figures.items():
        rate = statistics.median(rate for rate, _ in rounds)
        cpu = statistics.median(cpu for _, cpu in rounds)
        pool = statistics.median(cpu for _, cpu in figures[verb, "redis-py pool"])
        print(f"{verb:8} {name:32} {rate:11,.0f} {cpu:8.1f} {cpu / pool:8.2f}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description="Cost of one command to Redis.")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--url", default="")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    given = parser.parse_args()
    factory = None
    if given.loop == "uvloop":
        import uvloop  # noqa: PLC0415 - not everywhere

        factory = uvloop.new_event_loop
    with (
        redis_server() if not given.url else _nothing(given.url) as url,
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        try:
            runner.run(compare(url, given.callers, given.rounds, given.seconds))
        except RedisFailure as failure:
            sys.exit(f"the server failed us: {failure!r}")


@contextmanager
def _nothing(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    main()
