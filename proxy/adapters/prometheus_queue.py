"""Metrics of those who wait for a turn; with `prometheus.py` a part of their one home."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram  # noqa: TID251 - a part of their one home

from proxy.core.fair_queue import QueueRefusal

__all__ = ["LIMITS", "UPSTREAM", "QueueMetrics"]

LIMITS = "limits"
"""The queue of requests that wait for limits to have room."""
UPSTREAM = "upstream"
"""The queue of calls that wait for upstream's pace."""
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)


class QueueMetrics:
    """How many wait, for how long, and who is not let in."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.queued_requests = Gauge(
            "tollgate_queued_requests",
            "Requests that wait for their turn: for limits to have room, or for the pace of upstream.",
            ("queue",),
            multiprocess_mode="livesum",
            registry=on,
        )
        self.queue_wait_seconds = Histogram(
            "tollgate_queue_wait_seconds",
            "How long those waited that had to, whatever came of it.",
            ("queue",),
            buckets=_SECONDS,
            registry=on,
        )
        self.queue_refusals_total = Counter(
            "tollgate_queue_refusals_total",
            "Requests that were ready to wait and were not let in, or were let go of unserved.",
            ("queue", "reason"),
            registry=on,
        )
        self.limits, self.upstream = _Watch(self, LIMITS), _Watch(self, UPSTREAM)

    def show(self, limits: int, upstream: int) -> None:
        """Show how many wait now."""
        self.queued_requests.labels(LIMITS).set(limits)
        self.queued_requests.labels(UPSTREAM).set(upstream)


class _Watch:
    """`ports.QueueWatch` of one queue."""

    __slots__ = ("_refusals", "_wait_seconds")

    def __init__(self, metrics: QueueMetrics, queue: str) -> None:
        metrics.queued_requests.labels(queue).set(0)
        self._wait_seconds = metrics.queue_wait_seconds.labels(queue)
        self._refusals = {reason: metrics.queue_refusals_total.labels(queue, reason.value) for reason in QueueRefusal}

    def waited(self, seconds: float) -> None:
        """Count one that waited."""
        self._wait_seconds.observe(seconds)

    def refused(self, reason: QueueRefusal) -> None:
        """Count one that was not served."""
        self._refusals[reason].inc()
