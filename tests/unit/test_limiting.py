"""Limits shared in Redis, put together as a worker does it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from proxy.adapters.clock import SystemClock
from proxy.adapters.prometheus import Metrics
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.policies import Open
from proxy.adapters.redis.route import Facts
from proxy.adapters.redis.share import Share
from proxy.adapters.redis.wire import Bounds
from proxy.app import limiting
from proxy.app.background import in_background
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.tiers import Limits, Schedule
from proxy.settings import WhenRedisIsAway, load
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import until_true
from tests.support.redis_server import RedisServer, eventually, free_port

LIMITS = Limits(1, None, 100)
SCOPES = (Scope("team", Schedule(LIMITS, LIMITS)),)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """Have nobody given up on who is there and stands still for a moment, as everybody does on a busy machine."""

    class Patient(MultiplexerOptions):
        def __init__(self, bounds, *more, connect_seconds, **other):
            super().__init__(bounds, *more, connect_seconds=30 * connect_seconds, **other)

    monkeypatch.setattr(limiting, "MultiplexerOptions", Patient)
    monkeypatch.setattr(limiting, "Bounds", partial(Bounds, silence_seconds=60.0))
    monkeypatch.setattr(limiting, "_PATIENCE_SECONDS", 30.0)


class HandClock:
    ms = 0

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


def fact(**changes):
    fit = {
        "address": "127.0.0.1:6379",
        "server": "redis",
        "version": "6.2.0",
        "role": "master",
        "maxmemory_policy": "noeviction",
        "maxmemory_bytes": 0,
        "is_cluster": False,
    }
    return Facts(**fit | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"server": "valkey", "version": "8.0.1"}, None),
        # Valkey counts its own versions; what it says to those who ask for Redis' is no matter.
        ({"server": "valkey", "version": "1.0"}, None),
        ({"version": "10.0.1"}, None),
        ({"role": "", "maxmemory_policy": ""}, None),
        ({"version": "6.0.16"}, "redis 6.0.16 at 127.0.0.1:6379 is too old: 6.2 or newer is needed"),
        ({"version": ""}, "is too old"),
        ({"role": "slave"}, "is a replica and takes no writes"),
        ({"maxmemory_policy": "volatile-lru"}, "throws keys away when memory is short (volatile-lru)"),
    ],
)
def test_what_is_wrong_with_a_server(changes, said):
    warnings = limiting.redis_warnings((fact(**changes),))
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


def test_each_server_and_fault_is_named():
    warnings = limiting.redis_warnings((fact(address="a:1"), fact(address="b:2", role="slave", version="5.0")))
    assert len(warnings) == 2
    assert all(" at b:2 " in warning for warning in warnings)


def test_nobody_there_is_a_timeout():
    with pytest.raises(TimeoutError):
        limiting.probe(f"redis://127.0.0.1:{free_port()}")


def test_a_server_that_accepts_and_says_nothing_is_a_timeout(monkeypatch):
    monkeypatch.setattr(limiting, "_PATIENCE_SECONDS", 0.2)
    with RedisServer() as redis, redis.frozen(), pytest.raises(TimeoutError):
        limiting.probe(redis.url)


async def test_a_server_that_takes_its_time_is_there():
    with RedisServer() as redis:
        async with run_tcp_proxy(("127.0.0.1", redis.port)) as gate:
            gate.delay_seconds = 0.3
            assert await asyncio.to_thread(limiting.probe, f"redis://127.0.0.1:{gate.port}") == []


@asynccontextmanager
async def shared(url, policy=WhenRedisIsAway.SHARE, deadline_ms=10_000):
    settings = load(
        environ={"OPENAI_API_KEY": "sk-upstream", "TOLLGATE_REDIS_URL": url},
        overrides={"limits.when_redis_is_away": policy.value, "limits.redis_deadline_ms": deadline_ms},
    )
    metrics = Metrics(lambda _: True)
    async with in_background() as spawn, AsyncExitStack() as stack:
        made = await limiting.shared_limits(settings, url, SystemClock(), metrics, spawn, stack)
        for chore in made.chores:
            spawn(chore())
        yield made.limiter, lambda: metrics.registry.get_sample_value("tollgate_degraded", {"store": "limiter"})


@pytest.mark.parametrize(
    ("policy", "kind"),
    [(WhenRedisIsAway.SHARE, Share), (WhenRedisIsAway.OPEN, Open), (WhenRedisIsAway.CLOSED, Closed)],
)
async def test_the_policy_is_the_one_of_the_settings(policy, kind):
    with RedisServer() as redis:
        async with shared(redis.url, policy) as (limiter, _):
            assert isinstance(limiter._fallback, kind)


async def test_a_redis_that_is_away_is_told_of_though_nobody_asks_and_so_is_its_return(caplog):
    caplog.set_level(logging.WARNING)
    with RedisServer() as redis:
        async with shared(redis.url) as (_, degraded):
            assert degraded() == 0
            redis.kill()
            await until_true(degraded, "it is degraded")
            redis.start()
            await until_true(lambda: not degraded(), "it is not")
    assert [record.message for record in caplog.records] == [
        "Redis does not answer; limits are held by the policy 'share'",
        "Redis answers again",
    ]


async def test_a_redis_that_is_away_at_the_start_is_waited_for():
    redis = RedisServer(port=free_port())
    async with shared(redis.url) as (_, degraded):
        assert degraded() == 1
        with redis:
            await until_true(lambda: not degraded(), "it is found")


async def test_its_return_is_charged_with_what_was_used_without_the_team_asking_again():
    with RedisServer() as redis:
        async with shared(redis.url) as (limiter, degraded):
            assert isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
            redis.kill()
            await until_true(degraded, "it is degraded")
            for _ in range(30):
                assert isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
            redis.start()
            await until_true(lambda: not degraded(), "it is not")
            await until_true(lambda: "a" not in limiter._fallback, "it is told")
            (standing,) = await limiter.peek("a", SCOPES)
            assert standing.requests.remaining == 70


async def test_a_replica_is_warned_of_at_the_start(caplog):
    caplog.set_level(logging.WARNING)
    with RedisServer() as primary, RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        eventually(lambda: replica.ask("INFO")["master_link_status"] == "up", "the replica follows")
        async with shared(replica.url):
            pass
    assert " is a replica and takes no writes" in caplog.records[0].message


async def test_a_redis_that_comes_and_goes_is_told_each_time_and_no_share_is_given_twice():
    with RedisServer() as redis:
        async with shared(redis.url, deadline_ms=500) as (limiter, degraded):

            async def admits():
                return isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)

            admitted = int(await admits())
            for _ in range(2):
                with redis.frozen():
                    await until_true(degraded, "it is degraded")
                    admitted += sum([await admits() for _ in range(120)])
                while degraded():
                    admitted += await admits()
                    await asyncio.sleep(0.005)
                await until_true(lambda: "a" not in limiter._fallback, "it is told")
            # Its first answer does not know yet what it is told next; a share is much more than that.
            assert admitted <= 110


def test_a_store_that_is_away_in_part_is_told_of_once(caplog):
    caplog.set_level(logging.WARNING)
    metrics, clock, returns = Metrics(lambda _: True), HandClock(), []
    presence = limiting._Presence(metrics, WhenRedisIsAway.SHARE, clock)
    presence.on_return = lambda: returns.append(clock.ms)
    for _ in range(1_000):
        presence.silent()
        clock.ms += 1
        presence.answered()
    assert metrics.registry.get_sample_value("tollgate_degraded", {"store": "limiter"}) == 1
    clock.ms += limiting._CALM_MS
    presence.answered()
    presence.answered()
    assert len(caplog.records) == 2
    assert len(returns) == 1
    assert metrics.registry.get_sample_value("tollgate_degraded", {"store": "limiter"}) == 0


async def test_workers_of_one_host_and_number_are_two():
    with RedisServer() as redis:
        async with shared(redis.url), shared(redis.url):
            await until_true(lambda: redis.ask("ZCARD", "tollgate:workers") == 2, "both have told that they are there")


async def test_what_becomes_of_connections_and_posts_is_counted_and_so_is_what_the_store_loses():
    with RedisServer() as redis:
        settings = load(
            environ={"OPENAI_API_KEY": "sk-upstream", "TOLLGATE_REDIS_URL": redis.url},
            overrides={"limits.redis_deadline_ms": 10_000},
        )
        metrics = Metrics(lambda _: True)
        async with in_background() as spawn, AsyncExitStack() as stack:
            made = await limiting.shared_limits(settings, redis.url, SystemClock(), metrics, spawn, stack)
            limiter, (primary,) = made.limiter, made.route.primaries()

            def figures():
                made.sample()
                sample = metrics.registry.get_sample_value
                counted = [
                    sample("tollgate_store_events_total", {"store": "limiter", "event": event})
                    for event in (
                        "connected",
                        "disconnected",
                        "timed_out",
                        "post_answered",
                        "post_refused",
                        "post_unknown",
                    )
                ]
                lost = sample("tollgate_limiter_lost_buckets_total")
                return counted, lost, sample("tollgate_limiter_forgotten_debts_total")

            assert figures() == ([1, 0, 0, 0, 0, 0], 0, 0)
            for _ in range(2):
                limiter.charge("a", SCOPES, Cost(1, 0))
                assert isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
            assert figures() == ([1, 0, 0, 2, 0, 0], 0, 0)
            redis.ask("FLUSHALL")
            assert isinstance(await limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
            limiter._debts.forgotten += 3
            assert figures() == ([1, 0, 0, 2, 0, 0], 1, 3)
            assert figures() == ([1, 0, 0, 2, 0, 0], 1, 3)
            with redis.frozen():
                primary._wire.hold_to(0.1)
                limiter.charge("a", SCOPES, Cost(1, 0))
                await until_true(lambda: primary.counts.posts_lost, "its fate is unknown")
                primary._wire.hold_to(10.0)
            assert figures()[0] == [1, 0, 1, 2, 0, 1]
            redis.kill()
            await until_true(lambda: not primary.is_up, "the loss is noticed")
            limiter.charge("a", SCOPES, Cost(1, 0))
            assert figures()[0] == [1, 1, 1, 2, 1, 1]
            redis.start()
            await until_true(lambda: primary.is_up, "it is back")
            assert figures()[0] == [2, 1, 1, 2, 1, 1]
