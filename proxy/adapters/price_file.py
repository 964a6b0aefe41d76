"""Reads price tables: the one that ships with the package, and an operator's over it."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from proxy.core.pricing import PriceBook, PricesInvalid

__all__ = ["load_prices"]


def load_prices(overrides: Path | None = None) -> PriceBook:
    """The shipped prices, with the operator's JSON or TOML file laid over them.

    Raises `PricesInvalid` when the file cannot be read or understood, naming it.
    """
    shipped = resources.files("proxy").joinpath("data/openai_prices.json").read_bytes()
    book = PriceBook.from_mapping(msgspec.json.decode(shipped, type=dict[str, Any]))
    if overrides is None:
        return book
    decode = msgspec.toml.decode if overrides.suffix == ".toml" else msgspec.json.decode
    try:
        return book.with_overrides(decode(overrides.read_bytes(), type=dict[str, Any]))
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise PricesInvalid(f"{overrides}: {error}") from error
