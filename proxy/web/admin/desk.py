"""What the operations of the admin API work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from proxy.core.books import Books
from proxy.core.budget import Period
from proxy.core.cache_store import CacheStore
from proxy.core.names import checked_tier
from proxy.core.principal import KeyRecord, Team
from proxy.core.registry import BadValue, IssuedKey, Registry, UsageReports
from proxy.core.tiers import Tier
from proxy.core.views.keys import IssuedKeyView, KeyView, issued_view, key_view
from proxy.core.views.prices import PricesView
from proxy.core.views.teams import TeamView, team_view
from proxy.ports import Clock

__all__ = ["Desk", "ImportedPrices", "Pricing", "Spendings"]

Spendings = Mapping[tuple[str, str, Period], int]
"""Nano-dollars by team, key (empty: the team's own) and period."""


@dataclass(frozen=True, slots=True)
class ImportedPrices:
    """What an import of prices has changed."""

    file: str
    start: date
    models: tuple[str, ...]
    passed_over: tuple[str, ...]


class Pricing(Protocol):
    """The prices of the settings. Its methods may take a while: they read files."""

    def list_prices(self, model: str | None, day: date | None) -> PricesView:
        """Prices of a day, today's without; of one `model` alone, and without a day, every row it has.

        Raises `BadValue` for a model without a price, `PricesInvalid`.
        """
        ...

    def import_prices(self, content: str, form: str, start: date | None) -> ImportedPrices:
        """Add the rows of a table (`form`: json, toml, csv) to the operator's, from `start` on, or from tomorrow.

        Raises `PricesInvalid`, `OSError`, `StoreAway`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """What every operation is given; used from several threads at a time."""

    registry: Callable[[], AbstractContextManager[Registry]]
    """A registry for one request; workers are told of what it changed when the block is left."""
    reports: UsageReports
    books: Callable[[], AbstractContextManager[Books]]
    pricing: Pricing
    look_at_cache: Callable[[], CacheStore | None]
    """None: nothing is kept."""
    tiers: Mapping[str, Tier]
    default_tier: str
    clock: Clock
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other names of models, which nothing goes by that is set or kept."""

    def require_tier(self, field: str, tier: str) -> str:
        """The tier's name itself. Raises `BadValue` for one that neither the documentation nor the settings have."""
        checked_tier(field, tier)
        if tier not in self.tiers:
            raise BadValue(field, f"no tier is named {tier}; there are {', '.join(self.tiers)}")
        return tier

    def require_own_name(self, named: str, model: str) -> None:
        """Raises `BadValue` for an alias of a model."""
        if model in self.aliases:
            raise BadValue(named, f"{model} is an alias of {self.aliases[model]}: name that")

    def team(self, team: Team, spent: Spendings | None = None) -> TeamView:
        """A team as it is shown now; what it spent of its budgets is read, unless it is given."""
        if spent is None and team.budgets:
            spent = self.spent(team.name)
        return team_view(team, self.tiers, self.clock.now_ms(), spent)

    def key(self, record: KeyRecord, spent: Spendings | None = None) -> KeyView:
        """A key as it is shown now, likewise."""
        if spent is None and record.budgets:
            spent = self.spent(record.team)
        return key_view(record, self.clock.now_ms(), spent)

    def spent(self, team: str | None = None) -> Spendings:
        """What is spent of every budget of a team, or at all."""
        with self.registry() as registry:
            return registry.budgets_spent(self.clock.now_ms(), team)

    def issued(self, issued: IssuedKey) -> IssuedKeyView:
        """A key as it is shown once."""
        return issued_view(issued, self.clock.now_ms())
