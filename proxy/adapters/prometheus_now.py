"""A few of the metrics as they are now, for a page; a part of `prometheus.py`'s home."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric  # noqa: TID251 - a part of their one home

from proxy.adapters.prometheus_shared import shared_figures
from proxy.core.overview import Now, UpstreamNow

__all__ = ["figures_of", "shared_now"]

_UPSTREAM = {
    "tollgate_breaker_state": "level",
    "tollgate_upstream_keys_resting": "keys_resting",
    "tollgate_upstream_duration_seconds_count": "requests",
    "tollgate_upstream_errors_total": "errors",
}
_ALONE = {
    "tollgate_in_flight_requests": "in_flight",
    "tollgate_queued_requests": "queued",
    "tollgate_spool_lag_seconds": "spool_lag",
}


def figures_of(registry: CollectorRegistry) -> Now:
    """What this process counts: call it off the loop."""
    return _now(registry.collect())


def shared_now(directory: Path) -> Now:
    """What all processes count that keep their figures in `directory`: call it off the loop."""
    return _now(shared_figures(directory))


def _now(metrics: Iterable[Metric]) -> Now:
    alone: Counter[str] = Counter()
    upstreams: dict[str, Counter[str]] = {}
    degraded = set()
    for metric in metrics:
        for sample in metric.samples:
            if name := _ALONE.get(sample.name):
                alone[name] += sample.value  # type: ignore[assignment]  # a counter of floats
            elif name := _UPSTREAM.get(sample.name):
                # One that was never asked for has no name.
                if upstream := sample.labels["upstream"]:
                    upstreams.setdefault(upstream, Counter())[name] += int(sample.value)
            elif sample.name == "tollgate_degraded" and sample.value:
                degraded.add(sample.labels["store"])
    return Now(
        in_flight=max(0, int(alone["in_flight"])),
        queued=int(alone["queued"]),
        spool_lag_seconds=float(alone["spool_lag"]),
        degraded=tuple(sorted(degraded)),
        upstreams=tuple(
            UpstreamNow(name, found["level"], found["keys_resting"], found["requests"], found["errors"])
            for name, found in sorted(upstreams.items())
        ),
    )
