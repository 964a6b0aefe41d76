"""Limits shared in Redis: the limiter, its policy for when Redis is away, and what is wrong with that Redis.

Loaded only where the settings name a Redis.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from proxy.adapters.prometheus import Metrics
from proxy.adapters.redis.bucket_state import bucket_key
from proxy.adapters.redis.budget_parts import BudgetParts
from proxy.adapters.redis.fallback import LIMITER_STORE, Closed, Fallback
from proxy.adapters.redis.limiter import LOOK_SECONDS, RedisLimiter
from proxy.adapters.redis.membership import Membership
from proxy.adapters.redis.multiplexer import Multiplexer, MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.policies import Open
from proxy.adapters.redis.route import Facts, RedisRoute
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.share import Share
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.adapters.spent import SpentReader
from proxy.app.background import in_background
from proxy.core.breaker import BreakerPolicy
from proxy.core.bucket import Scope, Standing
from proxy.core.decision import TEAM_SCOPE
from proxy.ports import Clock, Spawn
from proxy.settings import Settings, WhenRedisIsAway

__all__ = ["SharedLimits", "called", "open_peek", "probe", "redis_warnings", "server_warnings", "shared_limits"]

_OLDEST_REDIS = (6, 2)
_PATIENCE_SECONDS = 3.0
_CALM_MS = 500
_SLACK_MS = 400
"""Beside the pause between two looks at the store and a command's deadline, before a worker counts on the others."""
# A worker is back within seconds of another: `core.share.LATER_MS` counts on it.
_CONNECT_SECONDS = 1.0
_BREAKER = BreakerPolicy(max_rest_ms=1_000)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """The limiter of many processes, and what goes on beside it."""

    limiter: RedisLimiter
    route: RedisRoute
    chores: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
    """To be run as long as the limiter: they tell others that we are alive, and what we have under way."""
    sample: Callable[[], None]
    """Reads the counters that nobody counts up by itself."""
    workers: Callable[[], int]
    """How many are alive, as last seen; no fewer than the settings declare."""


async def shared_limits(
    settings: Settings,
    url: str,
    clock: Clock,
    metrics: Metrics,
    spawn: Spawn,
    stack: AsyncExitStack,
    reader: SpentReader | None = None,
) -> SharedLimits:
    """Connect and load the scripts. A Redis that is away at the start is as good as one that goes away later.

    Without a `reader` no budget that refuses can be held.
    """
    bounds = Bounds(deadline_seconds=settings.limits.redis_deadline_ms / 1_000)
    options = MultiplexerOptions(
        bounds, _BREAKER, connect_seconds=_CONNECT_SECONDS, max_backoff_seconds=_CONNECT_SECONDS
    )
    route = route_for(url, spawn, options)
    stack.push_async_callback(route.close)
    scripts = Scripts(route)
    presence = _Presence(metrics, _away(settings), clock)
    # Two containers may share a host's name and number their processes alike.
    worker = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    declared = settings.server.workers * settings.server.replicas
    membership = Membership(scripts, worker, declared, metrics.store_failed, presence)
    shares = _away(settings) is WhenRedisIsAway.SHARE
    limiter = RedisLimiter(
        scripts,
        clock,
        _policy(settings, clock, membership, scripts, metrics),
        metrics.store_failed,
        presence=presence,
        worker=worker,
        reader=reader,
        parts=_budget_parts(clock, membership, scripts) if shares else None,
    )
    # In a turn of its own: the answer that shows the return was given before the store is told, and is noted first.
    presence.on_return = partial(asyncio.get_running_loop().call_soon, limiter.tell_all)
    try:
        await route.open()
        # Before anything is written: a replica that refuses a write is hung up on.
        for warning in redis_warnings(await route.facts()):
            _log.warning("%s", warning)
        await limiter.load()
        await membership.beat()
    except RedisFailure:
        presence.silent()
    sample = partial(_sample, metrics, limiter, route, Counter(), WeakKeyDictionary())
    chores = (membership.run, limiter.watch, limiter.renew, limiter.budgets.run)
    return SharedLimits(limiter, route, chores, sample, lambda: membership.part.workers)


async def open_peek(
    settings: Settings, url: str, clock: Clock, spawn: Spawn, stack: AsyncExitStack
) -> Callable[[str, Sequence[Scope]], Coroutine[Any, Any, tuple[Standing, ...]]]:
    """Look at shared limits without being one of those who hold them; nothing is known while Redis is away."""
    bounds = Bounds(deadline_seconds=settings.limits.redis_deadline_ms / 1_000)
    options = MultiplexerOptions(
        bounds, _BREAKER, connect_seconds=_CONNECT_SECONDS, max_backoff_seconds=_CONNECT_SECONDS
    )
    route = route_for(url, spawn, options)
    stack.push_async_callback(route.close)
    limiter = RedisLimiter(Scripts(route), clock, Closed(), lambda *_: None)
    with suppress(RedisFailure):
        await route.open()
    return limiter.peek


