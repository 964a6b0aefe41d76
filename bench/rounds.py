"""Rounds: every contender in turn, again and again, so that what else the machine does falls on all of them.

A ratio is taken within a round, of drives that ran one after the other, and the median of those is what is told.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeVar

from figures import Figure
from load import Seen

QUIET_CORES = 0.85
T = TypeVar("T")
Better = Literal["more", "less"]


def interleaved(contenders: Sequence[str], drive: Callable[[str], T], rounds: int) -> dict[str, list[T]]:
    """What each drive saw: the list at a name has one entry for each round."""
    seen: dict[str, list[T]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name in contenders:
            seen[name].append(drive(name))
    return seen


def rates(seen: Mapping[str, Sequence[Seen]]) -> list[Figure]:
    """Answers a second, CPU of an answer, and how many cores that kept busy, for each."""
    figures = []
    for name, rounds in seen.items():
        figures.append(Figure.of(name, [each.per_second for each in rounds], "/s", better="more"))
        figures.append(Figure.of(f"{name}: CPU", [each.cpu_microseconds for each in rounds], "us"))
        figures.append(Figure.of(f"{name}: busy", [each.cores for each in rounds], "cores", better="more"))
    return figures


def ratios(seen: Mapping[str, Sequence[Seen]], base: str, targets: Mapping[str, float | None]) -> list[Figure]:
    """Of each that has an entry in `targets`, its rate as part of the base's, and the base's CPU as part of its own.

    Where each server has its core to itself the two say the same. Where others want that core, the slower server may
    lose more of it or less: then the CPU alone is held to the target.
    """
    figures = []
    for name, target in targets.items():
        pairs = list(zip(seen[name], seen[base], strict=True))
        by_rate = [one.per_second / other.per_second for one, other in pairs]
        quiet = min(statistics.median(each.cores for each in seen[which]) for which in (name, base)) >= QUIET_CORES
        by_cpu = [other.cpu_microseconds / one.cpu_microseconds for one, other in pairs]
        figures.append(Figure.of(f"{name}, of {base}", by_rate, "", target=target, better="more", quiet=quiet))
        figures.append(Figure.of(f"{name}, of {base}, by CPU", by_cpu, "", target=target, better="more"))
    return figures
