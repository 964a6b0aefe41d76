"""Price rows with dates, and the exact cost of an exchange.

Prices are integer pico-dollars per token, the same digits as micro-dollars per million tokens. A row holds from its
date on, so that a price change never rewrites the past.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import Literal, get_args

import msgspec

from proxy.core.usage import Usage

__all__ = [
    "LongContext",
    "Price",
    "PriceBook",
    "PricesInvalid",
    "Rates",
    "ServiceTier",
    "cost_pico_usd",
    "service_tier_of",
    "worst_case",
]

_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

Unit = Literal["pico_usd_per_token", "usd_per_million_tokens"]
_PICO_PER_UNIT: Mapping[str, int] = dict(zip(get_args(Unit), (1, 10**6), strict=True))


class PricesInvalid(ValueError):
    """A price table that cannot be read; the message names the model and the field."""


class ServiceTier(StrEnum):
    """How upstream served a request; each has prices of its own."""

    DEFAULT = "default"
    FLEX = "flex"
    PRIORITY = "priority"
    BATCH = "batch"


def service_tier_of(name: str | None) -> ServiceTier:
    """The tier upstream named in its answer; `auto`, none and unknown ones have the default's prices."""
    return _TIERS.get(name or "", ServiceTier.DEFAULT)


_TIERS: Mapping[str, ServiceTier] = {
    **{tier.value: tier for tier in ServiceTier},
    # Another name for it in requests (the API's specification, `service_tier`).
    "fast": ServiceTier.PRIORITY,
}


@dataclass(frozen=True, slots=True)
class Rates:
    """Pico-dollars per token, by kind. Reasoning tokens are output and have no price of their own."""

    input: int
    cached_input: int
    cache_write: int
    output: int
    audio_input: int
    audio_output: int


@dataclass(frozen=True, slots=True)
class LongContext:
    """Rates of a whole request whose input is larger than `above_input_tokens`."""

    above_input_tokens: int
    rates: Mapping[ServiceTier, Rates]


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs from one date on."""

    price_id: str
    """`<model>@<date>`: the name under which the ledger refers to this row."""
    model: str
    mode: str
    """`chat`, `responses`, `completion`, `embedding`, `moderation`..."""
    valid_from_ms: int
    max_input_tokens: int | None
    max_output_tokens: int | None
    rates: Mapping[ServiceTier, Rates]
    """Every tier is present: one without prices of its own has the default's."""
    long_context: LongContext | None = None

    def rates_for(self, input_tokens: int, service_tier: str | None) -> Rates:
        """The rates of a request with this many input tokens, served at this tier."""
        tier = service_tier_of(service_tier)
        long = self.long_context
        return long.rates[tier] if long and input_tokens > long.above_input_tokens else self.rates[tier]


def cost_pico_usd(price: Price, usage: Usage, service_tier: str | None = None) -> int:
    """Exact cost in pico-dollars.

    Cached, cache-write and audio tokens are taken out of the input, audio out of the output; parts that claim more
    tokens than the whole are cut to it, so that a cost is never negative.
    """
    rates = price.rates_for(usage.input_tokens, service_tier)
    rest = usage.input_tokens
    cached = min(usage.cached_input_tokens, rest)
    rest -= cached
    written = min(usage.cache_write_tokens, rest)
    rest -= written
    heard = min(usage.audio_input_tokens, rest)
    rest -= heard
    spoken = min(usage.audio_output_tokens, usage.output_tokens)
    return (
        rest * rates.input
        + cached * rates.cached_input
        + written * rates.cache_write
        + heard * rates.audio_input
        + (usage.output_tokens - spoken) * rates.output
        + spoken * rates.audio_output
    )


