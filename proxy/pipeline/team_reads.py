"""What teams are shown out of the ledger: read seldom, however often they ask."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from proxy.core.errors import StoreAway
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, Telemetry

__all__ = ["KEPT_MS", "TeamReads"]

V = TypeVar("V")

KEPT_MS = 5_000
"""How long an answer is good for, that of a ledger which is away included."""
_MAX_TEAMS = 1_000
_AT_ONCE = 2
"""Threads that one kind of reading may take from the requests."""


class TeamReads(Generic[V]):
    """The last answer for each team that asked.

    `read` is given the team and the time in Unix milliseconds, runs in a thread, and may raise `StoreAway`.
    """

    def __init__(
        self,
        read: Callable[[str, int], V],
        clock: Clock,
        telemetry: Telemetry,
        *,
        kept_ms: int = KEPT_MS,
        max_teams: int = _MAX_TEAMS,
    ) -> None:
        self._read_ledger = read
        self._clock = clock
        self._telemetry = telemetry
        self._kept_ms = kept_ms
        self._max_teams = max_teams
        self._kept: OrderedDict[str, tuple[int, V | None]] = OrderedDict()
        """When it was read, on the monotonic clock, and what."""
        self._reading: SingleFlight[str, V | None] = SingleFlight()
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def of(self, team: str) -> V | None:
        """Return what there is of the team; None while the ledger does not answer, which is counted."""
        ms = self._clock.monotonic_ns() // 1_000_000
        kept = self._kept.get(team)
        if kept is not None and ms - kept[0] < self._kept_ms:
            return kept[1]
        return await self._reading.join(team, lambda: self._read(team, ms))

    async def _read(self, team: str, ms: int) -> V | None:
        found: V | None
        try:
            async with self._places:
                found = await asyncio.to_thread(self._read_ledger, team, self._clock.now_ms())
        except StoreAway as error:
            self._telemetry.store_failed(error.store, error.operation)
            found = None
        self._kept[team] = (ms, found)
        self._kept.move_to_end(team)
        if len(self._kept) > self._max_teams:
            self._kept.popitem(last=False)
        return found
