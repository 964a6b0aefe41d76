"""Which price holds when, and what becomes of a model that has none.

A row holds from its date on, so that a price change never rewrites the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from proxy.core.price import (
    LongContext,
    Price,
    Rates,
    ServiceTier,
    cost_pico_usd,
    service_tier_of,
    worst_case,
)
from proxy.core.price_table import UNDATED, PricesInvalid, read_table

__all__ = [
    "LongContext",
    "Price",
    "PriceBook",
    "PricesInvalid",
    "Rates",
    "ServiceTier",
    "Unpriced",
    "cost_pico_usd",
    "may_go_unpriced",
    "service_tier_of",
    "worst_case",
]


class Unpriced(StrEnum):
    """What becomes of a request of a team with a budget for a model without a price."""

    REFUSE = "refuse"
    ALLOW = "allow"
    """It passes, and costs the budget nothing."""


def may_go_unpriced(policy: Unpriced, *, has_budget: bool) -> bool:
    """Whether a request whose model has no price may be sent: a budget cannot count what it does not know the cost of.

    Without a budget there is nothing to overspend.
    """
    return policy is Unpriced.ALLOW or not has_budget


class PriceBook:
    """Every price row, by model and by id; never changes once made.

    `former`: rows that no longer hold at any time, found by their id alone.
    """

    __slots__ = ("_by_id", "_by_model")

    def __init__(self, prices: Iterable[Price], former: Iterable[Price] = ()) -> None:
        self._by_id = {row.price_id: row for row in former}
        by_model: dict[str, list[Price]] = {}
        for row in sorted(prices, key=lambda price: -price.valid_from_ms):
            self._by_id[row.price_id] = row
            by_model.setdefault(row.model, []).append(row)
        self._by_model = {model: tuple(rows) for model, rows in by_model.items()}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> PriceBook:
        """The book of one decoded price table; raises `PricesInvalid`."""
        return cls(read_table(mapping).prices)

    def price(self, model: str, at_ms: int) -> Price | None:
        """The row that holds at `at_ms` (unix milliseconds), None for a model without a price.

        Before the first date the oldest row holds.
        """
        rows = self._by_model.get(model)
        if rows is None:
            return None
        for row in rows:
            if row.valid_from_ms <= at_ms:
                return row
        return rows[-1]

    def rows(self, model: str) -> tuple[Price, ...]:
        """Every row of a model, the latest first."""
        return self._by_model.get(model, ())

    def by_id(self, price_id: str | None) -> Price | None:
        """The row with this id, whether it still holds or not."""
        return self._by_id.get(price_id) if price_id is not None else None

    def with_overrides(self, mapping: Mapping[str, object]) -> PriceBook:
        """This book with an operator's decoded table laid over it; raises `PricesInvalid`."""
        return self.overlaid(read_table(mapping).prices)

    def overlaid(self, own: Iterable[Price]) -> PriceBook:
        """This book with an operator's rows laid over it.

        From the day of a model's first row on they alone hold, whatever rows this book has; before it, this book's.
        A row without a date holds always.
        """
        first: dict[str, int] = {}
        own = tuple(own)
        for row in own:
            since_ms = -1 if row.price_id.endswith(f"@{UNDATED}") else row.valid_from_ms
            first[row.model] = min(first.get(row.model, since_ms), since_ms)
        mine = [row for rows in self._by_model.values() for row in rows]
        kept = [row for row in mine if row.model not in first or row.valid_from_ms < first[row.model]]
        return PriceBook((*kept, *own), former=self._by_id.values())

    def newest_ms(self, at_ms: int) -> int:
        """When the newest row in force at an instant began to hold, in Unix milliseconds; 0 where none is dated."""
        begun = (row.valid_from_ms for rows in self._by_model.values() for row in rows if row.valid_from_ms <= at_ms)
        return max(begun, default=0)

    def models(self) -> tuple[str, ...]:
        """Every model with a price, sorted."""
        return tuple(sorted(self._by_model))
