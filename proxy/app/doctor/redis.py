"""Whether the Redis of limits and that of answers are there and fit for it.

Loaded only where the settings name one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent, RedisFailure
from proxy.adapters.redis.route import Facts
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.app import caching, limiting
from proxy.app.background import in_background
from proxy.core.checkup import Finding, clock_finding, fail, okay, warn
from proxy.settings import Settings

__all__ = ["look_at_redis"]

_PATIENCE_SECONDS = 5.0
_DEADLINE_SECONDS = 2.0
_TRIES = 5


async def look_at_redis(settings: Settings) -> list[Finding]:
    """Look at both, or at the one that is both."""
    found = []
    if settings.redis_url is not None:
        url, deadline_ms = settings.redis_url.reveal(), settings.limits.redis_deadline_ms
        away = "until then limits are held as limits.when_redis_is_away says"
        found += await _look_at("redis", url, limiting.redis_warnings, deadline_ms, away)
    told = caching.advice(settings)
    found += [warn("cache", warning, "see README, Answers in Redis") for warning in told.warnings]
    found += [okay("cache", note) for note in told.notes]
    if settings.cache_redis_url is not None and settings.cache.enabled and not told.notes:
        url, deadline_ms = settings.cache_redis_url.reveal(), settings.cache.redis_deadline_ms
        away = "until then nothing is answered from the cache"
        found += await _look_at("cache_redis", url, caching.cache_warnings, deadline_ms, away)
    return found


async def _look_at(
    check: str, url: str, warnings: Callable[[tuple[Facts, ...]], list[str]], deadline_ms: int, away: str
) -> list[Finding]:
    options = MultiplexerOptions(Bounds(deadline_seconds=_DEADLINE_SECONDS))
    clock = SystemClock()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS), in_background() as spawn:
            route = route_for(url, spawn, options)
            try:
                await route.open()
                facts = await route.facts()
                quickest_ms, ahead_ms = 1e9, 0.0
                for _ in range(_TRIES):
                    begun_ns, before_ms = clock.monotonic_ns(), clock.now_ms()
                    said = cast("list[bytes]", await route.primaries()[0].execute("TIME"))
                    took_ms = (clock.monotonic_ns() - begun_ns) / 1e6
                    if took_ms < quickest_ms:
                        quickest_ms = took_ms
                        ahead_ms = before_ms + took_ms / 2 - (int(said[0]) * 1_000 + int(said[1]) / 1_000)
            finally:
                await route.close()
    except (RedisFailure, TimeoutError) as failure:
        return [_away(check, failure, away)]
    return [
        *_judged(check, facts, warnings, quickest_ms, deadline_ms),
        clock_finding(f"{check}.clock", _called(facts), ahead_ms, quickest_ms / 2 + 1),
    ]


def _called(facts: tuple[Facts, ...]) -> str:
    """What people call a deployment: its first server, and how many more there are."""
    more = f" and {len(facts) - 1} more" if len(facts) > 1 else ""
    return f"{limiting.called(facts[0])}{more}"


def _judged(
    check: str,
    facts: tuple[Facts, ...],
    warnings: Callable[[tuple[Facts, ...]], list[str]],
    way_ms: float,
    deadline_ms: int,
) -> list[Finding]:
    found = []
    for said in warnings(facts):
        # What is wrong, and behind the colon what to do.
        what, _, remedy = said.rpartition(": ")
        useless = "takes no writes" in said or "too old" in said
        found.append((fail if useless else warn)(check, what, remedy))
    if way_ms > deadline_ms / 2:
        found.append(
            warn(
                check,
                f"the way to {_called(facts)} and back takes {way_ms:.1f} ms of the {deadline_ms} ms allowed",
                "put it nearer, or raise redis_deadline_ms",
            )
        )
    return found or [okay(check, f"{_called(facts)} answers in {way_ms:.1f} ms and is fit")]


def _away(check: str, failure: RedisFailure | TimeoutError, away: str) -> Finding:
    name, found = ("cache_redis_url", warn) if check == "cache_redis" else ("redis_url", fail)
    if isinstance(failure, ErrorReply):
        return found(check, f"it refuses us ({failure})", f"see to user, password and rights in {name}; {away}")
    where = failure.where if isinstance(failure, NeverSent) and failure.where else "no answer in time"
    return found(check, f"it cannot be reached: {where}", f"see that it runs and that {name} leads to it; {away}")
