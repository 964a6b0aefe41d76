"""What is spent of the budgets of a team and its keys, out of the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxy.core.budget import Period
from proxy.pipeline.team_reads import TeamReads
from proxy.ports import Clock, Telemetry

__all__ = ["BudgetsSpent"]

Spendings = Mapping[tuple[str, str, Period], int]
"""Nano-dollars by team, key (empty: the team's own) and period."""


class BudgetsSpent(TeamReads[Spendings]):
    """The last answer for each team that asked. `read` is `core.registry.Registry.budgets_spent`."""

    def __init__(self, read: Callable[[int, str | None], Spendings], clock: Clock, telemetry: Telemetry) -> None:
        super().__init__(lambda team, now_ms: read(now_ms, team), clock, telemetry)
