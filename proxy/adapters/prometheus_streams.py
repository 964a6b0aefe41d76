"""Metrics of streams whose clients have left, and of the request log; a part of the one home of prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge  # noqa: TID251 - a part of their one home

__all__ = ["StreamMetrics"]


class StreamMetrics:
    """What goes on beside the answers."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.draining_requests = Gauge(
            "tollgate_draining_requests",
            "Requests whose client has left and whose answer is read to its end.",
            multiprocess_mode="livesum",
            registry=on,
        )
        self.drains_given_up_total = Counter(
            "tollgate_drains_given_up_total",
            "Requests whose client left and whose answer was not read to its end: too many were, or it took too long.",
            ("reason",),
            registry=on,
        )
        for reason in ("full", "deadline"):
            self.drains_given_up_total.labels(reason)
        self.log_lines_dropped_total = Counter(
            "tollgate_log_lines_dropped_total",
            "Lines of the request log that were dropped because nobody read them, or that could not be written.",
            registry=on,
        )

    def drain_given_up(self, reason: str) -> None:
        """Count a request whose answer was not read to its end after its client had left."""
        self.drains_given_up_total.labels(reason).inc()
