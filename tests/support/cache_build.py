"""The cache on a real Redis, for tests: its own route, keys that everybody may know, and what it counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from proxy.adapters.cache_keys import MasterKeys
from proxy.adapters.clock import SystemClock
from proxy.adapters.envelope import Envelope
from proxy.adapters.redis.cache import RedisCache
from proxy.adapters.redis.fills import FillScripts
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.topology import route_for
from proxy.ports import Cache, CacheAddress, CachedAnswer, Clock
from tests.support.redis_route import PATIENT, until_true
from tests.support.redis_server import RedisServer
from tests.support.tasks import Tasks

__all__ = ["KEYS", "MAX_PAYLOAD_BYTES", "CacheOnRedis", "an_answer", "at", "open_cache", "put", "teach_scripts"]

KEYS = MasterKeys.of(bytes(range(32)))
MAX_PAYLOAD_BYTES = 1_200_000


class CacheOnRedis(RedisCache):
    """The cache, and what it told of trouble."""

    troubles: Counter[tuple[str, str]]


def at(digest: bytes = b"1" * 32, team: str = "a", secret: bytes = b"s" * 32) -> CacheAddress:
    return CacheAddress(team, secret, digest)


def an_answer(clock: Clock | None = None, body: bytes = b"{}", ttl_ms: int = 60_000) -> CachedAnswer:
    now_ms = (clock or SystemClock()).now_ms()
    return CachedAnswer(200, (("Content-Type", "application/json"),), body, "m", now_ms, ttl_ms, 3, 4, 5)


async def put(cache: Cache, address: CacheAddress, answer: CachedAnswer) -> bool:
    fill = await cache.claim(address)
    assert fill is not None, "somebody else fills it"
    return await fill.store(answer)


def teach_scripts(server: RedisServer) -> None:
    """Have a server know the scripts of fills: one that does not carries out what is posted a round trip later."""
    for script in FillScripts().all():
        server.ask("SCRIPT", "LOAD", script.text)


@asynccontextmanager
async def open_cache(
    url: str,
    clock: Clock | None = None,
    *,
    keys: MasterKeys = KEYS,
    options: MultiplexerOptions = PATIENT,
    is_listening: bool = True,
    is_up: bool = True,
    max_payload_bytes: int = MAX_PAYLOAD_BYTES,
    **more: Any,
) -> AsyncIterator[CacheOnRedis]:
    """A cache as one process has it; at the end nothing that was spawned runs and nobody waits.

    `is_listening`: wait until it hears what is published; `is_up`: Redis is there at the start.
    """
    tasks = Tasks()
    route = route_for(url, tasks, options)
    troubles: Counter[tuple[str, str]] = Counter()

    def count(operation: str, reason: str) -> None:
        troubles[str(operation), str(reason)] += 1

    envelope = Envelope(keys, max_payload_bytes=max_payload_bytes)
    cache = CacheOnRedis(route, envelope, clock or SystemClock(), count, **{"jitter": lambda: 0.0} | more)
    cache.troubles = troubles
    try:
        try:
            await route.open()
        except RedisFailure:
            assert not is_up
        if is_listening:
            waiters, subscribed = cache._leases.waiters, []
            wake_all = waiters.wake_all
            waiters.wake_all = lambda: subscribed.append(wake_all())  # what it tells is that it hears
            cache.listen(tasks)
            await until_true(lambda: subscribed, "a subscription")
        yield cache
        assert not cache._leases.waiters._of
    finally:
        await cache.close()
        await route.close()
        await tasks.finished()
