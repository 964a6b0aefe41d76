"""What a team used, by day and model, for its page: asked for seldom, however often it looks."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from datetime import date

from proxy.core.errors import StoreAway
from proxy.core.overview import Account, account_of, first_day
from proxy.core.registry import Axis, UsageReports
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, Telemetry

__all__ = ["KEPT_MS", "TeamAccounts"]

KEPT_MS = 3_000
"""How long an answer is good for, that of a ledger which is away included."""
_MAX_TEAMS = 100
_AT_ONCE = 2
"""Threads that this may take from the requests."""
_AXES = (Axis.DAY, Axis.MODEL)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000


class TeamAccounts:
    """The last answer for each team that looked."""

    def __init__(self, reports: UsageReports, clock: Clock, telemetry: Telemetry) -> None:
        self._reports = reports
        self._clock = clock
        self._telemetry = telemetry
        self._kept: OrderedDict[str, tuple[int, Account | None]] = OrderedDict()
        self._reading: SingleFlight[str, Account | None] = SingleFlight()
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def of(self, team: str) -> Account | None:
        """Return what the team used; None while the ledger does not answer, which is counted."""
        ms = self._clock.monotonic_ns() // 1_000_000
        kept = self._kept.get(team)
        if kept is not None and ms - kept[0] < KEPT_MS:
            return kept[1]
        return await self._reading.join(team, lambda: self._read(team, ms))

    async def _read(self, team: str, ms: int) -> Account | None:
        now_ms = self._clock.now_ms()
        found: Account | None
        try:
            async with self._places:
                found = await asyncio.to_thread(self._account, team, now_ms)
        except StoreAway as error:
            self._telemetry.store_failed(error.store, error.operation)
            found = None
        self._kept[team] = (ms, found)
        self._kept.move_to_end(team)
        if len(self._kept) > _MAX_TEAMS:
            self._kept.popitem(last=False)
        return found

    def _account(self, team: str, now_ms: int) -> Account:
        since_ms = (first_day(now_ms).toordinal() - _EPOCH_ORDINAL) * _DAY_MS
        return account_of(self._reports.each_usage(_AXES, since_ms, None, team), _AXES, now_ms)
