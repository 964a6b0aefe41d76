"""Figures that the event loop's thread alone changes, without a lock and with no label looked up; a part of their home.

The client library takes a lock for each step of each figure, and finds the bucket of a time by trying one after the
other: for the dozen figures of a request that is as much work as all else that is done for it here.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, Protocol

from prometheus_client import Counter, Gauge, Histogram, values  # noqa: TID251 - a part of their one home
from prometheus_client.samples import Exemplar  # noqa: TID251 - same

__all__ = ["Alike", "Figure", "Times", "figure_of", "keep_figures_here", "keep_figures_in_files"]

_PAIR = struct.Struct("dd")
"""A number and the time it is of, as they are in the files."""


class Figure(Protocol):
    """One number that a scraper reads, from whatever thread; to be changed by one alone."""

    def add(self, amount: float) -> None:
        """Add to it."""
        ...

    def put(self, number: float, at_seconds: float) -> None:
        """Have it be another number; of several processes the latest counts."""
        ...

    def tell(self, request_id: str, amount: float, at_seconds: float) -> None:
        """Have a request be its example."""
        ...


class _Here(values.MutexValue):
    """Of one process. Others' figures keep their lock: `inc` is for any thread."""

    _example: tuple[str, float, float] | None = None

    def add(self, amount: float) -> None:
        self._value += amount

    def put(self, number: float, at_seconds: float) -> None:  # noqa: ARG002 - of one process there is no later one
        self._value = number

    def tell(self, request_id: str, amount: float, at_seconds: float) -> None:
        self._example = request_id, amount, at_seconds

    def get_exemplar(self) -> Exemplar | None:
        if self._example is None:
            return None
        request_id, amount, at_seconds = self._example
        return Exemplar({"request_id": request_id}, amount, at_seconds)


def keep_figures_here() -> None:
    """Have figures be made that can be changed so; those that are kept in files already can."""
    if values.ValueClass is values.MutexValue:
        values.ValueClass = _Here


def keep_figures_in_files(number: int) -> None:
    """Have figures be kept in files for other processes to read, each as soon as it is changed."""
    base: Any = values.MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]  # the package types it not

    class InFile(base):  # type: ignore[misc]  # as above
        """Of several processes. There is no room for examples in the files."""

        _value: float

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            start = self._file._positions[self._key]  # noqa: SLF001 - its own way there takes twice the time
            self._place = slice(start, start + _PAIR.size)

        def add(self, amount: float) -> None:
            self._value = number = self._value + amount
            # The map is another one after the file has grown.
            self._file._m[self._place] = _PAIR.pack(number, 0.0)  # noqa: SLF001 - as above

        def put(self, number: float, at_seconds: float) -> None:
            self._value = number
            self._file._m[self._place] = _PAIR.pack(number, at_seconds)  # noqa: SLF001 - as above

        def tell(self, request_id: str, amount: float, at_seconds: float) -> None:
            pass

    values.ValueClass = InFile


def figure_of(child: Counter | Gauge) -> Figure:
    """The one figure of a metric, or of one of its children."""
    figure: Figure = child._value  # noqa: SLF001 - the package shows it nowhere
    return figure


class Times:
    """The figures of a histogram, or of one of its children, to be changed by one thread alone."""

    __slots__ = ("_add", "_bounds", "_buckets")

    def __init__(self, child: Histogram) -> None:
        self._add: Callable[[float], None] = child._sum.add  # noqa: SLF001 - as above
        self._bounds: list[float] = child._upper_bounds  # noqa: SLF001 - as above
        self._buckets: list[Figure] = child._buckets  # noqa: SLF001 - as above

    def observe(self, seconds: float) -> Figure:
        """Count a time; returns the figure of its bucket."""
        self._add(seconds)
        bucket = self._buckets[bisect_left(self._bounds, seconds)]
        bucket.add(1)
        return bucket


class Alike(dict[str, Figure]):
    """Figures of requests that have their labels in common, found once; those by name are made when they first count.

    Names: `requests` and `tokens` for the parts of buckets that are used, `spend`, `saved`, `saved_tokens`, and the
    kinds of tokens.
    """

    __slots__ = ("_make", "cached", "duration", "requests", "telling", "upstream")

    duration: Times
    requests: Figure
    telling: Figure | None
    """Where an example tells which request to look into."""
    cached: Figure | None
    upstream: Times | None

    def __init__(self, make: Callable[[str], Figure]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> Figure:
        figure = self[name] = self._make(name)
        return figure
