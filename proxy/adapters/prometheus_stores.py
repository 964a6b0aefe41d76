"""Metrics of what stands beside the requests: stores, ledger, spool, event loop, prices; a part of `prometheus.py`."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge  # noqa: TID251 - a part of their one home

from proxy import __version__
from proxy.core.event import Outcome

__all__ = ["StoreMetrics"]

_USUAL_ERRORS = (
    *(("keys", operation) for operation in ("changes", "note_uses")),
    *(("ledger", operation) for operation in ("ship", "recover", "spent", "usage")),
    *(("spool", operation) for operation in ("end", "sync", "read", "recover")),
    ("tokenizer", "count"),
)
"""Of operations that go on beside the requests, whatever is configured."""


class StoreMetrics:
    """Declares them on a registry."""

    def __init__(self, on: CollectorRegistry) -> None:
        self._declare_stores(on)
        self._declare_ledger(on)
        for store, operation in _USUAL_ERRORS:
            self.store_errors_total.labels(store, operation)
        for outcome in (Outcome.OK, Outcome.CLIENT_GONE, Outcome.UPSTREAM_ERROR, Outcome.FAILED):
            self.estimated_usage_total.labels(outcome.value)

    def _declare_stores(self, on: CollectorRegistry) -> None:
        self.degraded = Gauge(
            "tollgate_degraded",
            "1 while a store is away and its fallback decides.",
            ("store",),
            multiprocess_mode="livemax",
            registry=on,
        )
        self.degraded_decisions_total = Counter(
            "tollgate_degraded_decisions_total",
            "Decisions made without the store, by the policy that made them.",
            ("store", "policy"),
            registry=on,
        )
        self.store_clock_steps_total = Counter(
            "tollgate_store_clock_steps_total",
            "Times a store's clock was seen to be set by two seconds or more.",
            ("store", "direction"),
            registry=on,
        )
        self.cache_failures_total = Counter(
            "tollgate_cache_failures_total",
            "Operations of the cache in Redis that came to nothing; each is a miss, never an error.",
            ("operation", "reason"),
            registry=on,
        )
        self.store_events_total = Counter(
            "tollgate_store_events_total",
            "What became of connections to a store, and of commands (posts) whose answers nobody waits for.",
            ("store", "event"),
            registry=on,
        )
        self.limiter_lost_buckets_total = Counter(
            "tollgate_limiter_lost_buckets_total", "Buckets of which Redis had lost what was used.", registry=on
        )
        self.limiter_forgotten_debts_total = Counter(
            "tollgate_limiter_forgotten_debts_total",
            "Teams whose untold use was given up for want of room.",
            registry=on,
        )
        self.store_errors_total = Counter(
            "tollgate_store_errors_total",
            "Store operations that were not carried out.",
            ("store", "operation"),
            registry=on,
        )

    def _declare_ledger(self, on: CollectorRegistry) -> None:
        self.estimated_usage_total = Counter(
            "tollgate_estimated_usage_total",
            "Requests whose tokens were counted here because upstream's count did not come.",
            ("reason",),
            registry=on,
        )
        self.spool_bytes = Gauge(
            "tollgate_spool_bytes", "Size of the spool on disk.", multiprocess_mode="livesum", registry=on
        )
        self.spool_quota_bytes = Gauge(
            "tollgate_spool_quota_bytes",
            "Size of the spool at which requests are refused rather than unmetered.",
            multiprocess_mode="livesum",
            registry=on,
        )
        self.spool_lag_seconds = Gauge(
            "tollgate_spool_lag_seconds",
            "Age of the oldest record that is not in the database.",
            multiprocess_mode="livemax",
            registry=on,
        )
        self.event_loop_lag_seconds = Gauge(
            "tollgate_event_loop_lag_seconds",
            "How late the event loop's latest tick came.",
            multiprocess_mode="livemax",
            registry=on,
        )
        self.cache_bytes = Gauge(
            "tollgate_cache_bytes", "Size of the in-process cache.", multiprocess_mode="livesum", registry=on
        )
        self.price_table_timestamp_seconds = Gauge(
            "tollgate_price_table_timestamp_seconds",
            "Day of the newest price in force at the start of the server, as seconds since 1970.",
            multiprocess_mode="max",
            registry=on,
        )
        build = Gauge(
            "tollgate_build_info",
            "A constant 1, labelled with the version.",
            ("version",),
            multiprocess_mode="max",
            registry=on,
        )
        build.labels(__version__).set(1)
