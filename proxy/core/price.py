"""What a model costs, and the exact cost of an exchange.

Prices are integer pico-dollars per token, the same digits as micro-dollars per million tokens. Costs are sums of
products of integers: nothing is rounded, and nothing is a float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.core.usage import Usage

__all__ = [
    "LongContext",
    "Price",
    "Rates",
    "ServiceTier",
    "cost_pico_usd",
    "service_tier_of",
    "worst_case",
]


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
    is_free: bool = field(init=False, repr=False, compare=False)
    """Whether no request costs anything, whatever its size and however it is served."""

    def __post_init__(self) -> None:
        sheets = (*self.rates.values(), *(self.long_context.rates.values() if self.long_context else ()))
        is_free = not any(getattr(sheet, kind) for sheet in sheets for kind in Rates.__slots__)
        object.__setattr__(self, "is_free", is_free)

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
    rest, said = usage.input_tokens, usage.output_tokens
    cost = 0
    # Most requests have none of these.
    if usage.cached_input_tokens:
        cached = min(usage.cached_input_tokens, rest)
        rest -= cached
        cost += cached * rates.cached_input
    if usage.cache_write_tokens:
        written = min(usage.cache_write_tokens, rest)
        rest -= written
        cost += written * rates.cache_write
    if usage.audio_input_tokens:
        heard = min(usage.audio_input_tokens, rest)
        rest -= heard
        cost += heard * rates.audio_input
    if usage.audio_output_tokens:
        spoken = min(usage.audio_output_tokens, said)
        said -= spoken
        cost += spoken * rates.audio_output
    return cost + rest * rates.input + said * rates.output


def worst_case(price: Price, input_tokens: int, output_tokens: int, service_tier: str | None = None) -> int:
    """The most that a request within these token counts can cost at this tier, in pico-dollars."""
    tier = service_tier_of(service_tier)
    sheets = [price.rates[tier]]
    if price.long_context and input_tokens > price.long_context.above_input_tokens:
        sheets.append(price.long_context.rates[tier])
    dearest_input = max(max(s.input, s.cached_input, s.cache_write, s.audio_input) for s in sheets)
    dearest_output = max(max(s.output, s.audio_output) for s in sheets)
    return input_tokens * dearest_input + output_tokens * dearest_output
