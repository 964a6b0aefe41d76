"""From a URL to what stands behind it."""

from __future__ import annotations

from proxy.adapters.redis.address import parse_redis_url
from proxy.adapters.redis.cluster import Cluster
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.route import RedisRoute
from proxy.adapters.redis.sentinel import SentinelPrimary, Sentinels
from proxy.adapters.redis.single import OnePrimary, stays_at
from proxy.ports import Spawn

__all__ = ["route_for"]


def route_for(url: str, spawn: Spawn, options: MultiplexerOptions | None = None) -> RedisRoute:
    """Make the route a URL asks for (forms: `parse_redis_url`); not opened yet. Raises `BadRedisUrl`."""
    parsed = parse_redis_url(url)
    if parsed.topology == "cluster":
        return Cluster(parsed.addresses, spawn, options)
    if parsed.topology == "sentinel":
        sentinels = Sentinels(parsed.addresses, parsed.master, parsed.primary)
        return SentinelPrimary(sentinels, spawn, options)
    return OnePrimary(stays_at(parsed.addresses[0]), spawn, options)
