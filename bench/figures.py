"""What every section of the benchmark says, and how: one list of figures, as a table and as JSON.

A section is a script with `--json FILE`: it prints its table and, where asked to, writes a JSON list of

    {"what": str, "value": number, "unit": str, "target": number | null, "better": "more" | "less",
     "spread": [low, high] | null, "quiet": bool}

`target` is null where a figure has none, `spread` where it was taken once; what was not `quiet` is held to no target.
`what` names the figure by itself: it stands in one table with those of the other sections. `bench/run.py` gathers the
lists.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: a median with the least and the most of its rounds."""

    what: str
    value: float
    unit: str
    target: float | None = None
    better: Literal["more", "less"] = "less"
    spread: tuple[float, float] | None = None
    quiet: bool = True
    """Whether the machine left it alone, as far as that can be told."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none, or where other work was in the way."""
        if self.target is None or not self.quiet:
            return None
        return self.value >= self.target if self.better == "more" else self.value <= self.target

    @classmethod
    def of(cls, what: str, rounds: Sequence[float], unit: str, **rest: Any) -> Figure:
        """The median of the rounds, with its spread; `rest` is target, better and quiet."""
        return cls(what, statistics.median(rounds), unit, spread=(min(rounds), max(rounds)), **rest)


def number(value: float) -> str:
    """Three digits that count, and all those before the point."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 or value == int(value) else f"{value:.{1 if size >= 10 else 2}f}"


def lines(figures: Iterable[Figure]) -> list[str]:
    """The table: what, seen, spread, target, met or short, or noisy where that cannot be told."""
    rows = [("what", "seen", "spread", "target", "")]
    for each in figures:
        spread = "" if each.spread is None else f"{number(each.spread[0])} .. {number(each.spread[1])}"
        sign = ">=" if each.better == "more" else "<="
        target = "" if each.target is None else f"{sign} {number(each.target)} {each.unit}".rstrip()
        verdict = {None: "" if each.quiet else "noisy", True: "met", False: "short"}[each.met]
        rows.append((each.what, f"{number(each.value)} {each.unit}".rstrip(), spread, target, verdict))
    wide = [max(len(row[column]) for row in rows) for column in range(5)]
    return [
        f"{row[0]:<{wide[0]}}  {row[1]:>{wide[1]}}  {row[2]:>{wide[2]}}  {row[3]:>{wide[3]}}  {row[4]}".rstrip()
        for row in rows
    ]


def show(figures: Iterable[Figure]) -> None:
    """Print the table."""
    print("\n".join(lines(figures)), flush=True)


def write(path: Path, figures: Iterable[Figure]) -> None:
    """The list as JSON, its directory made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(each) for each in figures], indent=2) + "\n", encoding="utf-8")


def read(path: Path) -> list[Figure]:
    """What `write` wrote."""
    figures = []
    for each in json.loads(path.read_text(encoding="utf-8")):
        spread = each.pop("spread", None)
        figures.append(Figure(**each, spread=None if spread is None else (spread[0], spread[1])))
    return figures


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A section's command line: `--json FILE` and `--quick`, to which it adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: to see that it runs")
    return parser


def deliver(figures: Sequence[Figure], json_path: Path | None) -> None:
    """Print the table, and write the JSON where asked to: the last line of a section's `main`."""
    show(figures)
    if json_path is not None:
        write(json_path, figures)
