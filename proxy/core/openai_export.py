"""Reads what OpenAI exports of usage and costs.

JSON: pages of the organization's usage API (`/v1/organization/usage/completions`, `embeddings`, `moderations`) and of
its costs API, grouped by `model` and by `line_item`; several pages, or their buckets, in a list. CSV: the dashboard's
exports, of activity (`start_time`, `model`, `num_model_requests`, `input_tokens`, `output_tokens`,
`input_cached_tokens`) and of cost (`start_time`, `amount_value`, `amount_currency`, `line_item`); `start_time_iso`
serves for `start_time`. Members and columns beside these are passed over.

Source: OpenAI's API specification (`UsageResponse`, `UsageTimeBucket`, `CostsResult`) and the dashboard's own headers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from proxy.core.money import PICO_PER_USD
from proxy.core.reconcile import Entry

__all__ = ["Export", "ExportInvalid", "read_export"]

_DAY_SECONDS = 86_400
_MEASURE_OF: Mapping[str, str] = {
    "num_model_requests": "requests",
    "input_tokens": "input_tokens",
    "input_cached_tokens": "cached_input_tokens",
    "input_cache_write_tokens": "cache_write_tokens",
    "output_tokens": "output_tokens",
    "output_audio_tokens": "audio_output_tokens",
}
_MOST_DIGITS = 40


class ExportInvalid(ValueError):
    """A file that is no export of OpenAI's, or not one that can be compared; the message says where and why."""


@dataclass(slots=True)
class Export:
    """What a file states."""

    entries: list[Entry] = field(default_factory=list)
    days: set[date] = field(default_factory=set)
    """UTC days it covers, with or without an entry."""
    more: bool = False
    """It is a page of several, and the next is not in it."""


def read_export(text: str) -> Export:
    """Read one file. Raises `ExportInvalid`."""
    text = text.removeprefix("\ufeff")
    export = Export()
    if text.lstrip()[:1] in {"{", "["}:
        try:
            value = json.loads(text, parse_float=Decimal, parse_constant=_constant)
        except RecursionError:
            raise ExportInvalid("is nested too deeply") from None
        except ValueError as error:
            raise ExportInvalid(f"is not JSON: {error}") from None
        _read_json(value, export)
    else:
        _read_csv(text, export)
    if not export.days:
        raise ExportInvalid("has no bucket of usage or costs in it")
    return export


def _constant(text: str) -> object:
    raise ValueError(f"{text} is no value")


def _read_json(value: object, export: Export) -> None:
    for each in value if isinstance(value, list) else [value]:
        if isinstance(each, dict) and isinstance(each.get("data"), list):
            export.more = bool(each.get("has_more"))
            buckets = each["data"]
        else:
            buckets = [each]
        for index, bucket in enumerate(buckets):
            _read_bucket(bucket, f"bucket {index + 1}", export)


def _read_bucket(bucket: object, place: str, export: Export) -> None:
    results = bucket.get("results", bucket.get("result")) if isinstance(bucket, dict) else None
    if not isinstance(bucket, dict) or not isinstance(results, list):
        raise ExportInvalid(f"{place}: expected start_time and results")
    day = _day(bucket, place)
    export.days.add(day)
    for number, result in enumerate(results, 1):
        if not isinstance(result, dict):
            raise ExportInvalid(f"{place}, result {number}: expected an object")
        amount = result.get("amount")
        cost = (
            {}
            if not isinstance(amount, dict)
            else {"amount_value": amount.get("value"), "amount_currency": amount.get("currency")}
        )
        export.entries.extend(_entries(result | cost, day, f"{place}, result {number}"))


def _read_csv(text: str, export: Export) -> None:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        columns = {name.strip() for name in reader.fieldnames or ()}
        if columns.isdisjoint({"start_time", "start_time_iso"}):
            raise ExportInvalid("is neither JSON nor CSV with a column start_time")
        if columns.isdisjoint({"amount_value", *_MEASURE_OF}):
            raise ExportInvalid(f"line 1: expected amount_value, or some of {', '.join(_MEASURE_OF)}")
        for record in reader:
            place = f"line {reader.line_num}"
            if None in record or None in record.values():
                raise ExportInvalid(f"{place}: expected {len(columns)} values")
            row = {name.strip(): value.strip() or None for name, value in record.items()}
            day = _day(row, place)
            export.days.add(day)
            export.entries.extend(_entries(row, day, place))
    except csv.Error as error:
        raise ExportInvalid(f"line {reader.reader.line_num}: {error}") from None


def _entries(record: Mapping[str, Any], day: date, place: str) -> Iterator[Entry]:
    """What one record states: of usage, of costs, or, where its members are all empty, nothing."""
    counts = {
        measure: _count(record[name], f"{place}: {name}")
        for name, measure in _MEASURE_OF.items()
        if record.get(name) is not None
    }
    if counts:
        yield Entry(day, _name(record.get("model"), place), counts)
    if record.get("amount_value") is not None:
        currency = record.get("amount_currency")
        if not isinstance(currency, str) or currency.lower() != "usd":
            raise ExportInvalid(f"{place}: amounts are compared in usd, not in {currency}")
        item = _name(record.get("line_item"), place)
        # "gpt-4o-2024-08-06, cached input"
        model = None if item is None else item.partition(", ")[0]
        yield Entry(day, model, {"cost_pico_usd": _number(record["amount_value"], place) * PICO_PER_USD})


def _day(record: Mapping[str, Any], place: str) -> date:
    start, end = (_instant(record, name, place) for name in ("start_time", "end_time"))
    if start is None:
        raise ExportInvalid(f"{place}: expected start_time")
    if end is not None and end - start > timedelta(seconds=_DAY_SECONDS):
        raise ExportInvalid(f"{place}: is wider than a day; ask for bucket_width=1d")
    return start.date()


def _instant(record: Mapping[str, Any], name: str, place: str) -> datetime | None:
    seconds, iso = record.get(name), record.get(f"{name}_iso")
    try:
        if seconds is not None:
            return datetime.fromtimestamp(_count(seconds, f"{place}: {name}"), UTC)
        if isinstance(iso, str):
            told = datetime.fromisoformat(iso)
            return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)
    except (ValueError, OverflowError, OSError):
        raise ExportInvalid(f"{place}: {name} is no time") from None
    return None


def _count(value: object, place: str) -> int:
    """A whole number; in CSV it may be written 3.0."""
    number = _number(value, place)
    if number.denominator != 1 or number < 0:
        raise ExportInvalid(f"{place}: {value} is no count")
    return number.numerator


def _number(value: object, place: str) -> Fraction:
    try:
        if isinstance(value, int | str | Decimal) and not isinstance(value, bool):
            number = Decimal(value)
            if (
                number.is_finite()
                and abs(number.adjusted()) <= _MOST_DIGITS
                and len(number.as_tuple().digits) <= 2 * _MOST_DIGITS
            ):
                return Fraction(number)
    except (InvalidOperation, ValueError):
        pass
    raise ExportInvalid(f"{place}: {str(value)[:40]!r} is no number")


def _name(value: object, place: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ExportInvalid(f"{place}: a name is expected to be text")
    return value
