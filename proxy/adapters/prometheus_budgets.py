"""Metrics of budgets; with `prometheus.py` the only module that knows prometheus_client."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge  # noqa: TID251 - a part of their one home

from proxy.core.money import PICO_PER_USD

__all__ = ["BudgetMetrics"]

_NANO = 1_000_000_000


class BudgetMetrics:
    """What teams have spent, where their budgets stand, and what became of warnings."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.unpriced_requests_total = Counter(
            "tollgate_unpriced_requests_total",
            "Requests for a model without a price; where a budget refused them, those too.",
            ("model",),
            registry=on,
        )
        self.limit_usd = Gauge(
            "tollgate_budget_limit_usd",
            "What a team may spend in a day, a month or in total; +Inf where a budget only warns, NaN once it is gone.",
            ("team", "period"),
            multiprocess_mode="mostrecent",
            registry=on,
        )
        self.spent_usd = Gauge(
            "tollgate_budget_spent_usd",
            "What a team has spent in the span of a budget, as the ledger has it.",
            ("team", "period"),
            multiprocess_mode="mostrecent",
            registry=on,
        )
        self.ledger_spend_usd = Gauge(
            "tollgate_ledger_spend_usd",
            "What a team has spent in this day and in this month (UTC), as the ledger has it.",
            ("team", "period"),
            multiprocess_mode="mostrecent",
            registry=on,
        )
        self.warnings_total = Counter(
            "tollgate_budget_warnings_total",
            "Warnings of budgets that were reached, of a team or of a key of it.",
            ("team", "period"),
            registry=on,
        )
        self.notices_total = Counter(
            "tollgate_budget_notices_total",
            "Tries to deliver a warning to the webhook, delivered or failed; lost: warnings that were given up.",
            ("result",),
            registry=on,
        )
        for result in ("delivered", "failed", "lost"):
            self.notices_total.labels(result)
        self._shown: frozenset[tuple[str, str]] = frozenset()
        self._spent: dict[tuple[str, str], int] = {}

    def show(self, budgets: Mapping[tuple[str, str], tuple[int | None, int]]) -> None:
        """Show the limit (None: it only warns) and what is spent, in nano-dollars, of every budget by team and period.

        Several processes share their files, from which nothing can be taken: what is no more is no number.
        """
        for gone in self._shown - budgets.keys():
            self.limit_usd.labels(*gone).set(math.nan)
            self.spent_usd.labels(*gone).set(math.nan)
        for (team, period), (limit, spent) in budgets.items():
            self.limit_usd.labels(team, period).set(math.inf if limit is None else limit / _NANO)
            self.spent_usd.labels(team, period).set(spent / _NANO)
            self.warnings_total.labels(team, period)
        self._shown = frozenset(budgets)

    def show_spend(self, pico_usd: dict[tuple[str, str], int]) -> None:
        """Show what the ledger has, in pico-dollars, by team and period: nothing, where it has no more what it had."""
        now = dict.fromkeys(self._spent, 0) | pico_usd
        for (team, period), amount in now.items() - self._spent.items():
            self.ledger_spend_usd.labels(team, period).set(amount / PICO_PER_USD)
        self._spent = now

    def warned(self, team: str, period: str) -> None:
        """Count a warning."""
        self.warnings_total.labels(team, period).inc()

    def notice_sent(self, result: str) -> None:
        """Count what became of a try to deliver a warning."""
        self.notices_total.labels(result).inc()
