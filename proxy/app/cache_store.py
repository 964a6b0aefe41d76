"""What the servers that keep answers say of themselves, asked once by a command."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from proxy.core.cache_store import CacheServer, CacheStore
from proxy.settings import Settings, missing_for_cache

__all__ = ["look_at_cache"]

_PATIENCE_SECONDS = 2.0


def look_at_cache(settings: Settings) -> CacheStore | None:
    """Say where answers are kept, asking Redis where it is Redis; None where nothing is kept."""
    if not settings.cache.enabled:
        return None
    if settings.cache_redis_url is None and settings.redis_url is None:
        return CacheStore(in_redis=False, max_bytes=settings.cache.max_bytes)
    # Without Redis none of it is loaded.
    from proxy.app.caching import cache_url  # noqa: PLC0415 - as said

    url = None if missing_for_cache() else cache_url(settings)
    servers = () if url is None else _asked(url)
    return CacheStore(in_redis=url is not None, max_bytes=settings.cache.max_bytes, servers=servers)


def _asked(url: str) -> tuple[CacheServer, ...] | None:
    from proxy.adapters.redis.outcomes import RedisFailure  # noqa: PLC0415 - as said

    with suppress(TimeoutError, RedisFailure):
        return asyncio.run(_ask(url))
    return None


async def _ask(url: str) -> tuple[CacheServer, ...]:
    from proxy.adapters.redis.multiplexer import MultiplexerOptions  # noqa: PLC0415 - as said
    from proxy.adapters.redis.topology import route_for  # noqa: PLC0415 - as said
    from proxy.app.background import in_background  # noqa: PLC0415 - as said

    async with asyncio.timeout(_PATIENCE_SECONDS), in_background() as spawn:
        route = route_for(url, spawn, MultiplexerOptions.for_one_look(_PATIENCE_SECONDS))
        try:
            await route.open()
            facts = await route.facts()
        finally:
            await route.close()
    return tuple(
        CacheServer(
            address=fact.address,
            used_bytes=fact.used_memory_bytes,
            max_bytes=fact.maxmemory_bytes,
            policy=fact.maxmemory_policy,
            evicted_keys=fact.evicted_keys,
        )
        for fact in facts
    )
