"""How metrics are written down: in Prometheus' text format, or in OpenMetrics, which has room for exemplars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import prometheus_client  # noqa: TID251 - a part of their one home
from prometheus_client import Metric  # noqa: TID251 - same
from prometheus_client.openmetrics import exposition as openmetrics  # noqa: TID251 - same
from prometheus_client.registry import Collector  # noqa: TID251 - same
from prometheus_client.samples import Sample  # noqa: TID251 - same

__all__ = ["written"]

_OPEN_METRICS = "application/openmetrics-text"
_VERSION = "1.0.0"
_SAMPLES_AT_ONCE = 25
"""About a millisecond of work."""
_PAUSE_SECONDS = 0.00005


def written(registry: Collector, accept: str, pause: Callable[[float], object] = time.sleep) -> tuple[bytes, str]:
    """Everything in the registry, and the content type of that: OpenMetrics 1.0 for whoever names it in `Accept`.

    Takes some 20 microseconds for each sample: call it off the loop. It pauses now and then, or else the loop would
    wait five milliseconds for the interpreter's lock at each of its turns.
    """
    there = _Unhurried(registry, pause)
    if _OPEN_METRICS in accept.lower():
        text: bytes = openmetrics.generate_latest(there, version=_VERSION)  # type: ignore[no-untyped-call]  # the package types it not
        return text, f"{_OPEN_METRICS}; version={_VERSION}; charset=utf-8"
    return prometheus_client.generate_latest(there), prometheus_client.CONTENT_TYPE_PLAIN_0_0_4


class _Unhurried(Collector):
    """A collector whose samples are handed out a few at a time."""

    def __init__(self, of: Collector, pause: Callable[[float], object]) -> None:
        self._of = of
        self._pause = pause

    def collect(self) -> Iterable[Metric]:
        for metric in self._of.collect():
            metric.samples = self._a_few_at_a_time(metric.samples)  # type: ignore[assignment]  # they are only iterated
            yield metric

    def _a_few_at_a_time(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for number, sample in enumerate(samples):
            if number % _SAMPLES_AT_ONCE == 0:
                self._pause(_PAUSE_SECONDS)
            yield sample
