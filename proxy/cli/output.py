"""What commands print: aligned text for people, JSON and CSV for programs."""

from __future__ import annotations

import itertools
import json
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime

import click

from proxy.core.csv_text import Cell, csv_line, printable

__all__ = ["Cell", "echo_csv", "echo_json", "echo_json_rows", "echo_table", "instant", "printable"]

_AT_ONCE = 500


def instant(at_ms: int | None) -> str | None:
    """A point in time (unix milliseconds) to the second, in UTC."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def echo_json(value: object) -> None:
    """Print one JSON document on one line; ASCII, so that it is safe to look at."""
    click.echo(json.dumps(value))


def echo_json_rows(rows: Iterable[object]) -> None:
    """Print one JSON array, as `echo_json` would, while its elements come."""
    encoded = map(json.dumps, rows)
    _echo_batches(itertools.chain(["["], itertools.islice(encoded, 1), (f", {each}" for each in encoded), ["]\n"]))


def echo_csv(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> None:
    """Print comma-separated values while the rows come.

    A text that a spreadsheet would run as a formula gets a quote in front; a number stays one.
    """
    _echo_batches(map(csv_line, itertools.chain([header], rows)))


def _echo_batches(pieces: Iterator[str]) -> None:
    # Each echo is flushed, which for every row would take most of the time.
    while batch := list(itertools.islice(pieces, _AT_ONCE)):
        click.echo("".join(batch), nl=False)


def echo_table(header: Sequence[str], rows: Sequence[Sequence[Cell]], right: Container[str] = ()) -> None:
    """Print rows under a header, in columns; numbers and the columns in `right` to the right, nothing as `-`."""
    body = [
        ["-" if cell is None else f"{cell:,}" if isinstance(cell, int) else printable(cell) for cell in row]
        for row in rows
    ]
    widths = [max(map(_width, column)) for column in zip(header, *body, strict=True)]
    numeric = [name in right or any(isinstance(row[at], int) for row in rows) for at, name in enumerate(header)]
    for line in (list(header), *body):
        cells = [
            _padded(cell, width, right=to_right) for cell, width, to_right in zip(line, widths, numeric, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _width(cell))
    return space + cell if right else cell + space


def _width(text: str) -> int:
    """Columns a terminal gives the text: wide letters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )
