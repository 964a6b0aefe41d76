"""The prices of the settings, for looking at them and for changing them."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from proxy.adapters.clock import SystemClock
from proxy.adapters.price_file import load_prices, read_price_file, replacing, shipped_table
from proxy.adapters.sql.notes import note
from proxy.app.database import open_database
from proxy.core.price_forms import Written
from proxy.core.price_import import added, plain, rows_of
from proxy.core.price_table import PricesInvalid, PriceTable, read_table
from proxy.core.pricing import PriceBook, ServiceTier
from proxy.settings import Settings
from proxy.settings.lines import key_lines

__all__ = ["Imported", "Prices", "doubts", "import_prices", "open_prices", "read_prices"]

_LEAST_LIKELY_PICO = 1_000
"""A tenth of a cent for a million tokens: below any price there is but none."""


@dataclass(frozen=True, slots=True)
class Prices:
    """What a server that starts now would charge by."""

    book: PriceBook
    shipped: PriceTable
    file: Path | None
    """The operator's, laid over the shipped table."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has changed."""

    file: Path
    models: tuple[str, ...]
    """Those with a row they did not have."""
    passed_over: tuple[str, ...]


def open_prices(settings: Settings) -> Prices:
    """The prices of the settings. Raises `PricesInvalid`."""
    file = settings.price_file()
    return Prices(load_prices(file), shipped_table(), file)


def read_prices(path: Path) -> tuple[Written, PriceTable]:
    """The table in a file. Raises `PricesInvalid`, with a line for each problem where one is known."""
    return read_price_file(path, key_lines)


def doubts(written: Written, table: PriceTable) -> list[str]:
    """What in a table can be meant as it is, and is more likely a slip."""
    known = {price.model for price in shipped_table().prices}
    found = [f"{each} has no place in a price table of ours and is passed over" for each in written.passed_over]
    for price in table.prices:
        dearest = max(price.rates[ServiceTier.DEFAULT].input, price.rates[ServiceTier.DEFAULT].output)
        if 0 < dearest < _LEAST_LIKELY_PICO:
            found.append(f'{price.price_id} costs next to nothing: is unit = "usd_per_million_tokens" missing?')
    for model in sorted({price.model for price in table.prices} - known):
        near = difflib.get_close_matches(model, known, n=1, cutoff=0.9)
        found += [f"{model} is no model of the shipped table; did you mean {near[0]}?"] if near else []
    return found


def import_prices(settings: Settings, path: Path, start: date, today: date, actor: str) -> Imported:
    """Add the rows of a file to the operator's table, from `start` on where they have no day of their own.

    Whole or not at all, and audited first. Raises `PricesInvalid`, `OSError`, `StoreAway`.
    """
    target = settings.prices.file or settings.default_price_file
    if target.suffix != ".json":
        raise PricesInvalid(f"{target}: an import writes JSON; let prices.file name a file that ends in .json")
    written, _ = read_prices(path)
    new = rows_of(written.mapping, start=start)
    with replacing(target) as put:
        before = rows_of(_installed(target))
        try:
            after = added(before, new, today)
        except PricesInvalid as error:
            lines = (f"{path}:{written.line(each.path) or 1}: {each}" for each in error.problems)
            raise PricesInvalid("\n".join(lines), error.problems) from None
        changed = tuple(model for model in sorted(after) if after[model] != before.get(model))
        if changed:
            text = json.dumps(plain(after), indent=1) + "\n"
            read_table(json.loads(text))
            with open_database(settings) as engine:
                digest = hashlib.sha256(text.encode()).hexdigest()
                details: Mapping[str, Any] = {"from": start.isoformat(), "models": changed, "sha256": digest}
                note(engine, SystemClock().now_ms(), actor, "prices.import", str(target), details)
            put(text)
    return Imported(target, changed, written.passed_over)


def _installed(target: Path) -> Mapping[str, Any]:
    return read_prices(target)[0].mapping if target.exists() else {"models": {}}
