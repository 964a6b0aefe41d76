"""What a team used, by day and model, for its page."""

from __future__ import annotations

from datetime import date

from proxy.core.overview import Account, account_of, first_day
from proxy.core.registry import Axis, UsageReports
from proxy.pipeline.team_reads import TeamReads
from proxy.ports import Clock, Telemetry

__all__ = ["KEPT_MS", "TeamAccounts"]

KEPT_MS = 3_000
_MAX_TEAMS = 100
_AXES = (Axis.DAY, Axis.MODEL)
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000


class TeamAccounts(TeamReads[Account]):
    """The last account of each team that looked."""

    def __init__(self, reports: UsageReports, clock: Clock, telemetry: Telemetry) -> None:
        def read(team: str, now_ms: int) -> Account:
            since_ms = (first_day(now_ms).toordinal() - _EPOCH_ORDINAL) * _DAY_MS
            return account_of(reports.each_usage(_AXES, since_ms, None, team), _AXES, now_ms)

        super().__init__(read, clock, telemetry, kept_ms=KEPT_MS, max_teams=_MAX_TEAMS)