def _budget_parts(clock: Clock, membership: Membership, scripts: Scripts) -> BudgetParts:
    return BudgetParts(clock, lambda: membership.part, lambda team: scripts.away(bucket_key(team, TEAM_SCOPE)))


def probe(url: str, warnings: Callable[[tuple[Facts, ...]], list[str]] | None = None) -> list[str]:
    """Look at a Redis once and say what is wrong with it. Raises `TimeoutError` when it does not answer.

    `warnings` says it; absent: as of a Redis that limits are kept in.
    """

    async def look() -> list[str]:
        async with asyncio.timeout(_PATIENCE_SECONDS), in_background() as spawn:
            route = route_for(url, spawn, MultiplexerOptions.for_one_look(_PATIENCE_SECONDS))
            try:
                await route.open()
                return (warnings or redis_warnings)(await route.facts())
            finally:
                await route.close()

    try:
        return asyncio.run(look())
    except RedisFailure as failure:
        raise TimeoutError from failure


class _Presence:
    """Whether Redis is there, told to the log and the metric when it changes.

    Part of a cluster may be away, or every other answer late: it is back when none was missing for a while.
    """

    def __init__(self, metrics: Metrics, policy: WhenRedisIsAway, clock: Clock) -> None:
        self._gauge = metrics.degraded.labels(LIMITER_STORE)
        self._policy = policy
        self._clock = clock
        self._away = False
        self._silent_ns = 0
        self._gauge.set(0)
        self.on_return: Callable[[], object] = lambda: None

    def answered(self) -> None:
        if self._away and self._clock.monotonic_ns() - self._silent_ns >= _CALM_MS * 1_000_000:
            self._away = False
            self._gauge.set(0)
            _log.warning("Redis answers again")
            self.on_return()

    def silent(self) -> None:
        self._silent_ns = self._clock.monotonic_ns()
        if not self._away:
            self._away = True
            self._gauge.set(1)
            _log.warning("Redis does not answer; limits are held by the policy %r", self._policy.value)


def redis_warnings(facts: tuple[Facts, ...]) -> list[str]:
    """Say what is wrong with the Redis that limits are kept in, a sentence for each server and fault."""
    said = []
    for fact in facts:
        if fact.evicts:
            policy = fact.maxmemory_policy
            said.append(f"{called(fact)} throws keys away when memory is short ({policy}): set noeviction")
        said += server_warnings(fact)
    return said


def server_warnings(fact: Facts) -> list[str]:
    """Say what is wrong with a server whatever is kept in it."""
    said = []
    if fact.role not in {"", "master"}:
        said.append(f"{called(fact)} is a replica and takes no writes: name its primary, or use redis+sentinel://")
    if fact.server == "redis" and _version(fact.version) < _OLDEST_REDIS:
        said.append(f"{called(fact)} is too old: 6.2 or newer is needed")
    return said


def called(fact: Facts) -> str:
    """What people call a server."""
    return f"{fact.server} {fact.version} at {fact.address}"


def _sample(
    metrics: Metrics,
    limiter: RedisLimiter,
    route: RedisRoute,
    counted: Counter[str],
    counted_of: WeakKeyDictionary[Multiplexer, Counter[str]],
) -> None:
    """Count what has been added since the last time; `counted` and `counted_of` keep what was there then."""
    for name, metric, figure in (
        ("buckets", metrics.limiter_lost_buckets_total, limiter.lost_buckets),
        ("debts", metrics.limiter_forgotten_debts_total, limiter.forgotten_debts),
    ):
        metric.inc(figure - counted[name])
        counted[name] = figure
    for primary in route.primaries():
        counts, before = primary.counts, counted_of.setdefault(primary, Counter())
        figures = {
            "connected": counts.connections,
            "disconnected": counts.disconnects,
            "timed_out": counts.timed_out,
            "post_answered": counts.posted,
            "post_refused": counts.posts_refused,
            "post_unknown": counts.posts_lost,
        }
        for event, figure in figures.items():
            metrics.store_events_total.labels(LIMITER_STORE, event).inc(figure - before[event])
        counted_of[primary] = Counter(figures)


def _policy(settings: Settings, clock: Clock, membership: Membership, scripts: Scripts, metrics: Metrics) -> Fallback:
    policy = _away(settings)
    decided = metrics.degraded_decisions_total.labels(LIMITER_STORE, policy.value).inc
    match policy:
        case WhenRedisIsAway.SHARE:
            return Share(
                clock,
                lambda: membership.part,
                decided,
                away=lambda team: scripts.away(bucket_key(team, TEAM_SCOPE)),
                notice_ms=int(LOOK_SECONDS * 1_000) + settings.limits.redis_deadline_ms + _SLACK_MS,
            )
        case WhenRedisIsAway.OPEN:
            return Open(decided)
        case WhenRedisIsAway.CLOSED:
            return Closed()


def _away(settings: Settings) -> WhenRedisIsAway:
    return settings.limits.when_redis_is_away


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
