"""Answers shared in Redis: the cache of many processes, its keys, and what is wrong with that Redis.

Loaded only where the settings name a Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from proxy.adapters.cache_key_file import load_or_create_cache_keys
from proxy.adapters.cache_keys import MasterKeys, read_master_keys
from proxy.adapters.layered_cache import LayeredCache
from proxy.adapters.prometheus import Metrics
from proxy.adapters.redis.address import parse_redis_url
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.room import Room
from proxy.adapters.redis.route import Facts
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.app import limiting
from proxy.ports import Cache, Clock, Spawn
from proxy.settings import INSTALL_SERVER, Settings, missing_for_cache

__all__ = ["CACHE_STORE", "Advice", "SharedCache", "advice", "cache_url", "cache_warnings", "probe", "shared_cache"]

CACHE_STORE = "cache"
_BESIDE_THE_BODY_BYTES = 65_536
"""Of an entry's payload: headers, names, figures."""
_QUEUED_BYTES = 8 * 2**20
_KNOWN_FAILURES = (
    *(("get", reason) for reason in ("away", "timeout", "tag", "unknown_key", "version", "garbage", "too_large")),
    *((operation, reason) for operation in ("claim", "store", "filled") for reason in ("away", "timeout")),
    ("store", "lost"),
    ("store", "out_of_memory"),
)
"""What may well happen; what else does is counted all the same."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedCache:
    """The cache of many processes, and what goes on beside it."""

    cache: Cache
    chores: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
    sample: Callable[[], None]
    """Reads the gauges that nobody sets by itself."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What can be said of the settings of a cache in Redis without asking it."""

    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def cache_url(settings: Settings) -> str | None:
    """The Redis that answers are to be kept in; None: each worker keeps its own."""
    url = settings.cache_redis_url or settings.redis_url
    return url.reveal() if url is not None and settings.cache.enabled else None


def advice(settings: Settings) -> Advice:
    """Look at the settings of a cache in Redis."""
    if cache_url(settings) is None:
        return Advice()
    if missing := missing_for_cache():
        needed = f"a cache in Redis needs {' and '.join(missing)}: {INSTALL_SERVER}"
        return Advice((f"each worker keeps answers of its own, because {needed}",))
    warnings, notes = [], []
    if settings.cache.key is None and settings.server.replicas > 1:
        warnings.append(
            "each machine makes a master key of its own and cannot open what another has sealed: give all of them "
            "the same TOLLGATE_CACHE_KEY, or cache.key_file"
        )
    if _shares_with_limits(settings):
        notes.append(
            "limits and answers share one Redis: it must not throw limits away, so answers are kept in at most three "
            "quarters of its maxmemory; cache_redis_url gives them a Redis of their own"
        )
    return Advice(tuple(warnings), tuple(notes))


async def shared_cache(
    settings: Settings, clock: Clock, metrics: Metrics, spawn: Spawn, stack: AsyncExitStack
) -> SharedCache | None:
    """Connect and listen; None where no cache in Redis is wanted, or packages that it needs are missing.

    A Redis that is away at the start is no matter. Raises `SecretsInvalid` and `OSError` for the file of its keys.
    """
    url = cache_url(settings)
    told = advice(settings)
    for warning in told.warnings:
        _log.warning("%s", warning)
    for note in told.notes:
        _log.info("%s", note)
    if url is None or missing_for_cache():
        return None
    # Here, because they need packages that the base installation does not have.
    from proxy.adapters.envelope import Envelope  # noqa: PLC0415 - as said
    from proxy.adapters.redis.cache import RedisCache  # noqa: PLC0415 - as said

    # A connection of its own, so that nothing that goes wrong here is held against the limiter's.
    route = route_for(url, spawn, _options(settings))
    stack.push_async_callback(route.close)
    envelope = Envelope(_keys(settings), max_payload_bytes=settings.cache.entry_max_bytes + _BESIDE_THE_BODY_BYTES)
    room = Room(route) if _shares_with_limits(settings) else None
    metrics.prepare_cache_failures(_KNOWN_FAILURES)
    cache = RedisCache(route, envelope, clock, metrics.cache_failed, has_room=_always if room is None else room.at)
    stack.push_async_callback(cache.close)
    try:
        await route.open()
        if room is None:
            for warning in cache_warnings(await route.facts()):
                _log.warning("%s", warning)
        else:
            await room.look()
        await cache.load()
    except RedisFailure:
        # Told by the first sample.
        pass
    cache.listen(spawn)
    presence = _Presence(metrics, lambda: cache.is_away)
    chores = () if room is None else (room.run,)
    if not settings.cache.l1_seconds:
        return SharedCache(cache, chores, presence.look)
    front = LayeredCache(cache, clock, front_seconds=settings.cache.l1_seconds, max_bytes=settings.cache.max_bytes)

    def sample() -> None:
        presence.look()
        metrics.cache_bytes.set(front.size_bytes)

    return SharedCache(front, chores, sample)


