"""Answers in Redis, sealed, for all processes; filled by one of them at a time.

Nothing here raises for what the server does: a server that is away, slow, full or holds garbage means a miss, a right
that keeps nothing, or no waiting, and each is counted.
"""

from __future__ import annotations

import asyncio
import random
from base64 import urlsafe_b64encode
from collections.abc import Callable
from contextlib import suppress

from msgspec.structs import replace

from proxy.adapters.envelope import ON_LOOP_BYTES, Envelope, Flaw, Unopenable
from proxy.adapters.redis.cache_trouble import OnTrouble, Operation, Trouble, trouble_of
from proxy.adapters.redis.fills import FILLED_CHANNEL, LEASE_MS, Lease, Leases
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.route import RedisRoute
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.subscriber import Subscription, subscribe
from proxy.ports import CacheAddress, CachedAnswer, Clock, Spawn

__all__ = ["NothingKept", "RedisCache", "place_of"]

_JITTER = 0.1
"""Part of its life by which an entry may end earlier: those that were made together do not end together."""


def place_of(address: CacheAddress) -> str:
    """The Redis key of an entry: `c:<team>:{<digest in base64url>}`.

    The hash tag is the digest, as a team's name has no braces: a team's entries are spread over a cluster, and an entry
    is where its lease is.
    """
    return f"c:{address.team}:{{{urlsafe_b64encode(address.digest).decode('ascii').rstrip('=')}}}"


class RedisCache:
    """Keeps the promises of `ports.Cache` for every process that has the same Redis and the same master key."""

    def __init__(
        self,
        route: RedisRoute,
        envelope: Envelope,
        clock: Clock,
        on_trouble: OnTrouble,
        *,
        has_room: Callable[[str], bool] = lambda _: True,
        jitter: Callable[[], float] = random.random,
        lease_ms: int = LEASE_MS,
    ) -> None:
        """`has_room`: whether what is stored at a Redis key leaves the server room for others' needs.

        `jitter` is uniform in [0, 1).
        """
        self.envelope = envelope
        self.clock = clock
        self.on_trouble = on_trouble
        self.has_room = has_room
        self.jitter = jitter
        self._route = route
        self._scripts = Scripts(route)
        self._leases = Leases(self._scripts, on_trouble, lease_ms=lease_ms)
        self._subscription: Subscription | None = None

    @property
    def is_away(self) -> bool:
        """Whether any part of it would not be asked now."""
        primaries = self._route.primaries()
        return not primaries or not all(primary.is_up for primary in primaries)

    @property
    def waiting(self) -> int:
        """How many wait for the end of a fill elsewhere."""
        return len(self._leases.waiters)

    def listen(self, spawn: Spawn) -> None:
        """Hear when others have filled; without it whoever waits looks again every few seconds."""
        waiters = self._leases.waiters
        self._subscription = subscribe(
            self._route.locate, FILLED_CHANNEL, waiters.tell, spawn, on_subscribed=waiters.wake_all
        )

    async def load(self) -> None:
        """Make the servers know the scripts: saves the first callers a round trip. Raises `RedisFailure`."""
        await self._scripts.load(self._leases.verbs.all())

    async def close(self) -> None:
        """Hear no more. Idempotent."""
        if self._subscription is not None:
            await self._subscription.close()

    async def get(self, address: CacheAddress) -> CachedAnswer | None:
        """Return the live entry."""
        place = place_of(address)
        try:
            # Not GET: no more is read than an entry can have, whatever somebody has put there.
            sealed = await self._route.execute(place, "GETRANGE", place, 0, self.envelope.max_sealed_bytes)
        except RedisFailure as failure:
            self.on_trouble(Operation.GET, trouble_of(failure))
            return None
        if sealed == b"":
            return None
        try:
            if not isinstance(sealed, bytes):
                raise Unopenable(Flaw.GARBAGE)
            arguments = (place, address.secret, sealed, self.clock.now_ms())
            if self.envelope.weight_bytes(sealed) > ON_LOOP_BYTES:
                return await asyncio.to_thread(self.envelope.open, *arguments)
            return self.envelope.open(*arguments)
        except Unopenable as error:
            self.on_trouble(Operation.GET, error.flaw)
            return None

    async def claim(self, address: CacheAddress) -> RedisFill | NothingKept | None:
        """Give the right to fill an address, to one caller of all processes at a time."""
        try:
            lease = await self._leases.take(place_of(address), address.digest)
        except RedisFailure as failure:
            self.on_trouble(Operation.CLAIM, trouble_of(failure))
            return NothingKept()
        return None if lease is None else RedisFill(self, address, lease)

    async def filled(self, address: CacheAddress, timeout_seconds: float) -> None:
        """Wait until the one who fills this address has stored, let go or died, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                try:
                    await self._leases.ended(place_of(address), address.digest)
                except RedisFailure as failure:
                    self.on_trouble(Operation.FILLED, trouble_of(failure))


class RedisFill:
    """Keeps the promises of `ports.Fill`: its lease is renewed until it is used, given back, or forgotten."""

    __slots__ = ("_address", "_cache", "_lease")

    def __init__(self, cache: RedisCache, address: CacheAddress, lease: Lease) -> None:
        self._cache = cache
        self._address = address
        self._lease: Lease | None = lease

    async def store(self, answer: CachedAnswer) -> bool:
        """Keep the answer, if the right is still ours, and give it back in any case."""
        lease, self._lease = self._lease, None
        if lease is None:
            return False
        is_kept = False
        try:
            is_kept = await self._kept(lease, answer)
        finally:
            # Also when the caller is cancelled: whoever waits need not wait for the end of the lease.
            if is_kept:
                lease.end()
            else:
                lease.give_up()
        return is_kept

    async def release(self) -> None:
        """Give the right back with nothing kept; does not wait for the server."""
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.give_up()

    async def _kept(self, lease: Lease, answer: CachedAnswer) -> bool:
        cache = self._cache
        answer = replace(answer, ttl_ms=answer.ttl_ms - int(answer.ttl_ms * _JITTER * cache.jitter()))
        # As long as it is good for, by the server's measure of time: what is never asked for again leaves by itself.
        life_ms = min(answer.ttl_ms, answer.stored_at_ms + answer.ttl_ms - cache.clock.now_ms())
        if life_ms <= 0:
            return False
        if not cache.has_room(lease.place):
            cache.on_trouble(Operation.STORE, Trouble.OUT_OF_MEMORY)
            return False
        arguments = (lease.place, self._address.secret, answer)
        if len(answer.body) > ON_LOOP_BYTES:
            sealed = await asyncio.to_thread(cache.envelope.seal, *arguments)
        else:
            sealed = cache.envelope.seal(*arguments)
        if sealed is None:
            cache.on_trouble(Operation.STORE, Trouble.TOO_LARGE)
            return False
        try:
            is_ours = await lease.store(sealed, life_ms)
        except RedisFailure as failure:
            cache.on_trouble(Operation.STORE, trouble_of(failure))
            return False
        if not is_ours:
            cache.on_trouble(Operation.STORE, Trouble.LOST)
        return is_ours


class NothingKept:
    """The right that is given while the store is away: whoever has it goes upstream, and nothing is kept."""

    __slots__ = ()

    async def store(self, answer: CachedAnswer) -> bool:  # noqa: ARG002 - there is nowhere to keep it
        """Say that it was not kept."""
        return False

    async def release(self) -> None:
        """Nothing to give back."""
