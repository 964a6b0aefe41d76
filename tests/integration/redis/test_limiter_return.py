"""Workers that lose a store and find it again in their own time, together against the limit."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.bucket_state import bucket_key
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.share import Share
from proxy.core.breaker import BreakerPolicy
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import PATIENT, in_haste, open_route, until_true
from tests.support.redis_server import RedisServer

RATE, CAPACITY = 1_200, 60
LIMITS = Limits(RATE, None, CAPACITY)
SCOPES = (Scope("team", Schedule(LIMITS, LIMITS)),)
ONE = Cost(1, 0)
# Whose connections are cut knows at once; nobody is slow but in `in_haste`.
OPTIONS = replace(PATIENT, breaker=BreakerPolicy(max_rest_ms=500), max_backoff_seconds=0.3)


@dataclass
class Worker:
    """A limiter with its part of two, and the proxy that it reaches the store by."""

    limiter: RedisLimiter
    scripts: Scripts
    route: object
    proxy: object
    decided: list

    def away(self):
        return self.scripts.away(bucket_key("a", "team"))

    def is_back(self):
        """An answer has come since, or came so long ago that it does not matter any more."""
        away = self.away()
        return away is None or away.back_ms is not None

    async def admits(self):
        return isinstance(await self.limiter.reserve("a", SCOPES, ONE), Admitted)


@pytest.fixture
async def pair():
    """A server, two workers, and how they keep looking at it."""
    async with AsyncExitStack() as stack:
        server, workers, looking = stack.enter_context(RedisServer()), [], []
        for rank in range(2):
            proxy = await stack.enter_async_context(run_tcp_proxy(server.socket))
            route = await stack.enter_async_context(open_route(f"redis://127.0.0.1:{proxy.port}", OPTIONS))
            scripts, decided = Scripts(route), []
            share = Share(
                SystemClock(),
                lambda rank=rank: Part(rank, 2),
                lambda decided=decided: decided.append(1),
                away=lambda team, scripts=scripts: scripts.away(bucket_key(team, "team")),
                notice_ms=1_100,
            )
            limiter = RedisLimiter(scripts, SystemClock(), share, lambda *_: None, deny_ms=0)
            await limiter.load()
            workers.append(Worker(limiter, scripts, route, proxy, decided))
            looking.append(asyncio.create_task(limiter.watch()))
        yield server, workers
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)


async def test_no_more_passes_than_one_bucket_lets_though_one_worker_is_back_later(pair):
    _, workers = pair
    # The store counts whole milliseconds.
    began, admitted = time.monotonic() - 0.002, 0

    async def all_ask(seconds):
        nonlocal admitted
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for worker in workers:
                while await worker.admits():
                    admitted += 1
                    assert admitted <= CAPACITY + RATE * (time.monotonic() - began) / 60
            await asyncio.sleep(0.01)

    await all_ask(0.3)
    assert admitted >= CAPACITY
    before = admitted
    for worker in workers:
        worker.proxy.refuses = True
        worker.proxy.cut()
    await until_true(lambda: all(worker.away() for worker in workers), "both have lost it")
    await all_ask(3.0)
    by_parts = admitted - before
    workers[0].proxy.refuses = False
    # Well within the time by which one may be later than another.
    await all_ask(1.0)
    workers[1].proxy.refuses = False
    await all_ask(1.0)
    await until_true(lambda: all(worker.is_back() for worker in workers), "both are back")
    await until_true(lambda: not any("a" in worker.limiter._fallback for worker in workers), "both have told it")
    while any(worker.away() for worker in workers):
        await all_ask(0.2)
    assert by_parts > 20, "parts are not idle"
    decided = sum(len(worker.decided) for worker in workers)
    await all_ask(0.5)
    assert sum(len(worker.decided) for worker in workers) == decided, "the store decides again"


async def test_a_store_that_is_back_is_told_before_anybody_asks(pair):
    _, (worker, _) = pair
    worker.proxy.refuses = True
    worker.proxy.cut()
    await until_true(worker.away, "it is lost")
    for _ in range(2_000):
        if await worker.admits():
            break
        await asyncio.sleep(0.005)
    assert "a" in worker.limiter._fallback
    worker.proxy.refuses = False
    await until_true(lambda: "a" not in worker.limiter._fallback, "it is told")


async def test_one_slow_answer_costs_a_moment_and_no_room(pair):
    server, (worker, _) = pair
    assert await worker.admits()
    with server.frozen(), in_haste(worker.route):
        assert not await worker.admits()
    await until_true(worker.is_back, "it has answered")
    passed = [await worker.admits() for _ in range(CAPACITY - 15)]
    # Nobody can have given anything in so short a time; a twentieth of the bucket is kept for who is still cut off.
    assert all(passed)


async def test_a_worker_that_nobody_asks_notices_too(pair):
    server, workers = pair
    with server.frozen(), in_haste(workers[0].route), in_haste(workers[1].route):
        # What the way to the store knows, its next look tells the limiter.
        await until_true(lambda: all(worker.away() and worker.limiter._is_wary for worker in workers), "they know")
        assert not any(worker.is_back() for worker in workers)
    await until_true(lambda: all(worker.is_back() for worker in workers), "they are back")
