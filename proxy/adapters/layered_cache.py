"""Answers at hand for a few seconds, in front of a cache that takes a round trip."""

from __future__ import annotations

from collections import OrderedDict

from proxy.ports import Cache, CacheAddress, CachedAnswer, Clock, Fill

__all__ = ["LayeredCache"]


class LayeredCache:
    """Keeps the promises of `ports.Cache` with those of the cache behind it.

    What is at hand may be as old as `front_seconds` where another process has stored anew since. A purge makes it
    unreachable here as it does there, because it changes the address.
    """

    def __init__(self, behind: Cache, clock: Clock, *, front_seconds: float, max_bytes: int) -> None:
        self._behind = behind
        self._clock = clock
        self._front_ns = int(front_seconds * 1e9)
        self._max_bytes = max_bytes
        # All are at hand for the same time, so the order of arrival is that of departure.
        self._front: OrderedDict[CacheAddress, tuple[int, CachedAnswer]] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What the answers at hand weigh together; never above the bound."""
        return self._size_bytes

    async def get(self, address: CacheAddress) -> CachedAnswer | None:
        """Return the live entry, from here if it is at hand."""
        self._drop_old()
        _, answer = self._front.get(address, (0, None))
        if answer is not None:
            if self._clock.now_ms() < answer.stored_at_ms + answer.ttl_ms:
                return answer
            self._drop(address)
        answer = await self._behind.get(address)
        if answer is not None:
            self.note(address, answer)
        return answer

    async def claim(self, address: CacheAddress) -> Fill | None:
        """Give the right to fill an address, as the cache behind does."""
        fill = await self._behind.claim(address)
        return None if fill is None else LayeredFill(self, address, fill)

    async def filled(self, address: CacheAddress, timeout_seconds: float) -> None:
        """Wait as the cache behind does."""
        await self._behind.filled(address, timeout_seconds)

    def note(self, address: CacheAddress, answer: CachedAnswer) -> None:
        """Have an answer at hand, making room by dropping those that came first."""
        self._drop(address)
        if answer.size_bytes > self._max_bytes:
            return
        self._front[address] = (self._clock.monotonic_ns() + self._front_ns, answer)
        self._size_bytes += answer.size_bytes
        while self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._front)))

    def _drop_old(self) -> None:
        now_ns = self._clock.monotonic_ns()
        while self._front and next(iter(self._front.values()))[0] <= now_ns:
            self._drop(next(iter(self._front)))

    def _drop(self, address: CacheAddress) -> None:
        _, answer = self._front.pop(address, (0, None))
        if answer is not None:
            self._size_bytes -= answer.size_bytes


class LayeredFill:
    """Keeps the promises of `ports.Fill`; what was kept behind is at hand here as well."""

    __slots__ = ("_address", "_cache", "_fill")

    def __init__(self, cache: LayeredCache, address: CacheAddress, fill: Fill) -> None:
        self._cache = cache
        self._address = address
        self._fill = fill

    async def store(self, answer: CachedAnswer) -> bool:
        """Keep the answer behind, and at hand if that was done."""
        is_kept = await self._fill.store(answer)
        if is_kept:
            self._cache.note(self._address, answer)
        return is_kept

    async def release(self) -> None:
        """Give the right back with nothing kept."""
        await self._fill.release()
