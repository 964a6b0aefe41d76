"""What an operator is shown, gathered: asked for seldom, however many look."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date

from proxy import __version__
from proxy.core.bucket import Scope, Standing
from proxy.core.budget import Period
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import StoreAway
from proxy.core.overview import Account, Now, Overview, TeamNow, account_of, first_day, levels_of
from proxy.core.principal import Team
from proxy.core.refusals import Refusal
from proxy.core.registry import Axis, UsageReports
from proxy.core.tiers import Tier
from proxy.core.views.budgets import budget_views
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock

__all__ = ["MAX_TEAMS", "Overviews", "Sources"]

MAX_TEAMS = 100
"""Teams whose limits and budgets are shown."""
_LEAST_KEPT_MS = 2_000
_KEPT_TIMES = 10
"""An overview is good for so many times as long as it took: who looks costs the requests a tenth at most."""
_BY_TEAM, _BY_MODEL = (Axis.DAY, Axis.TEAM), (Axis.DAY, Axis.MODEL)
"""Each by itself: the pairs of both would be many times as many rows, all of which go through this process."""
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DAY_MS = 86_400_000

Peek = Callable[[str, Sequence[Scope]], Awaitable[tuple[Standing, ...]]]
Spendings = Mapping[tuple[str, str, Period], int]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where it comes from. What is no coroutine takes its time, and is called on a thread."""

    reports: UsageReports
    teams: Callable[[], Sequence[Team]]
    budgets_spent: Callable[[int], Spendings]
    """By team, key (empty: the team's own) and period, in nano-dollars."""
    now: Callable[[], Now]
    refusals: Callable[[], Sequence[Refusal]]
    peek: Peek
    """As `ports.Limiter.peek`."""
    tiers: Mapping[str, Tier]
    default_tier: str


class Overviews:
    """Gathers overviews, and keeps the last one for a moment."""

    def __init__(self, sources: Sources, clock: Clock) -> None:
        self._sources = sources
        self._clock = clock
        self._kept: tuple[int, Overview] | None = None
        """Until when it is good, on the monotonic clock, and what."""
        self._gathering: SingleFlight[None, Overview] = SingleFlight()

    async def latest(self) -> Overview:
        """What there is to show, a few seconds old at most; parts that do not answer are missing from it."""
        if self._kept is not None and self._ms() < self._kept[0]:
            return self._kept[1]
        return await self._gathering.join(None, self._gather)

    async def _gather(self) -> Overview:
        began_ms, now_ms, sources = self._ms(), self._clock.now_ms(), self._sources
        account = await asyncio.to_thread(self._account, now_ms)
        teams, spent = await asyncio.to_thread(self._teams, now_ms)
        # At the same time: where a store is silent, each waits for its deadline.
        shown = await asyncio.gather(*(self._team(team, spent, now_ms) for team in (teams or ())[:MAX_TEAMS]))
        overview = Overview(
            at_ms=now_ms,
            version=__version__,
            now=await asyncio.to_thread(sources.now),
            account=account,
            teams=None if teams is None else shown,
            more_teams=max(0, len(teams or ()) - MAX_TEAMS),
            refusals=tuple(await asyncio.to_thread(sources.refusals)),
        )
        ms = self._ms()
        self._kept = (ms + max(_LEAST_KEPT_MS, _KEPT_TIMES * (ms - began_ms)), overview)
        return overview

    def _ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000

    def _account(self, now_ms: int) -> Account | None:
        since_ms = (first_day(now_ms).toordinal() - _EPOCH_ORDINAL) * _DAY_MS
        try:
            by_team, by_model = (
                account_of(self._sources.reports.each_usage(axes, since_ms), axes, now_ms)
                for axes in (_BY_TEAM, _BY_MODEL)
            )
        except StoreAway:
            return None
        return replace(by_team, models=by_model.models)

    def _teams(self, now_ms: int) -> tuple[Sequence[Team] | None, Spendings | None]:
        try:
            teams = self._sources.teams()
        except StoreAway:
            return None, None
        if not any(team.budgets for team in teams):
            return teams, {}
        try:
            return teams, self._sources.budgets_spent(now_ms)
        except StoreAway:
            return teams, None

    async def _team(self, team: Team, spent: Spendings | None, now_ms: int) -> TeamNow:
        tiers, default = self._sources.tiers, self._sources.default_tier
        tier = team.tier if team.tier in tiers else default
        scope = Scope(TEAM_SCOPE, tiers[tier].schedule(team.tier_since_ms, now_ms, team.limits), team.max_parallel)
        requests, tokens = levels_of(scope, await self._standing(team.name, scope, now_ms), now_ms)
        return TeamNow(
            name=team.name,
            tier=tier,
            requests=requests,
            tokens=tokens,
            max_parallel=team.max_parallel,
            budgets=tuple(budget_views(team.budgets, now_ms, spent, team.name)),
        )

    async def _standing(self, team: str, scope: Scope, now_ms: int) -> Standing:
        limits = scope.schedule.limits_at(now_ms)
        if limits.requests_per_minute is None and limits.tokens_per_minute is None:
            return Standing()
        (standing,) = await self._sources.peek(team, (scope,))
        return standing
