"""What is spent of the budgets of a team and its keys, out of the ledger: asked for seldom, however often they ask."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping

from proxy.core.budget import Period
from proxy.core.errors import StoreAway
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, Telemetry

__all__ = ["KEPT_MS", "BudgetsSpent"]

KEPT_MS = 5_000
"""How long an answer is good for, that of a ledger which is away included."""
_MAX_TEAMS = 1_000
_AT_ONCE = 2
"""Threads that this may take from the requests."""

Spendings = Mapping[tuple[str, str, Period], int]


class BudgetsSpent:
    """The last answer for each team that asked. `read` is `core.registry.Registry.budgets_spent`."""

    def __init__(self, read: Callable[[int, str | None], Spendings], clock: Clock, telemetry: Telemetry) -> None:
        self._read_ledger = read
        self._clock = clock
        self._telemetry = telemetry
        self._kept: OrderedDict[str, tuple[int, Spendings | None]] = OrderedDict()
        self._reading: SingleFlight[str, Spendings | None] = SingleFlight()
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def of(self, team: str) -> Spendings | None:
        """Return nano-dollars by team, key (empty: the team's own) and period; None while the ledger is away."""
        ms = self._clock.monotonic_ns() // 1_000_000
        kept = self._kept.get(team)
        if kept is not None and ms - kept[0] < KEPT_MS:
            return kept[1]
        return await self._reading.join(team, lambda: self._read(team, ms))

    async def _read(self, team: str, ms: int) -> Spendings | None:
        found: Spendings | None
        try:
            async with self._places:
                found = await asyncio.to_thread(self._read_ledger, self._clock.now_ms(), team)
        except StoreAway as error:
            self._telemetry.store_failed(error.store, error.operation)
            found = None
        self._kept[team] = (ms, found)
        self._kept.move_to_end(team)
        if len(self._kept) > _MAX_TEAMS:
            self._kept.popitem(last=False)
        return found