def probe(settings: Settings) -> list[str]:
    """Look once at a Redis that holds answers alone, and say what is wrong with it.

    Raises `TimeoutError` when it does not answer.
    """
    url = cache_url(settings)
    if url is None or _shares_with_limits(settings):
        return []
    return limiting.probe(url, cache_warnings)


def cache_warnings(facts: tuple[Facts, ...]) -> list[str]:
    """Say what is wrong with a Redis that answers alone are kept in, a sentence for each server and fault."""
    said = []
    for fact in facts:
        who = limiting.called(fact)
        if not fact.maxmemory_bytes:
            said.append(f"{who} holds answers without a bound: set maxmemory, and maxmemory-policy allkeys-lru")
        elif fact.maxmemory_policy == "noeviction":
            said.append(f"{who} refuses answers when memory is short (noeviction): set maxmemory-policy allkeys-lru")
        elif fact.maxmemory_policy == "volatile-ttl":
            said.append(f"{who} throws away what fills are held by first (volatile-ttl): set allkeys-lru")
        said += limiting.server_warnings(fact)
    return said


class _Presence:
    """Whether the cache's Redis is there, told to the log and the metric when it changes."""

    def __init__(self, metrics: Metrics, is_away: Callable[[], bool]) -> None:
        self._gauge = metrics.degraded.labels(CACHE_STORE)
        self._is_away = is_away
        self._was_away = False
        self._gauge.set(0)

    def look(self) -> None:
        is_away = self._is_away()
        if is_away is not self._was_away:
            self._was_away = is_away
            self._gauge.set(int(is_away))
            _log.warning("Redis of the cache %s", "does not answer: nothing is a hit" if is_away else "answers again")


def _always(_: str) -> bool:
    return True


def _options(settings: Settings) -> MultiplexerOptions:
    cache = settings.cache
    # Room for several of the largest entries, whole.
    queued_bytes = max(_QUEUED_BYTES, 4 * (cache.entry_max_bytes + _BESIDE_THE_BODY_BYTES))
    return MultiplexerOptions(
        bounds=Bounds(deadline_seconds=cache.redis_deadline_ms / 1_000, max_queued_bytes=queued_bytes)
    )


def _keys(settings: Settings) -> MasterKeys:
    key = settings.cache.key
    return load_or_create_cache_keys(settings.data_dir) if key is None else read_master_keys(key.reveal())


def _shares_with_limits(settings: Settings) -> bool:
    """Whether answers are kept by a server that keeps limits."""
    if settings.redis_url is None:
        return False
    if settings.cache_redis_url is None:
        return True
    ours, theirs = (
        {(each.host, each.port, each.path) for each in parse_redis_url(url.reveal()).addresses}
        for url in (settings.cache_redis_url, settings.redis_url)
    )
    return not ours.isdisjoint(theirs)
