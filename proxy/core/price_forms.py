"""Price tables in the forms people have, as the table `core.price_table` reads.

CSV has a line for each model: `model`, `input` and `output`, and where it has them the other kinds, `service_tier` and
`valid_from`; amounts are dollars per million tokens. A flat table has for each model `pico_usd_per_token` or
`usd_per_million_tokens`, whose members are kinds, kinds with a tier before them (`batch_input`), and `long_context`
with the names of LiteLLM's model price table (`input_cost_per_token_above_272k_tokens_flex`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxy.core.price import ServiceTier
from proxy.core.price_table import KINDS, PICO_PER_UNIT, Path, PriceProblem, PricesInvalid

__all__ = ["Written", "from_csv", "from_flat", "is_flat"]

_COLUMNS = ("model", *KINDS, "service_tier", "valid_from")
_NEEDED = ("model", "input", "output")
_LONG_NAME = re.compile(
    r"(input|output|cache_read_input|cache_creation_input)(?:_token)?_cost(?:_per_token)?_above_(\d{1,6})k_tokens"
    r"(?:_([a-z]+))?"
)
_LONG_KINDS = {"cache_read_input": "cached_input", "cache_creation_input": "cache_write"}
_LONG_TIERS = {None: "default", "batches": "batch"}


@dataclass(frozen=True, slots=True)
class Written:
    """A table as it was written: its members, and the lines they stand on."""

    mapping: Mapping[str, Any]
    lines: Mapping[Path, int] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    """What has no place in a table of ours."""

    def line(self, path: Path) -> int | None:
        """The line of the member at `path`, or else of the innermost one around it."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)


def from_csv(text: str) -> Written:
    """Read CSV. Raises `PricesInvalid`, whose problem has the line."""
    reader = csv.reader(text.removeprefix("\ufeff").splitlines(keepends=True), strict=True)
    try:
        records = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise _invalid(reader.line_num, str(error)) from None
    if not records:
        raise _invalid(1, "expected a header with model, input and output")
    (line, header), *rest = records
    header = [name.strip() for name in header]
    unknown = [name for name in header if name not in _COLUMNS]
    missing = [name for name in _NEEDED if name not in header]
    if unknown or missing or len(set(header)) < len(header):
        wrong = f"unknown columns: {', '.join(unknown)}" if unknown else f"missing columns: {', '.join(missing)}"
        raise _invalid(line, f"{wrong if unknown or missing else 'a column is there twice'} ({', '.join(_COLUMNS)})")
    models: dict[str, list[dict[str, Any]]] = {}
    lines: dict[Path, int] = {}
    for number, record in rest:
        if len(record) != len(header):
            raise _invalid(number, f"expected {len(header)} values, not {len(record)}")
        cells = {name: cell.strip() for name, cell in zip(header, record, strict=True) if cell.strip()}
        _add(models, lines, number, cells)
    return Written({"unit": "usd_per_million_tokens", "models": models}, lines)


def is_flat(mapping: Mapping[str, Any]) -> bool:
    """Whether a decoded file is a flat table."""
    models = mapping.get("models")
    rows = models.values() if isinstance(models, dict) else ()
    return any(isinstance(row, dict) and not PICO_PER_UNIT.keys().isdisjoint(row) for row in rows)


def from_flat(mapping: Mapping[str, Any], lines: Mapping[Path, int]) -> Written:
    """Read a flat table; what it says of its own unit and date beside its rows is left out. Raises `PricesInvalid`."""
    passed_over: list[str] = []
    units = {
        unit for row in mapping["models"].values() if isinstance(row, dict) for unit in PICO_PER_UNIT if unit in row
    }
    if len(units) > 1:
        raise _refused(("models",), f"expected one unit in all rows, not {' and '.join(sorted(units))}")
    (unit,) = units
    models: dict[str, Any] = {}
    found = dict(lines)
    for model, row in mapping["models"].items():
        path: Path = ("models", model)
        if not isinstance(row, dict) or not isinstance(row.get(unit), dict):
            raise _refused(path, f"expected an object with {unit}")
        rest = {name: value for name, value in row.items() if name != unit}
        models[model] = rest | dict(_sheets(row[unit], (*path, unit), found, passed_over))
    return Written({"unit": unit, "models": models}, found, tuple(passed_over))


def _sheets(
    amounts: Mapping[str, Any], path: Path, lines: dict[Path, int], passed_over: list[str]
) -> Iterator[tuple[str, Any]]:
    model = path[:2]
    sheets: dict[str, dict[str, Any]] = {}
    for name, amount in amounts.items():
        if name == "long_context":
            continue
        tier, _, kind = name.partition("_")
        tier, kind = (tier, kind) if tier in set(ServiceTier) else ("default", name)
        sheets.setdefault(tier, {})[kind] = amount
        lines[*model, "prices", tier, kind] = lines.get((*path, name), 1)
    yield "prices", sheets
    if amounts.get("long_context"):
        yield "long_context", _long(amounts["long_context"], (*path, "long_context"), lines, passed_over)


def _long(amounts: Mapping[str, Any], path: Path, lines: dict[Path, int], passed_over: list[str]) -> dict[str, Any]:
    model, above = path[:2], set()
    sheets: dict[str, dict[str, Any]] = {}
    for name, amount in amounts.items():
        match = _LONG_NAME.fullmatch(name)
        tier = _LONG_TIERS.get(match[3], match[3]) if match else None
        if match is None or tier not in set(ServiceTier):
            passed_over.append(f"{model[1]}: {name}")
            continue
        above.add(int(match[2]) * 1_000)
        kind = _LONG_KINDS.get(match[1], match[1])
        sheets.setdefault(tier, {})[kind] = amount
        lines[*model, "long_context", "prices", tier, kind] = lines.get((*path, name), 1)
    if len(above) != 1:
        raise _refused(path, "expected one size above which a context is long")
    return {"above_input_tokens": above.pop(), "prices": sheets}


def _add(models: dict[str, list[dict[str, Any]]], lines: dict[Path, int], number: int, cells: dict[str, str]) -> None:
    """Put one line of CSV to the rows it belongs to: lines of one model and day are tiers of one row."""
    model, tier = cells.get("model", ""), cells.get("service_tier", "default")
    since = {"valid_from": cells["valid_from"]} if "valid_from" in cells else {}
    rows = models.setdefault(model, [])
    row = next((each for each in rows if each.get("valid_from") == since.get("valid_from")), None)
    if row is None:
        row = {"prices": {}} | since
        rows.append(row)
        lines.setdefault(("models", model), number)
        lines["models", model, len(rows) - 1] = number
    if tier in row["prices"]:
        raise _invalid(number, f"a second line for {model}, tier {tier}, from the same day")
    path: Path = ("models", model, rows.index(row))
    row["prices"][tier] = {kind: cells[kind] for kind in KINDS if kind in cells}
    lines[*path, "prices", tier] = number
    if since:
        lines[*path, "valid_from"] = number


def _refused(path: Path, message: str, line: int | None = None) -> PricesInvalid:
    problem = PriceProblem(path, message, line)
    return PricesInvalid(str(problem), [problem])


def _invalid(line: int, message: str) -> PricesInvalid:
    return _refused((), message, line)