def worst_case(price: Price, input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int:
    """The most that a request within these token counts can cost at this tier, in pico-dollars."""
    tier = service_tier_of(service_tier)
    sheets = [price.rates[tier]]
    if price.long_context and input_tokens > price.long_context.above_input_tokens:
        sheets.append(price.long_context.rates[tier])
    dearest_input = max(max(s.input, s.cached_input, s.cache_write, s.audio_input) for s in sheets)
    dearest_output = max(max(s.output, s.audio_output) for s in sheets)
    return input_tokens * dearest_input + output_tokens * dearest_output


class PriceBook:
    """Every price row, by model and by id; never changes once made."""

    __slots__ = ("_by_id", "_by_model")

    def __init__(self, prices: Iterable[Price]) -> None:
        self._by_id: dict[str, Price] = {}
        self._by_model: dict[str, list[Price]] = {}
        for row in sorted(prices, key=lambda p: -p.valid_from_ms):
            self._by_id[row.price_id] = row
            self._by_model.setdefault(row.model, []).append(row)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, object]) -> PriceBook:
        """The book a decoded price file describes; raises `PricesInvalid`.

        `models` maps a name to a row or a list of rows. A row has `prices` (service tier -> kind -> price; `default`
        needs `input` and `output`) and may have `mode`, `max_input_tokens`, `max_output_tokens`, `long_context`
        (`above_input_tokens`, `prices`) and `valid_from` (`YYYY-MM-DD`, else the file's `as_of`). `unit` is
        `pico_usd_per_token` or `usd_per_million_tokens`.
        """
        return cls(price for rows in _read(mapping).values() for price in rows)

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

    def by_id(self, price_id: str | None) -> Price | None:
        """The row with this id."""
        return self._by_id.get(price_id) if price_id is not None else None

    def with_overrides(self, mapping: Mapping[str, object]) -> PriceBook:
        """This book with an operator's file laid over it; raises `PricesInvalid`.

        A row with a date is added, and replaces one of the same date; a row without a date replaces every row of its
        model.
        """
        models = {model: {row.price_id: row for row in rows} for model, rows in self._by_model.items()}
        for model, rows in _read(mapping).items():
            if any(row.valid_from_ms == 0 for row in rows):
                models[model] = {}
            models.setdefault(model, {}).update((row.price_id, row) for row in rows)
        return PriceBook(row for rows in models.values() for row in rows.values())

    def models(self) -> tuple[str, ...]:
        """Every model with a price, sorted."""
        return tuple(sorted(self._by_model))


class _Sheet(msgspec.Struct, forbid_unknown_fields=True):
    input: Decimal | None = None
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    output: Decimal | None = None
    audio_input: Decimal | None = None
    audio_output: Decimal | None = None


class _LongContext(msgspec.Struct, forbid_unknown_fields=True):
    above_input_tokens: int
    prices: dict[ServiceTier, _Sheet]


class _Row(msgspec.Struct, forbid_unknown_fields=True):
    prices: dict[ServiceTier, _Sheet]
    mode: str = "chat"
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    long_context: _LongContext | None = None
    valid_from: date | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    models: dict[str, _Row | list[_Row]]
    as_of: date | None = None
    source: str = ""
    unit: Unit = "pico_usd_per_token"


_BASE_KIND: Mapping[str, str] = {
    "cached_input": "input",
    "cache_write": "input",
    "audio_input": "input",
    "audio_output": "output",
}
_KINDS = tuple(field.name for field in fields(Rates))


def _read(mapping: Mapping[str, object]) -> dict[str, list[Price]]:
    try:
        file = msgspec.convert(mapping, _File)
    except msgspec.ValidationError as error:
        raise PricesInvalid(str(error)) from None
    scale = _PICO_PER_UNIT[file.unit]
    return {
        model: [_price(model, row, file.as_of, scale) for row in (rows if isinstance(rows, list) else [rows])]
        for model, rows in file.models.items()
    }


def _price(model: str, row: _Row, as_of: date | None, scale: int) -> Price:
    since = row.valid_from or as_of
    long = row.long_context
    return Price(
        price_id=f"{model}@{since.isoformat() if since else 'undated'}",
        model=model,
        mode=row.mode,
        valid_from_ms=max(0, since.toordinal() - _EPOCH_ORDINAL) * _DAY_MS if since else 0,
        max_input_tokens=row.max_input_tokens,
        max_output_tokens=row.max_output_tokens,
        rates=_resolve(model, row.prices, scale),
        long_context=LongContext(long.above_input_tokens, _resolve(model, long.prices, scale)) if long else None,
    )


def _resolve(model: str, sheets: Mapping[ServiceTier, _Sheet], scale: int) -> dict[ServiceTier, Rates]:
    """Fill the gaps: a kind without a price has its base kind's of the same tier, then what the default has."""
    default = sheets.get(ServiceTier.DEFAULT)
    if default is None or default.input is None or default.output is None:
        raise PricesInvalid(f"{model}: prices.default needs input and output")
    whole = {tier: _scaled(model, sheet, scale) for tier, sheet in sheets.items()}
    base = whole[ServiceTier.DEFAULT]
    resolved = {}
    for tier in ServiceTier:
        own = whole.get(tier, base)
        resolved[tier] = Rates(**{kind: _first(kind, own, base) for kind in _KINDS})
    return resolved


def _first(kind: str, own: Mapping[str, int], base: Mapping[str, int]) -> int:
    root = _BASE_KIND.get(kind, kind)
    return next(sheet[name] for sheet in (own, base) for name in (kind, root) if name in sheet)


def _scaled(model: str, sheet: _Sheet, scale: int) -> dict[str, int]:
    rates = {}
    for kind in _KINDS:
        price: Decimal | None = getattr(sheet, kind)
        if price is None:
            continue
        pico = price * scale
        if not pico.is_finite() or pico < 0 or pico != int(pico):
            raise PricesInvalid(f"{model}: {kind} is not a whole number of pico-dollars per token: {price}")
        rates[kind] = int(pico)
    return rates
