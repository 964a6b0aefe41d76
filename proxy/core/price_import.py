"""Adds new prices to an operator's table without rewriting the past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

from proxy.core.price_table import PICO_PER_UNIT, PriceProblem, PricesInvalid, pico_of

__all__ = ["Rows", "added", "plain", "rows_of"]

Rows = dict[str, list[dict[str, Any]]]
"""By model: rows as they are written down, amounts in whole pico-dollars per token, days as text."""


def rows_of(mapping: Mapping[str, Any], *, start: date | None = None) -> Rows:
    """The rows of a table that `read_table` has understood.

    A row without a day of its own holds from `start`, or, where that is None, from the table's `as_of`.
    """
    scale = PICO_PER_UNIT[mapping.get("unit", "pico_usd_per_token")]
    since = mapping.get("as_of") if start is None else start
    return {
        model: [_plain(row, scale, since) for row in (rows if isinstance(rows, list) else [rows])]
        for model, rows in mapping["models"].items()
    }


def added(installed: Rows, new: Rows, today: date) -> Rows:
    """The installed rows with the new ones among them, each model's in the order of their days.

    A row that is to hold from a day to come takes the place of one from the same day. Raises `PricesInvalid` for a
    row that would hold from a day that is past, or from today beside another: what was charged was charged by that.
    """
    problems = [
        PriceProblem(("models", model, index), _why_not(row, installed.get(model, ()), today))
        for model, rows in new.items()
        for index, row in enumerate(rows)
        if _why_not(row, installed.get(model, ()), today)
    ]
    if problems:
        raise PricesInvalid("\n".join(map(str, problems)), problems)
    merged = dict(installed)
    for model, rows in new.items():
        days = {row["valid_from"] for row in rows}
        kept = [row for row in installed.get(model, ()) if row.get("valid_from") not in days]
        merged[model] = sorted([*kept, *rows], key=lambda row: row.get("valid_from", ""))
    return merged


def plain(rows: Rows) -> dict[str, Any]:
    """The rows as a whole table."""
    return {"unit": "pico_usd_per_token", "models": dict(sorted(rows.items()))}


def _why_not(row: Mapping[str, Any], installed: Any, today: date) -> str:
    since = row["valid_from"]
    if since > today.isoformat() or row in installed:
        return ""
    if since < today.isoformat():
        return f"would hold from {since}, which is past: a price change never rewrites what was charged"
    return (
        "another price holds from today already" if any(each.get("valid_from") == since for each in installed) else ""
    )


def _plain(row: Mapping[str, Any], scale: int, since: date | str | None) -> dict[str, Any]:
    day = row.get("valid_from") or since
    kept = {name: row[name] for name in ("mode", "max_input_tokens", "max_output_tokens") if row.get(name) is not None}
    kept["prices"] = dict(_sheets(row["prices"], scale))
    if long := row.get("long_context"):
        kept["long_context"] = {
            "above_input_tokens": long["above_input_tokens"],
            "prices": dict(_sheets(long["prices"], scale)),
        }
    return kept if day is None else kept | {"valid_from": str(day)}


def _sheets(sheets: Mapping[str, Any], scale: int) -> Iterator[tuple[str, dict[str, int]]]:
    for tier, sheet in sheets.items():
        if sheet is not None:
            yield tier, {kind: pico_of(amount, scale) for kind, amount in sheet.items() if amount is not None}
