"""Which workers are alive: heartbeats in a sorted set, by the store's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from proxy.adapters.redis.fallback import LIMITER_STORE, Presence
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.scripts import Scripts, packaged_script
from proxy.core.share import Part

__all__ = ["BEAT_SECONDS", "GONE_MS", "Membership"]

BEAT_SECONDS = 1.0
GONE_MS = 5_000
"""A worker that has not been heard of for this long has no part; five beats, so that one lost reply is no death."""
_BEATS_TO_WAIT = int(GONE_MS / 1_000 / BEAT_SECONDS) + 1
_KEY = "tollgate:workers"


class Membership:
    """This worker's place among those alive, as last seen.

    `part` starts as the smallest one of as many as the settings declare: a store that was never reached must not make
    the parts add up to more than the limit.
    """

    def __init__(
        self,
        scripts: Scripts,
        worker: str,
        declared_workers: int,
        store_failed: Callable[[str, str], None],
        presence: Presence,
    ) -> None:
        """`presence` hears of it here too: it may be a while until somebody asks for a decision."""
        self.part = Part(rank=declared_workers - 1, workers=declared_workers)
        self._scripts = scripts
        self._worker = worker
        self._declared_workers = declared_workers
        self._store_failed = store_failed
        self._presence = presence
        self._beat = packaged_script("heartbeat")
        self._alive: list[str] = []
        self._beats_to_wait = 0

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    async def beat(self) -> None:
        """Say that we are alive and see who else is; what was seen last holds while the store is away."""
        try:
            reply = await self._scripts.run(self._beat, [_KEY], [self._worker, GONE_MS])
        except RedisFailure:
            self._store_failed(LIMITER_STORE, "heartbeat")
            self._presence.silent()
            # Those who come back later than we do still count with us.
            self._beats_to_wait = _BEATS_TO_WAIT
            return
        self._presence.answered()
        alive = [name.decode() for name in cast("list[bytes]", reply)]
        # Fewer than are declared are starting, or were cut off as we may be next: their parts stay theirs.
        workers = max(len(alive), self._declared_workers)
        self._beats_to_wait = max(0, self._beats_to_wait - 1)
        if alive != self._alive and not (self._beats_to_wait and workers < self.part.workers):
            self._alive = alive
            self.part = Part(alive.index(self._worker), workers, self.part.changes + 1)
