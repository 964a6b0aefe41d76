"""Tells people of budgets: a warning that was reached, once for all processes and restarts, and where budgets stand."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from proxy.adapters.prometheus import Metrics
from proxy.adapters.webhook import Webhook
from proxy.core.budget import Budget, Cap, Period, minute_of
from proxy.core.caps import BudgetReached, period_of, usd_of
from proxy.core.errors import StoreAway
from proxy.core.views.instants import instant_of
from proxy.ports import Clock, Spawn, SpendLedger

__all__ = ["BudgetAlerts", "BudgetNotice", "watch_budgets"]

_LOOK_SECONDS = 60.0
_SHOWN_WITHOUT_SPEND = 500
"""Teams that are shown though they have spent nothing yet: of more teams, those are shown that have."""
_log = logging.getLogger(__name__)


class ToldWarnings(Protocol):
    """Remembers which warnings somebody was told of."""

    async def first(self, reached: BudgetReached) -> bool:
        """Note a warning; False where it was noted before. Raises `StoreAway`."""
        ...


class TeamBudgets(Protocol):
    """Budgets as the registry has them."""

    def team_names(self, limit: int) -> Iterable[str]:
        """Names of teams, the first so many. Raises `StoreAway`."""
        ...

    def team_budgets(self) -> Mapping[str, Sequence[Budget]]:
        """The budgets of every team that has one of its own. Raises `StoreAway`."""
        ...

    def budgets_spent(self, at_ms: int, team: str | None = None) -> Mapping[tuple[str, str, Period], int]:
        """What was spent, by team, key (empty: the team's own) and period. Raises `StoreAway`."""
        ...

    def spent_by_team(self, at_ms: int) -> Mapping[tuple[str, Period], int]:
        """Pico-dollars by team and period (day and month) of whoever spent any. Raises `StoreAway`."""
        ...


class BudgetNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook is sent: one JSON object. Amounts are dollars as text, and the same in nano-dollars."""

    id: str
    """The same for the same warning, whoever sends it, however often."""
    event: str = "budget.warning"
    team: str
    key_id: str | None
    """Null: the budget is the team's own."""
    period: str
    span: str
    """`2026-11-21`, `2026-11` or `total`; days and months are those of UTC."""
    warn_usd: str
    warn_nano_usd: int
    limit_usd: str | None
    limit_nano_usd: int | None
    spent_usd: str | None
    """In the ledger by then: what is under way comes on top. Null: the ledger did not answer."""
    spent_nano_usd: int | None
    at: str


class BudgetAlerts:
    """Hears of warnings on the request path and does the telling beside it."""

    def __init__(
        self,
        told: ToldWarnings,
        ledger: SpendLedger,
        metrics: Metrics,
        clock: Clock,
        spawn: Spawn,
        webhook: Webhook | None = None,
    ) -> None:
        self._told = told
        self._ledger = ledger
        self._metrics = metrics
        self._clock = clock
        self._spawn = spawn
        self._webhook = webhook

    def reached(self, reached: BudgetReached) -> None:
        """Tell of a warning, soon, unless somebody was told of it before."""
        self._spawn(self._tell(reached))

    async def _tell(self, reached: BudgetReached) -> None:
        try:
            if not await self._told.first(reached):
                return
        except StoreAway as error:
            # Rather twice than never.
            self._metrics.store_failed(error.store, error.operation)
        cap, period = reached.cap, period_of(reached.cap.span)
        spent = await self._spent(reached.team, cap)
        _log.warning(
            "%s has reached the warning of its budget: %s of %s USD in %s",
            f"key {reached.key_id} of team {reached.team}" if reached.key_id else f"team {reached.team}",
            usd_of(cap.warn_nano_usd or 0),
            "no limit of" if cap.limit_nano_usd is None else usd_of(cap.limit_nano_usd),
            cap.span.id,
        )
        self._metrics.budgets.warned(reached.team, period.value)
        if self._webhook is not None:
            self._webhook.send(msgspec.json.encode(_notice(reached, spent)))

    async def _spent(self, team: str, cap: Cap) -> int | None:
        try:
            found = await self._ledger.spent(team, cap.scope, cap.span, minute_of(self._clock.now_ms()))
        except StoreAway as error:
            self._metrics.store_failed(error.store, error.operation)
            return None
        return found.base_nano_usd + sum(found.minutes.values())


def _notice(reached: BudgetReached, spent_nano_usd: int | None) -> BudgetNotice:
    cap = reached.cap
    warn = cap.warn_nano_usd or 0
    name = f"{reached.team}/{cap.name}/{warn}"
    return BudgetNotice(
        id=f"evt_{hashlib.sha256(name.encode()).hexdigest()[:32]}",
        team=reached.team,
        key_id=reached.key_id or None,
        period=period_of(cap.span).value,
        span=cap.span.id,
        warn_usd=usd_of(warn),
        warn_nano_usd=warn,
        limit_usd=None if cap.limit_nano_usd is None else usd_of(cap.limit_nano_usd),
        limit_nano_usd=cap.limit_nano_usd,
        spent_usd=None if spent_nano_usd is None else usd_of(spent_nano_usd),
        spent_nano_usd=spent_nano_usd,
        at=f"{instant_of(reached.at_ms):%Y-%m-%dT%H:%M:%SZ}",
    )


def watch_budgets(
    registry: TeamBudgets, metrics: Metrics, clock: Clock, sleep: Callable[[float], Coroutine[Any, Any, None]]
) -> Callable[[], Coroutine[Any, Any, None]]:
    """A chore that shows once a minute what teams have spent and where their budgets stand, as the ledger has it."""

    async def watch() -> None:
        while True:
            try:
                await asyncio.to_thread(_show, registry, metrics, clock.now_ms())
            except StoreAway as error:
                metrics.store_failed(error.store, error.operation)
            await sleep(_LOOK_SECONDS)

    return watch


def _show(registry: TeamBudgets, metrics: Metrics, at_ms: int) -> None:
    # A period that has just begun is shown to be one of nothing.
    names = registry.team_names(_SHOWN_WITHOUT_SPEND)
    nothing = {(name, period): 0 for name in names for period in (Period.DAY, Period.MONTH)}
    by_team = nothing | dict(registry.spent_by_team(at_ms))
    metrics.budgets.show_spend({(team, period.value): amount for (team, period), amount in by_team.items()})
    held = {
        (team, budget.period): budget.limit_nano_usd for team, own in registry.team_budgets().items() for budget in own
    }
    spent = registry.budgets_spent(at_ms) if held else {}
    metrics.budgets.show(
        {(team, period.value): (limit, spent.get((team, "", period), 0)) for (team, period), limit in held.items()}
    )
