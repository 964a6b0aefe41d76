"""What teams used today and this month, out of the ledger."""

from __future__ import annotations

from datetime import date

from proxy.core.registry import Axis, UsageReports
from proxy.core.views.instants import instant_of
from proxy.core.views.me import UsageNowView, spent_view
from proxy.pipeline.team_reads import TeamReads
from proxy.ports import Clock, Telemetry

__all__ = ["TeamUsage"]

_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()


class TeamUsage(TeamReads[UsageNowView]):
    """The last answer for each team that asked."""

    def __init__(self, reports: UsageReports, clock: Clock, telemetry: Telemetry) -> None:
        def read(team: str, now_ms: int) -> UsageNowView:
            today = date.fromordinal(_EPOCH_ORDINAL + now_ms // _DAY_MS)
            month_ms = (today.replace(day=1).toordinal() - _EPOCH_ORDINAL) * _DAY_MS
            rows = reports.usage((Axis.DAY,), month_ms, None, team)
            of_today = [row for row in rows if row.group == (today.isoformat(),)]
            return UsageNowView(as_of=instant_of(now_ms), today=spent_view(of_today), month=spent_view(rows))

        super().__init__(read, clock, telemetry)
