"""Prices as programs are shown them, in integer pico-dollars per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.core.price import Price, Rates, ServiceTier
from proxy.core.price_table import UNDATED, PriceTable
from proxy.core.pricing import PriceBook

__all__ = ["Listed", "LongContextView", "PriceView", "PricesView", "RatesView", "ShippedView", "listed", "price_day",
           "price_row", "prices_view"]  # fmt: skip


class RatesView(msgspec.Struct, frozen=True, kw_only=True):
    """Pico-dollars per token, by kind: the same digits as micro-dollars per million tokens."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    audio_input: int
    audio_output: int


class LongContextView(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for a whole request when its input is longer."""

    above_input_tokens: int
    pico_usd_per_token: Annotated[dict[str, RatesView], Meta(description="By service tier.")]


class PriceView(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs from a day on."""

    model: str
    price_id: str
    from_: Annotated[str | None, Meta(description="Day (UTC); null: always.")] = msgspec.field(name="from")
    holds: Annotated[bool, Meta(description="Whether it is the row that is charged by.")]
    table: Annotated[str, Meta(description="`shipped`, or `own`: the operator's.")]
    mode: str
    max_input_tokens: int | None
    max_output_tokens: int | None
    pico_usd_per_token: Annotated[dict[str, RatesView], Meta(description="By service tier.")]
    long_context: LongContextView | None


class ShippedView(msgspec.Struct, frozen=True, kw_only=True):
    """The table that ships with the package."""

    as_of: str
    age_days: int | None
    source: str


class PricesView(msgspec.Struct, frozen=True, kw_only=True):
    """What a server that starts now would charge by."""

    shipped: ShippedView
    file: Annotated[str | None, Meta(description="The operator's table, laid over the shipped one.")]
    prices: list[PriceView]


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of a price table, in a list of them."""

    price: Price
    holds: bool
    """At the instant asked for."""
    shipped: bool
    """Or the operator's own."""


def listed(book: PriceBook, shipped: PriceTable, model: str | None, at_ms: int | None, now_ms: int) -> list[Listed]:
    """The rows that hold at `at_ms`, or now; of one `model` and without `at_ms`, every row it has."""
    when_ms = now_ms if at_ms is None else at_ms
    held = [price for name in ([model] if model else book.models()) if (price := book.price(name, when_ms))]
    shown = held if model is None or at_ms is not None else list(book.rows(model))
    ours = frozenset(price.price_id for price in shipped.prices if book.by_id(price.price_id) == price)
    return [Listed(price, price in held, price.price_id in ours) for price in shown]


def prices_view(rows: Sequence[Listed], shipped: PriceTable, file: str | None, today: date) -> PricesView:
    """A list of rows, and where they are from."""
    as_of = shipped.as_of
    table = ShippedView(
        as_of=str(as_of), age_days=None if as_of is None else (today - as_of).days, source=shipped.source
    )
    return PricesView(shipped=table, file=file, prices=[price_row(row) for row in rows])


def price_row(row: Listed) -> PriceView:
    """A row of a list."""
    price, long = row.price, row.price.long_context
    return PriceView(
        model=price.model,
        price_id=price.price_id,
        from_=price_day(price),
        holds=row.holds,
        table="shipped" if row.shipped else "own",
        mode=price.mode,
        max_input_tokens=price.max_input_tokens,
        max_output_tokens=price.max_output_tokens,
        pico_usd_per_token=_rates(price.rates),
        long_context=None
        if long is None
        else LongContextView(above_input_tokens=long.above_input_tokens, pico_usd_per_token=_rates(long.rates)),
    )


def price_day(price: Price) -> str | None:
    """The day a row holds from; None: always."""
    day = price.price_id.rpartition("@")[2]
    return None if day == UNDATED else day


def _rates(rates: Mapping[ServiceTier, Rates]) -> dict[str, RatesView]:
    return {
        tier.value: RatesView(**{kind: getattr(rates[tier], kind) for kind in RatesView.__struct_fields__})
        for tier in ServiceTier
    }
