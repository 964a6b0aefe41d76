"""Whether servers that hold limits as well have memory to spare for answers.

A limiter's Redis must not evict, and one that is full takes no more decisions: answers must never be what fills it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import cast

from proxy.adapters.redis.multiplexer import Multiplexer
from proxy.adapters.redis.outcomes import NeverSent, RedisFailure
from proxy.adapters.redis.route import RedisRoute

__all__ = ["PART_FOR_ANSWERS", "Room"]

PART_FOR_ANSWERS = 0.75
"""Of `maxmemory`; the rest is left to the limits."""
_LOOK_SECONDS = 1.0


class Room:
    """What was last seen of each server's memory."""

    def __init__(self, route: RedisRoute) -> None:
        self._route = route
        self._is_full: dict[Multiplexer, bool] = {}

    def at(self, key: str) -> bool:
        """Whether the server that holds `key` has room, as far as is known."""
        try:
            return not self._is_full.get(self._route.route(key), False)
        except NeverSent:
            return True

    async def look(self) -> None:
        """Ask every server."""
        seen = {}
        for primary in self._route.primaries():
            seen[primary] = self._is_full.get(primary, False)
            with suppress(RedisFailure, ValueError):
                seen[primary] = _is_full(cast("bytes", await primary.execute("INFO", "memory")))
        self._is_full = seen

    async def run(self) -> None:
        """Look every second."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)


def _is_full(info: bytes) -> bool:
    said = dict(line.split(":", 1) for line in info.decode("utf-8", "replace").splitlines() if ":" in line)
    bound_bytes = int(said.get("maxmemory", 0))
    return bound_bytes > 0 and int(said.get("used_memory", 0)) >= PART_FOR_ANSWERS * bound_bytes
