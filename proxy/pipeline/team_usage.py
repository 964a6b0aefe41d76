"""What teams used today and this month, out of the ledger: asked for seldom, however often teams ask."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import date

from proxy.core.errors import StoreAway
from proxy.core.registry import Axis, UsageReports, UsageRow
from proxy.core.views.instants import instant_of
from proxy.core.views.me import UsageNowView, spent_view
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, Telemetry

__all__ = ["KEPT_MS", "TeamUsage"]

KEPT_MS = 5_000
"""How long an answer is good for, that of a ledger which is away included."""
_MAX_TEAMS = 1_000
_AT_ONCE = 2
"""Threads that this may take from the requests."""
_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

_Kept = tuple[int, UsageNowView | None]
"""When it was read, on the monotonic clock, and what."""


class TeamUsage:
    """The last answer for each team that asked."""

    def __init__(self, reports: UsageReports, clock: Clock, telemetry: Telemetry) -> None:
        self._reports = reports
        self._clock = clock
        self._telemetry = telemetry
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._reading: SingleFlight[str, UsageNowView | None] = SingleFlight()
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def of(self, team: str) -> UsageNowView | None:
        """Return what the team used; None while the ledger does not answer, which is counted."""
        ms = self._clock.monotonic_ns() // 1_000_000
        kept = self._kept.get(team)
        if kept is not None and ms - kept[0] < KEPT_MS:
            return kept[1]
        return await self._reading.join(team, lambda: self._read(team, ms))

    async def _read(self, team: str, ms: int) -> UsageNowView | None:
        now_ms = self._clock.now_ms()
        today = date.fromordinal(_EPOCH_ORDINAL + now_ms // _DAY_MS)
        month_ms = (today.replace(day=1).toordinal() - _EPOCH_ORDINAL) * _DAY_MS
        found: UsageNowView | None
        try:
            async with self._places:
                rows = await asyncio.to_thread(self._reports.usage, (Axis.DAY,), month_ms, None, team)
            found = _summed(rows, today, now_ms)
        except StoreAway as error:
            self._telemetry.store_failed(error.store, error.operation)
            found = None
        self._kept[team] = (ms, found)
        self._kept.move_to_end(team)
        if len(self._kept) > _MAX_TEAMS:
            self._kept.popitem(last=False)
        return found


def _summed(rows: Sequence[UsageRow], today: date, now_ms: int) -> UsageNowView:
    of_today = [row for row in rows if row.group == (today.isoformat(),)]
    return UsageNowView(as_of=instant_of(now_ms), today=spent_view(of_today), month=spent_view(rows))
