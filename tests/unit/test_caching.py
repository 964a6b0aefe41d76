"""The cache shared in Redis, put together as a worker does it."""

from __future__ import annotations

import asyncio
import base64
import logging
import random
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from proxy.adapters.cache_key_file import CACHE_KEY_FILE
from proxy.adapters.clock import SystemClock
from proxy.adapters.layered_cache import LayeredCache
from proxy.adapters.prometheus import Metrics
from proxy.adapters.redis.cache import RedisCache, place_of
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.route import Facts
from proxy.adapters.redis.wire import Bounds
from proxy.app import cache_store, caching, limiting
from proxy.app.background import in_background
from proxy.core.bucket import Admitted, Cost, Scope
from proxy.core.tiers import Limits, Schedule
from proxy.settings import load
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.cache_build import an_answer, at, put
from tests.support.redis_route import open_route, until_true
from tests.support.redis_server import RedisServer, free_port

KEY = base64.b64encode(bytes(range(32))).decode()
SECOND_KEY = base64.b64encode(bytes(range(32, 64))).decode()
EVICTING = ("maxmemory 50mb", "maxmemory-policy allkeys-lru")
SCOPES = (Scope("team", Schedule(Limits(1_000), Limits(1_000))),)


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A server may stand still for a moment, as on a busy machine."""
    monkeypatch.setattr(limiting, "_CONNECT_SECONDS", 30.0)
    for module in (limiting, caching):
        monkeypatch.setattr(module, "Bounds", partial(Bounds, silence_seconds=60.0))
    monkeypatch.setattr(caching, "MultiplexerOptions", partial(MultiplexerOptions, connect_seconds=30.0))


@pytest.fixture(scope="module")
def redis():
    with RedisServer(*EVICTING) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(request):
    if "redis" in request.fixturenames:
        request.getfixturevalue("redis").ask("FLUSHALL")


def settings_of(data_dir, **environment):
    patience = dict.fromkeys(("CACHE_REDIS_DEADLINE_MS", "LIMITS_REDIS_DEADLINE_MS"), "20000")
    told = patience | {name.upper(): value for name, value in environment.items()}
    return load(None, {"TOLLGATE_DATA_DIR": str(data_dir)} | {f"TOLLGATE_{name}": each for name, each in told.items()})


class Made:
    """What was made, and the figures it tells."""

    def __init__(self, shared, metrics, tasks):
        self.shared = shared
        self.cache = None if shared is None else shared.cache
        self._registry = metrics.registry
        self.tasks = tasks

    def figure(self, name, **labels):
        return self._registry.get_sample_value(name, labels)

    @property
    def degraded(self):
        self.shared.sample()
        return self.figure("tollgate_degraded", store="cache")


@asynccontextmanager
async def shared(data_dir, **environment):
    settings = settings_of(data_dir, **environment)
    metrics = Metrics(lambda _: True)
    async with in_background() as spawn, AsyncExitStack() as stack:
        made = await caching.shared_cache(settings, SystemClock(), metrics, spawn, stack)
        yield Made(made, metrics, spawn)


# Which one


async def test_answers_go_to_the_redis_of_the_cache_or_else_to_that_of_the_limits(redis, tmp_path):
    assert caching.cache_url(settings_of(tmp_path)) is None
    assert caching.cache_url(settings_of(tmp_path, redis_url="redis://a")) == "redis://a"
    both = {"redis_url": "redis://a", "cache_redis_url": "redis://b"}
    assert caching.cache_url(settings_of(tmp_path, **both)) == "redis://b"
    assert caching.cache_url(settings_of(tmp_path, cache_enabled="false", **both)) is None
    for variable in ("redis_url", "cache_redis_url"):
        async with shared(tmp_path, **{variable: redis.url}) as made:
            assert isinstance(made.cache, RedisCache)
            assert await put(made.cache, at(), an_answer())
            assert redis.ask("EXISTS", place_of(at()))
            redis.ask("FLUSHALL")
    async with shared(tmp_path, cache_redis_url=redis.url, cache_enabled="false") as made:
        assert made.shared is None


@pytest.mark.parametrize("package", ["cryptography", "backports"] if sys.version_info < (3, 14) else ["cryptography"])
async def test_without_its_packages_there_is_none_and_one_warning(redis, tmp_path, monkeypatch, caplog, package):
    caplog.set_level(logging.WARNING)
    for name in (package, f"{package}.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    async with shared(tmp_path, redis_url=redis.url) as made:
        assert made.shared is None
    (said,) = caplog.messages
    assert package in said
    assert "pip install 'tollgate[server]'" in said
    assert not (tmp_path / CACHE_KEY_FILE).exists()


async def test_workers_of_one_machine_open_what_another_sealed_and_other_machines_need_the_same_key(redis, tmp_path):
    places = {name: tmp_path / name for name in ("one", "other")}
    url = {"cache_redis_url": redis.url}
    async with shared(places["one"], **url) as worker, shared(places["one"], **url) as second:
        assert await put(worker.cache, at(), an_answer())
        assert await second.cache.get(at()) is not None
    async with shared(places["other"], **url) as machine:
        assert await machine.cache.get(at()) is None
        assert machine.figure("tollgate_cache_failures_total", operation="get", reason="unknown_key") == 1
    redis.ask("FLUSHALL")
    async with shared(places["one"], cache_key=f"{KEY} {SECOND_KEY}", **url) as one:
        assert await put(one.cache, at(), an_answer())
    async with shared(places["other"], cache_key=f"{SECOND_KEY} {KEY}", **url) as rotated:
        assert await rotated.cache.get(at()) is not None
    assert not (places["other"] / CACHE_KEY_FILE).read_text().startswith(KEY)


async def test_what_is_kept_says_nothing_of_what_it_is(redis, tmp_path):
    async with shared(tmp_path, cache_redis_url=redis.url) as made:
        assert await put(made.cache, at(secret=b"secret of a team" * 2), an_answer(body=b"private " * 50))
    async with open_route(redis.url) as route:
        kept = await route.execute("", "GET", place_of(at()))
    assert kept.startswith(b"TG\1")
    assert all(word not in kept for word in (b"private", b"application/json", b"secret of"))


async def test_answers_are_at_hand_for_as_long_as_is_said(redis, tmp_path):
    async with shared(tmp_path, cache_redis_url=redis.url, cache_l1_seconds="3600", cache_max_bytes="2000000") as made:
        assert isinstance(made.cache, LayeredCache)
        assert await put(made.cache, at(), an_answer(body=b"x" * 1_000))
        redis.ask("FLUSHALL")
        assert await made.cache.get(at()) is not None
        made.shared.sample()
        assert 2_000 < made.figure("tollgate_cache_bytes") < 2_500


# Entries as large as the settings let them be


async def test_the_largest_answer_that_may_be_kept_is_kept(redis, tmp_path):
    largest = 3_000_000
    async with shared(tmp_path, cache_redis_url=redis.url, cache_entry_max_bytes=str(largest)) as made:
        body = random.Random(1).randbytes(largest)
        places = [at(bytes([number]) * 32) for number in range(3)]
        assert all(await asyncio.gather(*(put(made.cache, place, an_answer(body=body)) for place in places)))
        assert [(await made.cache.get(place)).body == body for place in places] == [True] * 3
        assert not await put(made.cache, at(b"9" * 32), an_answer(body=b"x" * (largest + 70_000)))


# Away


async def test_one_that_is_away_at_the_start_is_told_of_and_so_is_its_return(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    port = free_port()
    async with shared(tmp_path, cache_redis_url=f"redis://127.0.0.1:{port}") as made:
        assert made.degraded == 1
        assert made.degraded == 1
        assert await made.cache.get(at()) is None
        assert made.figure("tollgate_cache_failures_total", operation="get", reason="away") == 1
        assert made.figure("tollgate_cache_failures_total", operation="store", reason="away") == 0
        with RedisServer(*EVICTING, port=port):
            await until_true(lambda: not made.degraded, "it is back")
            assert await put(made.cache, at(), an_answer())
    assert caplog.messages == [
        "Redis of the cache does not answer: nothing is a hit",
        "Redis of the cache answers again",
    ]


async def test_a_cache_that_does_not_answer_is_no_matter_for_the_limits(tmp_path):
    with RedisServer() as redis:
        async with run_tcp_proxy(("127.0.0.1", redis.port)) as gate:
            urls = {"redis_url": redis.url, "cache_redis_url": f"redis://127.0.0.1:{gate.port}"}
            settings = settings_of(tmp_path, **urls, cache_redis_deadline_ms="50")
            metrics = Metrics(lambda _: True)
            async with in_background() as spawn, AsyncExitStack() as stack:
                clock = SystemClock()
                limits = await limiting.shared_limits(settings, redis.url, clock, metrics, spawn, stack)
                answers = await caching.shared_cache(settings, clock, metrics, spawn, stack)
                gate.drops_replies = True
                async with asyncio.timeout(60):
                    for _ in range(12):
                        assert await answers.cache.get(at()) is None
                        assert isinstance(await limits.limiter.reserve("a", SCOPES, Cost(1, 0)), Admitted)
                answers.sample()

                def degraded(store):
                    return metrics.registry.get_sample_value("tollgate_degraded", {"store": store})

                assert (degraded("cache"), degraded("limiter")) == (1, 0)


async def test_limits_and_answers_have_connections_of_their_own(tmp_path):
    with RedisServer() as redis:
        settings = settings_of(tmp_path, redis_url=redis.url)
        metrics = Metrics(lambda _: True)
        async with in_background() as spawn, AsyncExitStack() as stack:
            await limiting.shared_limits(settings, redis.url, SystemClock(), metrics, spawn, stack)
            alone = redis.ask("CLIENT", "LIST", "TYPE", "normal").count("name=tollgate")
            answers = await caching.shared_cache(settings, SystemClock(), metrics, spawn, stack)
            assert redis.ask("CLIENT", "LIST", "TYPE", "normal").count("name=tollgate") == alone + 1
            assert await put(answers.cache, at(), an_answer())


async def test_answers_do_not_fill_a_redis_that_holds_limits(tmp_path):
    with RedisServer("maxmemory 20mb") as redis:
        async with shared(tmp_path, redis_url=redis.url) as made:
            (look,) = made.shared.chores
            made.tasks(look())
            assert await put(made.cache, at(), an_answer())
            redis.ask("SETRANGE", "filling", 16_000_000, "x")

            async with asyncio.timeout(60):
                while await put(made.cache, at(), an_answer()):  # noqa: ASYNC110 - room is looked at now and then
                    await asyncio.sleep(0.01)
            assert made.figure("tollgate_cache_failures_total", operation="store", reason="out_of_memory") == 1
            # The limits have what is left.
            redis.ask("SET", "limit", 1)


async def test_one_that_takes_its_time_is_asked_what_it_holds(redis, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_store, "_PATIENCE_SECONDS", 30.0)
    async with run_tcp_proxy(("127.0.0.1", redis.port)) as gate:
        gate.delay_seconds = 0.3
        settings = settings_of(tmp_path, cache_redis_url=f"redis://127.0.0.1:{gate.port}")
        (server,) = (await asyncio.to_thread(cache_store.look_at_cache, settings)).servers
    assert server.policy == "allkeys-lru"


# What can be said of it


def fact(**changes):
    fit = {
        "address": "127.0.0.1:6379",
        "server": "redis",
        "version": "6.2.0",
        "role": "master",
        "maxmemory_policy": "allkeys-lru",
        "maxmemory_bytes": 1,
        "is_cluster": False,
    }
    return Facts(**fit | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"maxmemory_policy": "volatile-lru"}, None),
        ({"maxmemory_policy": ""}, None),
        ({"maxmemory_policy": "noeviction"}, "refuses answers when memory is short (noeviction)"),
        ({"maxmemory_policy": "volatile-ttl"}, "throws away what fills are held by first (volatile-ttl)"),
        ({"maxmemory_bytes": 0}, "holds answers without a bound: set maxmemory, and maxmemory-policy allkeys-lru"),
        ({"role": "slave"}, "is a replica and takes no writes"),
        ({"version": "6.0.16"}, "is too old: 6.2 or newer is needed"),
    ],
)
def test_what_is_wrong_with_a_server(changes, said):
    warnings = caching.cache_warnings((fact(**changes),))
    assert len(warnings) == (said is not None)
    assert said is None or said in warnings[0]


async def test_what_is_wrong_is_said_at_the_start(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with RedisServer("maxmemory 50mb") as redis:
        async with shared(tmp_path, cache_redis_url=redis.url):
            (said,) = caplog.messages
            assert "refuses answers when memory is short (noeviction)" in said
        caplog.clear()
        async with shared(tmp_path, redis_url=redis.url, replicas="2"):
            assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
            assert "each machine makes a master key of its own" in caplog.messages[0]
            assert "share one Redis" in caplog.messages[1]
