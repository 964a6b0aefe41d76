"""After sixty quiet seconds a bucket is full whatever was lost on the way; what the store itself loses is counted."""

from __future__ import annotations

import asyncio
import random

import pytest
import redis

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.bucket_state import bucket_key, pack_state, places_key, unpack_state
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.wire import Bounds
from proxy.core.breaker import BreakerPolicy
from proxy.core.bucket import EPOCH_SPAN, Admitted, Cost, Scope
from proxy.core.tiers import Limits, Schedule
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import open_route, until_true
from tests.support.redis_server import RedisServer

HASTY = MultiplexerOptions(
    Bounds(deadline_seconds=0.02, silence_seconds=0.1),
    BreakerPolicy(failures_to_open=1_000),
    connect_seconds=10.0,
    first_backoff_seconds=0.005,
    max_backoff_seconds=0.02,
)
STEPS = ("reserve",) * 8 + ("settle",) * 6 + ("leave", "die", "cut", "hold", "release", "release")


def scope_of(name, *figures, places=None):
    return Scope(name, Schedule(Limits(*figures), Limits(*figures)), places)


# A minute's worth is the bucket. It never empties here, not even where most of what is asked is charged and not heard.
SCOPES = (scope_of("team", 100_000, 10_000_000, places=1_000), scope_of("key:k", 50_000, 5_000_000))
FULL = [100_000, 10_000_000, 50_000, 5_000_000]


def pass_quietly(server, seconds):
    """Make all that is kept so much older, as if nobody had asked for so long."""
    with redis.Redis(unix_socket_path=server.socket) as client:
        for scope in SCOPES:
            key = bucket_key("a", scope.name)
            if (packed := client.get(key)) is not None:
                epoch, at_ms, *levels = unpack_state(packed)
                client.set(key, pack_state((epoch, at_ms - seconds * 1_000, *levels)))
        for lease, expires_ms in client.zrange(places_key("a", "team"), 0, -1, withscores=True):
            client.zadd(places_key("a", "team"), {lease: expires_ms - seconds * 1_000})


async def left(limiter):
    """What is left of each dimension of each scope."""
    stands = await limiter.peek("a", SCOPES)
    return [gauge.remaining for standing in stands for gauge in (standing.requests, standing.tokens)]


async def ask(limiter, *, leave):
    """A reservation, if there is an answer in time and somebody waits for it."""
    asking = asyncio.create_task(limiter.reserve("a", SCOPES, Cost(1, 900)))
    if leave:
        await asyncio.sleep(0)
        asking.cancel()
    (decision,) = await asyncio.gather(asking, return_exceptions=True)
    return decision.reservation if isinstance(decision, Admitted) else None


@pytest.mark.parametrize("seed", range(6))
async def test_after_sixty_quiet_seconds_the_bucket_is_full_whatever_was_lost(seed):
    chance, under_way, admitted = random.Random(seed), [], 0
    with RedisServer() as server:
        async with run_tcp_proxy(server.socket) as proxy, open_route(f"redis://127.0.0.1:{proxy.port}", HASTY) as route:
            limiter = RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None, deny_ms=0)

            async def reconnect():
                proxy.release_replies()
                await until_true(lambda: route.primaries()[0].is_up, "it is connected again")

            for step in range(3_000):
                if step >= 150 and admitted > 10:
                    break
                match chance.choice(STEPS):
                    case "cut":
                        proxy.cut()
                        if chance.random() < 0.8:
                            await reconnect()
                    case "hold":
                        proxy.hold_replies()
                    case "release":
                        proxy.release_replies()
                    case "settle" if under_way:
                        reservation = under_way.pop(chance.randrange(len(under_way)))
                        limiter.settle(reservation, Cost(1, chance.choice((0, 300, 900))))
                    case "die" if under_way:
                        under_way.pop()
                    case way:
                        reservation = await ask(limiter, leave=way == "leave")
                        if reservation is not None:
                            admitted += 1
                            under_way.append(reservation)
        # What was on its way has arrived; the limiter that held the rest is gone.
        async with open_route(server.url) as route:
            limiter = RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None, deny_ms=0)
            assert admitted > 10, "a history in which hardly anything passed shows nothing"
            limiter.charge("a", SCOPES, Cost(1, 2_000_000))
            assert await left(limiter) != FULL
            pass_quietly(server, 60)
            assert await left(limiter) == FULL
            assert isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
            # Nor does one that died hold its place any longer.
            assert server.ask("ZCARD", places_key("a", "team")) == 1


