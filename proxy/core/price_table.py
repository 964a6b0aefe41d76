"""Reads a price table, strictly: what is not understood is refused, and every mistake is named at once.

A table has `models` (name -> a row, or a list of rows with dates of their own) and may have `as_of`, `source` and
`unit`. A row has `prices` (service tier -> kind -> amount; the tier `default` needs `input` and `output`) and may have
`mode`, `max_input_tokens`, `max_output_tokens`, `long_context` (`above_input_tokens`, `prices`) and `valid_from`
(`YYYY-MM-DD`, else the table's `as_of`, else the row holds always). `unit` is `pico_usd_per_token`, which is the
default, or `usd_per_million_tokens`. Amounts are integers, decimals or text, never binary fractions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

from proxy.core.price import LongContext, Price, Rates, ServiceTier

__all__ = ["KINDS", "PICO_PER_UNIT", "UNDATED", "Path", "PriceProblem", "PriceTable", "PricesInvalid", "day_ms",
           "pico_of", "read_table"]  # fmt: skip

Path = tuple[str | int, ...]

KINDS = tuple(field.name for field in fields(Rates))
PICO_PER_UNIT: Mapping[str, int] = {"pico_usd_per_token": 1, "usd_per_million_tokens": 10**6}
UNDATED = "undated"
"""Stands in a price id for the date of a row that holds always."""

_BASE_KIND: Mapping[str, str] = {
    "cached_input": "input",
    "cache_write": "input",
    "audio_input": "input",
    "audio_output": "output",
}
_TABLE_FIELDS = ("models", "as_of", "source", "unit")
_ROW_FIELDS = ("prices", "mode", "max_input_tokens", "max_output_tokens", "long_context", "valid_from")
_LONG_FIELDS = ("above_input_tokens", "prices")
_DAY_MS = 86_400_000
_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_AMOUNT = re.compile(r"\d{1,15}(\.\d{1,18})?", re.ASCII)
_MOST_PICO = 10**12
"""A dollar for a token: whoever writes more has the unit wrong."""
_MOST_DIGITS = 15
_TOO_MUCH = "is more than a dollar for a token: is the unit right?"
_MOST_TOKENS = 2**40
_MOST_MODEL_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class PriceProblem:
    """One thing that is wrong in a table, and where: keys and indexes from the outside in."""

    path: Path
    message: str
    line: int | None = None
    """In the file, where it is known."""

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.path)) or 'the table'}: {self.message}"


class PricesInvalid(ValueError):
    """A price table that cannot be used; `problems` has everything that is wrong, where it could be read at all."""

    def __init__(self, message: str, problems: Sequence[PriceProblem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class PriceTable:
    """A table that was understood."""

    prices: tuple[Price, ...]
    as_of: date | None = None
    source: str = ""


def day_ms(day: date) -> int:
    """Unix milliseconds of the beginning of a UTC day."""
    return (day.toordinal() - _EPOCH_ORDINAL) * _DAY_MS


def read_table(mapping: Mapping[str, object]) -> PriceTable:
    """The table a decoded file describes. Raises `PricesInvalid`."""
    reader = _Reader()
    table = reader.table(mapping)
    if reader.problems or table is None:
        raise PricesInvalid("\n".join(map(str, reader.problems)), reader.problems)
    return table


class _Reader:
    """Goes through a decoded file from the outside in, noting what is wrong."""

    def __init__(self) -> None:
        self.problems: list[PriceProblem] = []
        self._scale = 1
        self._as_of: date | None = None

    def table(self, value: object) -> PriceTable | None:
        members = self._members(value, (), _TABLE_FIELDS, required=("models",))
        if members is None:
            return None
        unit = members.get("unit", "pico_usd_per_token")
        if not isinstance(unit, str) or unit not in PICO_PER_UNIT:
            self._refuse(("unit",), f"expected one of {', '.join(PICO_PER_UNIT)}")
        else:
            self._scale = PICO_PER_UNIT[unit]
        source = members.get("source", "")
        if not isinstance(source, str):
            self._refuse(("source",), "expected text")
        self._as_of = self._date(members.get("as_of"), ("as_of",))
        models = self._object(members["models"], ("models",)) or {}
        prices = tuple(price for model, rows in models.items() for price in self._rows(model, rows))
        return PriceTable(prices, self._as_of, str(source))

    def _rows(self, model: str, value: object) -> list[Price]:
        path: Path = ("models", model)
        if not 0 < len(model) <= _MOST_MODEL_CHARACTERS or not model.isprintable() or model != model.strip():
            self._refuse(path, f"a model's name is printable and has 1 to {_MOST_MODEL_CHARACTERS} characters")
        if not isinstance(value, list):
            price = self._row(model, value, path)
            return [price] if price else []
        if not value:
            self._refuse(path, "expected at least one row")
        prices: list[Price] = []
        for index, row in enumerate(value):
            price = self._row(model, row, (*path, index))
            if price is not None and any(each.price_id == price.price_id for each in prices):
                self._refuse((*path, index), f"a second row that holds from the same day: {price.price_id}")
            prices += [price] if price else []
        return prices

    def _row(self, model: str, value: object, path: Path) -> Price | None:
        row = self._members(value, path, _ROW_FIELDS, required=("prices",))
        if row is None:
            return None
        since = self._date(row.get("valid_from"), (*path, "valid_from")) or self._as_of
        mode = row.get("mode", "chat")
        if not isinstance(mode, str):
            self._refuse((*path, "mode"), "expected text")
        rates = self._rates(row["prices"], (*path, "prices"))
        price = Price(
            price_id=f"{model}@{since.isoformat() if since else UNDATED}",
            model=model,
            mode=str(mode),
            valid_from_ms=day_ms(since) if since else 0,
            max_input_tokens=self._tokens(row.get("max_input_tokens"), (*path, "max_input_tokens")),
            max_output_tokens=self._tokens(row.get("max_output_tokens"), (*path, "max_output_tokens")),
            rates=rates or {},
        )
        if row.get("long_context") is None or rates is None:
            return price
        return replace(price, long_context=self._long(row["long_context"], (*path, "long_context"), rates))

    def _long(self, value: object, path: Path, rates: Mapping[ServiceTier, Rates]) -> LongContext | None:
        members = self._members(value, path, _LONG_FIELDS, required=_LONG_FIELDS)
        if members is None:
            return None
        above = self._tokens(members["above_input_tokens"], (*path, "above_input_tokens"))
        long = self._rates(members["prices"], (*path, "prices"), rates)
        return LongContext(above, long) if above and long else None

    def _rates(
        self, value: object, path: Path, short: Mapping[ServiceTier, Rates] | None = None
    ) -> dict[ServiceTier, Rates] | None:
        """Rates of every tier, the gaps filled: a kind that is not given has its base kind's, then the default tier's.

        A tier that is not given has the default's; in a long context, given `short`, the dearer of that and its own.
        """
        given = self._object(value, path) or {}
        sheets = {}
        for name, sheet in given.items():
            tier = next((tier for tier in ServiceTier if tier.value == name), None)
            if tier is None:
                self._unknown((*path, name), name, [each.value for each in ServiceTier], "service tier")
            elif sheet is not None:
                sheets[tier] = self._sheet(sheet, (*path, name))
        default = sheets.get(ServiceTier.DEFAULT)
        if default is None or "input" not in default or "output" not in default:
            self._refuse(path, f"{ServiceTier.DEFAULT} needs input and output")
            return None
        rates = {
            tier: Rates(**{kind: _first(kind, sheets.get(tier, default), default) for kind in KINDS})
            for tier in ServiceTier
        }
        for tier in rates.keys() - sheets.keys() if short else ():
            rates[tier] = Rates(
                **{kind: max(getattr(rates[tier], kind), getattr((short or rates)[tier], kind)) for kind in KINDS}
            )
        return rates

    def _sheet(self, value: object, path: Path) -> dict[str, int]:
        amounts = {}
        for kind, amount in (self._object(value, path) or {}).items():
            if kind not in KINDS:
                self._unknown((*path, kind), kind, KINDS, "kind")
            elif amount is not None:
                try:
                    amounts[kind] = pico_of(amount, self._scale)
                except ValueError as error:
                    # Something stands in for what was refused, so that the gap is not reported as well.
                    amounts[kind] = 0
                    self._refuse((*path, kind), str(error))
        return amounts

    def _tokens(self, value: object, path: Path) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST_TOKENS:
            self._refuse(path, f"expected a whole number from 1 to {_MOST_TOKENS}")
            return None
        return value

    def _date(self, value: object, path: Path) -> date | None:
        if value is None or (isinstance(value, date) and not isinstance(value, datetime)):
            return value
        try:
            if isinstance(value, str) and _DATE.fullmatch(value):
                return date.fromisoformat(value)
        except ValueError:
            pass
        self._refuse(path, "expected a date such as 2026-11-21")
        return None

    def _members(
        self, value: object, path: Path, known: Collection[str], required: Collection[str]
    ) -> dict[str, Any] | None:
        """The members of an object that may have those; None where it lacks one that it must have."""
        members = self._object(value, path)
        if members is None:
            return None
        for name in members.keys() - set(known):
            self._unknown((*path, name), name, known, "field")
        missing = [name for name in required if members.get(name) is None]
        for name in missing:
            self._refuse(path, f"{name} is missing")
        return None if missing else members

    def _object(self, value: object, path: Path) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        self._refuse(path, "expected an object with named members")
        return None

    def _unknown(self, path: Path, name: str, known: Collection[str], what: str) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        self._refuse(path, f"unknown {what} ({f'did you mean {near[0]}?' if near else ', '.join(known)})")

    def _refuse(self, path: Path, message: str) -> None:
        self.problems.append(PriceProblem(path, message))


def _first(kind: str, own: Mapping[str, int], default: Mapping[str, int]) -> int:
    root = _BASE_KIND.get(kind, kind)
    return next(sheet[name] for sheet in (own, default) for name in (kind, root) if name in sheet)


def pico_of(value: object, scale: int) -> int:
    """Whole pico-dollars per token. Raises `ValueError`."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        kind = "a binary fraction, which no amount is exactly" if isinstance(value, float) else type(value).__name__
        raise ValueError(f"expected an amount, not {kind}")  # noqa: TRY004 - refused as any other value is
    if isinstance(value, str) and not _AMOUNT.fullmatch(value):
        raise ValueError("is no decimal amount")
    amount = Decimal(value)
    if not amount.is_finite() or amount < 0:
        raise ValueError("must be zero or more")
    if not amount:
        return 0
    # Bounded on both sides before it is worked out in full.
    if amount.adjusted() > _MOST_DIGITS:
        raise ValueError(_TOO_MUCH)
    pico = Fraction(amount) * scale if amount.adjusted() > -_MOST_DIGITS else Fraction(1, 2)
    if pico.denominator != 1:
        hint = "" if scale > 1 else '; dollars per million tokens? say unit = "usd_per_million_tokens"'
        raise ValueError(f"is not a whole number of pico-dollars per token{hint}")
    if pico > _MOST_PICO:
        raise ValueError(_TOO_MUCH)
    return int(pico)
