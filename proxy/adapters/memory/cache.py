"""Answers in process: least recently used first out, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from proxy.ports import CacheAddress, CachedAnswer, Clock

__all__ = ["MemoryCache"]

_SKEW_MS = 10_000
"""How far a clock may be put back, by whoever keeps it right, with no answer lost."""


class MemoryCache:
    """Keeps the promises of `ports.Cache` for one process; it cannot be away.

    Nobody else fills it, so the right to fill an address is always free: one process tells its own callers apart
    before they come here.
    """

    def __init__(self, clock: Clock, *, max_bytes: int) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: OrderedDict[CacheAddress, CachedAnswer] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What all entries weigh together; never above the bound."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, address: CacheAddress) -> CachedAnswer | None:
        """Return the live entry, and note that it was used."""
        answer = self._entries.get(address)
        if answer is None:
            return None
        # Also one that was kept later than now: since the clock was put back nobody knows how old it is.
        if not answer.stored_at_ms - _SKEW_MS <= self._clock.now_ms() < answer.stored_at_ms + answer.ttl_ms:
            self._drop(address)
            return None
        self._entries.move_to_end(address)
        return answer

    async def claim(self, address: CacheAddress) -> MemoryFill:
        """Give the right to fill an address."""
        return MemoryFill(self, address)

    async def filled(self, address: CacheAddress, timeout_seconds: float) -> None:
        """Return at once: there is no other process to wait for."""

    def keep(self, address: CacheAddress, answer: CachedAnswer) -> bool:
        """Keep an answer, making room by dropping the least recently used; one larger than all the room is not kept."""
        size_bytes = answer.size_bytes
        if size_bytes > self._max_bytes:
            return False
        self._drop(address)
        self._entries[address] = answer
        self._size_bytes += size_bytes
        while self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    def _drop(self, address: CacheAddress) -> None:
        answer = self._entries.pop(address, None)
        if answer is not None:
            self._size_bytes -= answer.size_bytes


class MemoryFill:
    """Keeps the promises of `ports.Fill`: good for one answer."""

    __slots__ = ("_address", "_cache")

    def __init__(self, cache: MemoryCache, address: CacheAddress) -> None:
        self._cache: MemoryCache | None = cache
        self._address = address

    async def store(self, answer: CachedAnswer) -> bool:
        """Keep the answer, unless the right was given back before."""
        cache, self._cache = self._cache, None
        return cache is not None and cache.keep(self._address, answer)

    async def release(self) -> None:
        """Give the right back with nothing kept."""
        self._cache = None