@pytest.fixture
async def steady():
    """A server, and a limiter of it that has all the time there is."""
    with RedisServer() as server:
        async with open_route(server.url) as route:
            yield server, RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None, deny_ms=0)


async def test_a_debt_takes_its_own_time_and_no_more(steady):
    server, limiter = steady
    limiter.charge("a", SCOPES[:1], Cost(0, 15_000_000))
    assert (await left(limiter))[1] == 0
    pass_quietly(server, 60)
    assert 0 < (await left(limiter))[1] < FULL[1]
    pass_quietly(server, 30)
    assert await left(limiter) == FULL


# What the store has lost

SLOW = (scope_of("team", 1, 1, 100_000, 100_000_000), scope_of("key:k", 1, 1, 100_000, 100_000_000))


async def use(limiter, scopes=SLOW[:1]):
    decision = await limiter.reserve("a", scopes, Cost(1, 300))
    assert isinstance(decision, Admitted)
    return decision.reservation


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("command", [("FLUSHALL",), ("DEL", bucket_key("a", "team"))])
async def test_a_bucket_that_the_store_has_lost_is_counted_once(steady, command, is_settled):
    server, limiter = steady
    reservation = await use(limiter)
    if is_settled:
        limiter.settle(reservation, Cost(1, 100))
    await use(limiter)
    assert limiter.lost_buckets == 0
    server.ask(*command)
    await use(limiter)
    await use(limiter)
    assert limiter.lost_buckets == 1


async def test_each_bucket_counts(steady):
    server, limiter = steady
    await use(limiter, SLOW)
    server.ask("FLUSHALL")
    await use(limiter, SLOW)
    assert limiter.lost_buckets == 2


async def test_a_bucket_that_is_older_than_it_was_is_lost_too(steady):
    """As after a failover to a replica that was behind."""
    server, limiter = steady
    await use(limiter)
    with redis.Redis(unix_socket_path=server.socket) as client:
        before = client.get(bucket_key("a", "team"))
        await use(limiter)
        client.set(bucket_key("a", "team"), before)
    await use(limiter)
    assert limiter.lost_buckets == 1


async def test_one_that_has_expired_or_was_given_back_is_not(steady):
    server, limiter = steady
    fast = (scope_of("team", 60_000, 6_000_000),)
    for _ in range(3):
        await use(limiter, fast)
        await until_true(lambda: server.ask("DBSIZE") == 0, "it has expired")
    for _ in range(3):
        limiter.settle(await use(limiter), Cost(0, 0))
        await until_true(lambda: server.ask("DBSIZE") == 0, "it is full")
    await use(limiter)
    assert limiter.lost_buckets == 0


async def test_one_that_has_begun_a_new_epoch_is_not(steady):
    server, limiter = steady
    first = await use(limiter)
    with redis.Redis(unix_socket_path=server.socket) as client:
        epoch, at_ms, used_r, removed_r, used_t, _ = unpack_state(client.get(bucket_key("a", "team")))
        client.set(bucket_key("a", "team"), pack_state((epoch, at_ms, used_r, removed_r, used_t, EPOCH_SPAN + 1)))
    second = await use(limiter)
    assert first.handles[0].epoch != second.handles[0].epoch
    assert limiter.lost_buckets == 0
