"""Metrics and the request log behind one port."""

from __future__ import annotations

from proxy.adapters.logs import RequestLog
from proxy.adapters.prometheus import Metrics
from proxy.core.record import RequestRecord
from proxy.core.refusals import RecentRefusals

__all__ = ["Telemetry"]


class Telemetry:
    """Keeps the promises of `ports.Telemetry`."""

    def __init__(self, metrics: Metrics, log: RequestLog, refusals: RecentRefusals | None = None) -> None:
        self.started = metrics.started
        self.retried = metrics.retried
        self.upstream_failed = metrics.upstream_failed
        self.retry_refused = metrics.upstreams.retry_refused
        self.key_refused = metrics.upstreams.key_refused
        self.upstream_remaining = metrics.upstreams.remaining
        self.store_failed = metrics.store_failed
        self._count = metrics.finished
        self._write = log.write
        self._note = (refusals or RecentRefusals()).note

    def finished(self, record: RequestRecord) -> None:
        """Count and log a request, and keep it for people if it was refused."""
        self._count(record)
        self._write(record)
        self._note(record)
