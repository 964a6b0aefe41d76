"""Reads price tables: the one that ships with the package, and an operator's over it; and puts a new one in place."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Any

from proxy.adapters.file_owner import give_to_owner
from proxy.core.json_lines import json_lines
from proxy.core.price_forms import Written, from_csv, from_flat, is_flat
from proxy.core.price_table import Path as Place
from proxy.core.price_table import PriceProblem, PricesInvalid, PriceTable, read_table
from proxy.core.pricing import PriceBook

__all__ = ["load_prices", "read_price_file", "replacing", "shipped_table"]

Lines = Callable[[str], Mapping[Place, int]]

_AT_LINE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


def shipped_table() -> PriceTable:
    """The table that came with this version."""
    text = resources.files("proxy").joinpath("data/openai_prices.json").read_text("utf-8")
    return read_table(json.loads(text, parse_float=Decimal))


def load_prices(overrides: Path | None = None) -> PriceBook:
    """The shipped prices, with the operator's file laid over them.

    Raises `PricesInvalid` when the file cannot be read or understood, naming it and its lines.
    """
    book = PriceBook(shipped_table().prices)
    return book if overrides is None else book.overlaid(read_price_file(overrides)[1].prices)


def read_price_file(path: Path, toml_lines: Lines = lambda _: {}) -> tuple[Written, PriceTable]:
    """A price table in JSON, TOML or CSV, and what it says.

    `toml_lines` finds the lines of keys in TOML. Raises `PricesInvalid`, with file and line in its message.
    """
    written = Written({})
    try:
        written = _written(path, toml_lines)
        return written, read_table(written.mapping)
    except PricesInvalid as error:
        problems = [replace(each, line=each.line or written.line(each.path)) for each in error.problems]
        raise PricesInvalid("\n".join(_told(path, problem) for problem in problems), problems) from None


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Callable[[str], None]]:
    """Give the means to put a text in the place of a file, whole or not at all; nobody else does so meanwhile.

    What is there when the block is entered stays what is there until the text is put. Raises `OSError`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    draft = path.with_name(f".{path.name}.new")

    def put(text: str) -> None:
        # What a broken attempt has left; made anew, it leads nowhere else.
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600), "w") as file:
            give_to_owner(file.fileno(), path)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        os.fsync(directory)

    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield put
    finally:
        os.close(directory)


def _written(path: Path, toml_lines: Lines) -> Written:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise _invalid(f"cannot read the file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _invalid("the file is not UTF-8") from None
    if path.suffix == ".csv":
        return from_csv(text)
    mapping, lines = _toml(text, toml_lines) if path.suffix == ".toml" else _json(text)
    return from_flat(mapping, lines) if is_flat(mapping) else Written(mapping, lines)


def _toml(text: str, toml_lines: Lines) -> tuple[dict[str, Any], Mapping[Place, int]]:
    try:
        return tomllib.loads(text, parse_float=Decimal), toml_lines(text)
    except tomllib.TOMLDecodeError as error:
        place = _AT_LINE.search(str(error))
        line = int(place[1]) if place and place[1] else len(text.splitlines())
        raise _invalid(f"is not TOML: {_AT_LINE.sub('', str(error))}", line) from None


def _json(text: str) -> tuple[dict[str, Any], Mapping[Place, int]]:
    text = text.removeprefix("\ufeff")
    try:
        mapping = json.loads(text, parse_float=Decimal)
        lines, twice = json_lines(text)
    except json.JSONDecodeError as error:
        raise _invalid(f"is not JSON: {error.msg}", error.lineno) from None
    except (RecursionError, ValueError):
        # A number of thousands of digits is a ValueError.
        raise _invalid("is nothing that could be a price table") from None
    if twice:
        problems = [PriceProblem(place, "is there twice", lines[place]) for place in twice]
        raise PricesInvalid("", problems)
    if not isinstance(mapping, dict):
        raise _invalid("expected an object with named members", 1)
    return mapping, lines


def _told(path: Path, problem: PriceProblem) -> str:
    place = f"{path}:{problem.line}" if problem.line else str(path)
    return f"{place}: {problem}" if problem.path else f"{place}: {problem.message}"


def _invalid(message: str, line: int | None = None) -> PricesInvalid:
    return PricesInvalid(message, [PriceProblem((), message, line)])
