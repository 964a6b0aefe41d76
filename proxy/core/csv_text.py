"""Text that can be looked at, and comma-separated values that a spreadsheet runs nothing of."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

__all__ = ["Cell", "csv_line", "printable"]

Cell = str | int | None

_FORMULA = tuple(
    "=+-@\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?", re.ASCII)


def printable(text: str) -> str:
    """`text` with everything that could steer a terminal or reorder a line written as an escape."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def csv_line(row: Sequence[Cell]) -> str:
    """One line of comma-separated values.

    A text that a spreadsheet would run as a formula gets a quote in front; a number stays one.
    """
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([_inert(cell) for cell in row])
    return out.getvalue()


def _inert(cell: Cell) -> Cell:
    if not isinstance(cell, str):
        return cell
    text = printable(cell)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
