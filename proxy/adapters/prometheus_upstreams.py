"""Metrics of each upstream beside those of its calls; with `prometheus.py` a part of their one home."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge  # noqa: TID251 - a part of their one home

from proxy.core.breaker import BreakerState

__all__ = ["UpstreamMetrics"]

_LEVELS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
_REFUSALS = ("refused", "quota", "rate")
_CHILDREN = 1_000


class UpstreamMetrics:
    """How upstreams are, and what they leave to our keys; a key is told by its number and by nothing else."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.breaker_state = Gauge(
            "tollgate_breaker_state",
            "0 while an upstream is called, 2 after a run of failures, 1 while the next request tries it out.",
            ("upstream",),
            multiprocess_mode="livemax",
            registry=on,
        )
        self.breaker_openings_total = Counter(
            "tollgate_breaker_openings_total",
            "Times that a run of failures made an upstream rest.",
            ("upstream",),
            registry=on,
        )
        self.retries_refused_total = Counter(
            "tollgate_retries_refused_total",
            "Calls that were not made again because the upstream's retry budget was used up.",
            ("upstream",),
            registry=on,
        )
        self.upstream_key_refusals_total = Counter(
            "tollgate_upstream_key_refusals_total",
            "Calls that an upstream refused to one of our keys: the key, its quota or its rate.",
            ("upstream", "key", "reason"),
            registry=on,
        )
        self.upstream_keys_resting = Gauge(
            "tollgate_upstream_keys_resting",
            "Keys of an upstream that are passed over because they were refused, if only for one model.",
            ("upstream",),
            multiprocess_mode="livemax",
            registry=on,
        )
        self.upstream_remaining = Gauge(
            "tollgate_upstream_remaining",
            "What upstream last said is left of its own limit for one of our keys.",
            ("upstream", "key", "dimension"),
            multiprocess_mode="mostrecent",
            registry=on,
        )
        self._remaining: Callable[..., Gauge] = lru_cache(_CHILDREN)(self.upstream_remaining.labels)
        self._openings: dict[str, int] = {}

    def prepare(self, keys: Iterable[tuple[str, int]]) -> None:
        """Create the children of every (upstream, number of a key) at 0."""
        for upstream, key in keys:
            self.breaker_openings_total.labels(upstream)
            self.retries_refused_total.labels(upstream)
            for reason in _REFUSALS:
                self.upstream_key_refusals_total.labels(upstream, key, reason)

    def retry_refused(self, upstream: str) -> None:
        """Count a call that was not made again."""
        self.retries_refused_total.labels(upstream).inc()

    def key_refused(self, upstream: str, key: int, reason: str) -> None:
        """Count a call that was refused to one of our keys."""
        self.upstream_key_refusals_total.labels(upstream, key, reason).inc()

    def remaining(self, upstream: str, key: int, dimension: str, remaining: int) -> None:
        """Show what is left of upstream's own limit."""
        self._remaining(upstream, key, dimension).set(remaining)

    def show(self, upstream: str, state: BreakerState, openings: int, resting: int) -> None:
        """Show how an upstream is; `openings` are those of its breaker so far."""
        self.breaker_state.labels(upstream).set(_LEVELS[state])
        self.upstream_keys_resting.labels(upstream).set(resting)
        self.breaker_openings_total.labels(upstream).inc(openings - self._openings.get(upstream, 0))
        self._openings[upstream] = openings
