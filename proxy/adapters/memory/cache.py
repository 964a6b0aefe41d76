"""Answers in process: least recently used first out, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict

from proxy.ports import CachedAnswer, Clock

__all__ = ["MemoryCache"]


class MemoryCache:
    """Keeps the promises of `ports.Cache` on one process; it cannot be away."""

    def __init__(self, clock: Clock, *, max_bytes: int) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, bytes], CachedAnswer] = OrderedDict()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        """What all entries weigh together; never above the bound."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, team: str, digest: bytes) -> CachedAnswer | None:
        """Return the live entry, and note that it was used."""
        key = (team, digest)
        answer = self._entries.get(key)
        if answer is None:
            return None
        if self._clock.now_ms() >= answer.stored_at_ms + answer.ttl_ms:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return answer

    async def put(self, team: str, digest: bytes, answer: CachedAnswer) -> bool:
        """Keep an answer, making room by dropping the least recently used; one larger than all the room is not kept."""
        if answer.size_bytes > self._max_bytes:
            return False
        key = (team, digest)
        self._drop(key)
        self._entries[key] = answer
        self._size_bytes += answer.size_bytes
        while self._size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return True

    async def purge(self, team: str) -> None:
        """Forget a team's entries."""
        for key in [key for key in self._entries if key[0] == team]:
            self._drop(key)

    def _drop(self, key: tuple[str, bytes]) -> None:
        answer = self._entries.pop(key, None)
        if answer is not None:
            self._size_bytes -= answer.size_bytes
