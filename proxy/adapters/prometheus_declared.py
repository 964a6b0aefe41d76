"""What is declared, read back from a registry: for the reference, and for tests that hold others to it."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry  # noqa: TID251 - a part of their one home
from prometheus_client.metrics import MetricWrapperBase  # noqa: TID251 - same
from prometheus_client.registry import Collector  # noqa: TID251 - same

from proxy.adapters.prometheus import Metrics

__all__ = ["Declared", "declared"]

_UNITS = {"seconds": "seconds", "bytes": "bytes", "usd": "US dollars", "ratio": "0 to 1", "tokens": "tokens"}
_OVER_WORKERS = {
    "sum": "sum",
    "livesum": "sum",
    "max": "largest",
    "livemax": "largest",
    "mostrecent": "latest",
    "livemostrecent": "latest",
}
"""What becomes of a gauge of several workers, by the mode it is declared with."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A metric, as a scraper knows it."""

    name: str
    kind: str
    """`counter`, `gauge` or `histogram`."""
    labels: tuple[str, ...]
    unit: str
    help: str
    over_workers: str
    """How the figures of several workers become one: `sum`, `largest` or `latest`."""


def declared() -> tuple[Declared, ...]:
    """Every metric there is, sorted by name."""
    registry = _Remembering()
    Metrics(lambda _: False, registry)
    return tuple(sorted(map(_told, registry.collectors), key=lambda each: each.name))


class _Remembering(CollectorRegistry):
    """A registry that knows what was declared on it: others tell names, and of labels nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.collectors: list[MetricWrapperBase] = []

    def register(self, collector: Collector) -> None:
        super().register(collector)
        if isinstance(collector, MetricWrapperBase):
            self.collectors.append(collector)


def _told(metric: MetricWrapperBase) -> Declared:
    # The package tells these nowhere else.
    name, kind, labels = metric._name, str(metric._type), metric._labelnames  # noqa: SLF001 - as said
    mode = getattr(metric, "_multiprocess_mode", "sum")
    words = name.split("_")
    return Declared(
        name=f"{name}_total" if kind == "counter" else name,
        kind=kind,
        labels=tuple(labels),
        unit=next((unit for word, unit in _UNITS.items() if word in words), ""),
        help=metric._documentation,  # noqa: SLF001 - as said
        over_workers=_OVER_WORKERS[mode],
    )
