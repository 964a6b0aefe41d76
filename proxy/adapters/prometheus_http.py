"""Metrics of the public listener, beneath requests; a part of the one home of prometheus_client."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge  # noqa: TID251 - a part of their one home

from proxy.core.misuse import Cut, Malformed

__all__ = ["HttpMetrics"]


class HttpMetrics:
    """Connections, and what came over them that is no request."""

    def __init__(self, on: CollectorRegistry) -> None:
        self.malformed_requests_total = Counter(
            "tollgate_malformed_requests_total",
            "What clients sent that never became a request: no HTTP, ambiguous, or too large a head.",
            ("reason",),
            registry=on,
        )
        self.connections_cut_total = Counter(
            "tollgate_connections_cut_total",
            "Connections of clients that were too slow, or one too many.",
            ("reason",),
            registry=on,
        )
        self.open_connections = Gauge(
            "tollgate_open_connections", "Connections of clients.", multiprocess_mode="livesum", registry=on
        )
        for flaw in Malformed:
            self.malformed_requests_total.labels(flaw)
        for cut in Cut:
            self.connections_cut_total.labels(cut)

    def malformed(self, reason: Malformed) -> None:
        """Count what was refused before it became a request."""
        self.malformed_requests_total.labels(reason).inc()

    def cut(self, reason: Cut) -> None:
        """Count a connection that was ended."""
        self.connections_cut_total.labels(reason).inc()
