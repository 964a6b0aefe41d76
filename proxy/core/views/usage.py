"""Usage as programs are shown it: exact amounts, in dollars as text and in pico-dollars as integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.registry import Axis, UsageRow

__all__ = ["CacheUsageView", "UsageView", "cache_usage_view", "usage_cells", "usage_header", "usage_view"]

Usd = Annotated[str, Meta(description="Dollars, exact: twelve decimal places.", examples=["0.004217500000"])]

_TOKENS = ("input_tokens", "cached_input_tokens", "output_tokens", "reasoning_tokens")
_MEASURES = ("requests", "cached", "estimated", *_TOKENS, "saved_input_tokens", "saved_output_tokens")


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """One group of a usage report: a member for each axis that was asked for, then what was used."""

    day: str | UnsetType = UNSET
    team: str | UnsetType = UNSET
    key: Annotated[str, Meta(description="Id of the key.")] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    upstream: str | UnsetType = UNSET
    endpoint: str | UnsetType = UNSET
    requests: int
    cached: Annotated[int, Meta(description="Answered from the cache.")]
    estimated: Annotated[int, Meta(description="Whose token counts are ours, not upstream's.")]
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    saved_input_tokens: int
    saved_output_tokens: int
    cost_usd: Usd
    saved_usd: Usd


class CacheUsageView(msgspec.Struct, frozen=True, kw_only=True):
    """What answers from the cache saved a team, of one model."""

    team: str
    model: str
    requests: int
    cached: int
    cached_percent: float
    saved_input_tokens: int
    saved_output_tokens: int
    saved_usd: Usd


def usage_header(by: Sequence[Axis]) -> tuple[str, ...]:
    """The columns of a report."""
    return (*(axis.value for axis in by), *_MEASURES, "cost_usd", "saved_usd")


def usage_cells(row: UsageRow, digits: int = PICO_DIGITS) -> tuple[str | int, ...]:
    """A row under that header, amounts in dollars with `digits` decimal places."""
    counts = (row.requests, row.cached, row.estimated)
    used = tuple(getattr(row.usage, name) for name in _TOKENS)
    saved = (row.saved_input_tokens, row.saved_output_tokens)
    money = (format_usd(row.cost_pico_usd, digits), format_usd(row.saved_pico_usd, digits))
    return (*row.group, *counts, *used, *saved, *money)


def usage_view(by: Sequence[Axis], row: UsageRow) -> UsageView:
    """A row of a report."""
    return msgspec.convert(dict(zip(usage_header(by), usage_cells(row), strict=True)), UsageView)


def cache_usage_view(row: UsageRow) -> CacheUsageView:
    """A row of a report by team and model, as what the cache saved."""
    team, model = row.group
    return CacheUsageView(
        team=team,
        model=model,
        requests=row.requests,
        cached=row.cached,
        cached_percent=round(100 * row.cached / row.requests, 1) if row.requests else 0.0,
        saved_input_tokens=row.saved_input_tokens,
        saved_output_tokens=row.saved_output_tokens,
        saved_usd=format_usd(row.saved_pico_usd, PICO_DIGITS),
    )
