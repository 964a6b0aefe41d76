"""Compares the ledger with what OpenAI says was used and what it cost, by day and model.

Everything is exact: counts are integers, money is a fraction of pico-dollars, because OpenAI's amounts have more places
than there are. Nothing is compared that the other side does not state.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from fractions import Fraction
from types import MappingProxyType

__all__ = ["ALL_MODELS", "MEASURES", "Comparison", "Entry", "Figure", "base_name", "compare"]

MEASURES = (
    "requests",
    "input_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "output_tokens",
    "audio_output_tokens",
    "cost_pico_usd",
)
ALL_MODELS = ""
"""Stands for the model of a figure that is not by model."""

# gpt-4o-2024-08-06, gpt-4-0613.
_DATED = re.compile(r"(.+?)-(?:\d{4}-\d{2}-\d{2}|\d{4})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one side says of a day and a model; what it does not say of any is not compared."""

    day: date
    model: str | None
    """None: of all models together."""
    amounts: Mapping[str, Fraction | int] = field(default_factory=lambda: MappingProxyType({}))
    """By the names of `MEASURES`."""
    estimated: int = 0
    """Requests whose tokens were counted here: ledger only."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One amount on both sides."""

    day: date
    model: str
    measure: str
    ledger: Fraction
    stated: Fraction
    estimated: int = 0
    """Requests of the ledger among these whose tokens are our own count."""

    @property
    def difference(self) -> Fraction:
        """What the ledger has more than is stated; below zero, what it lacks."""
        return self.ledger - self.stated

    def ties(self, tolerance: Fraction) -> bool:
        """Whether the sides differ by no more than this part of what is stated."""
        return abs(self.difference) <= tolerance * abs(self.stated)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides, figure by figure."""

    figures: tuple[Figure, ...]
    """By day, model and measure; those that are nothing on both sides are left out."""
    together: Mapping[str, tuple[str, ...]]
    """Names that are compared as one, under the name without a date: those that the sides do not have in common."""
    days: tuple[date, ...]

    def differing(self, tolerance: Fraction = Fraction(0)) -> tuple[Figure, ...]:
        """The figures that do not tie out."""
        return tuple(each for each in self.figures if not each.ties(tolerance))

    def totals(self) -> tuple[Figure, ...]:
        """Each measure over all days and models, under the first day."""
        sums: dict[str, tuple[Fraction, Fraction]] = {}
        for each in self.figures:
            ledger, stated = sums.get(each.measure, (Fraction(0), Fraction(0)))
            sums[each.measure] = (ledger + each.ledger, stated + each.stated)
        return tuple(
            Figure(self.days[0], ALL_MODELS, measure, *sums[measure]) for measure in MEASURES if measure in sums
        )


def base_name(model: str) -> str:
    """The name of a model without the date of a snapshot."""
    match = _DATED.fullmatch(model)
    return match[1] if match else model


def compare(ledger: Iterable[Entry], stated: Iterable[Entry], days: Iterable[date]) -> Comparison:
    """Compare on these days, which are those the statement covers, with or without an entry.

    A measure that is stated without a model somewhere is compared by day alone.
    """
    days = tuple(sorted(set(days)))
    ours = [each for each in ledger if each.day in days]
    theirs = [each for each in stated if each.day in days]
    by_day_alone = {measure for each in theirs if each.model is None for measure in each.amounts}
    together = _together(ours, theirs)
    names = {name: base for base, family in together.items() for name in family}
    sides = [_summed(each, names, by_day_alone) for each in (ours, theirs)]
    estimated: dict[tuple[date, str], int] = defaultdict(int)
    for each in ours:
        for model in (names.get(each.model or "", each.model or ""), ALL_MODELS):
            estimated[each.day, model] += each.estimated
    measures = {measure for each in theirs for measure in each.amounts}
    keys = sorted(sides[0].keys() | sides[1].keys(), key=lambda key: (key[0], key[1], MEASURES.index(key[2])))
    figures = tuple(
        Figure(day, model, measure, sides[0][day, model, measure], sides[1][day, model, measure], estimated[day, model])
        for day, model, measure in keys
        if measure in measures and (sides[0][day, model, measure] or sides[1][day, model, measure])
    )
    return Comparison(figures, together, days)


def _together(ours: Sequence[Entry], theirs: Sequence[Entry]) -> dict[str, tuple[str, ...]]:
    """Families of names of which the sides do not have the same."""
    families: list[dict[str, set[str]]] = [defaultdict(set), defaultdict(set)]
    for family, side in zip(families, (ours, theirs), strict=True):
        for model in (each.model for each in side if each.model):
            family[base_name(model)].add(model)
    mine, stated = families
    return {
        base: tuple(sorted(mine[base] | stated[base]))
        for base in sorted(mine.keys() & stated.keys())
        if mine[base] != stated[base]
    }


def _summed(
    side: Iterable[Entry], names: Mapping[str, str], by_day_alone: set[str]
) -> dict[tuple[date, str, str], Fraction]:
    sums: dict[tuple[date, str, str], Fraction] = defaultdict(Fraction)
    for day, model, measure, amount in _amounts(side, names):
        sums[day, ALL_MODELS if measure in by_day_alone else model, measure] += amount
    return sums


def _amounts(side: Iterable[Entry], names: Mapping[str, str]) -> Iterator[tuple[date, str, str, Fraction | int]]:
    for each in side:
        model = each.model or ALL_MODELS
        for measure, amount in each.amounts.items():
            yield each.day, names.get(model, model), measure, amount
