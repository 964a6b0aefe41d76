"""Tollgate itself, its stores, its ledger."""

from __future__ import annotations

from rows.panels import Panel, lines, number, table
from rows.queries import per_hour, per_minute, per_second, total

__all__ = ["health"]

_NO_REQUESTS = "No requests in this range"
_NOT_SCRAPED = "Not scraped"
_NONE = "None"


def health() -> list[Panel]:
    """Whether something is wrong, and what."""
    return [*_of_service(), *_of_ledger(), *_over_time(), *_beside()]


def _of_service() -> list[Panel]:
    return [
        number(
            "Scraped",
            "Instances of Tollgate that Prometheus reaches.",
            'sum(up{job="tollgate"})',
            "short",
            empty="No instance is scraped",
            width=3,
        ),
        number(
            "Stores away",
            "Stores in Redis that do not answer, so that a fallback decides.",
            "sum(max by (instance, store) (tollgate_degraded))",
            "short",
            empty="None, or no Redis",
            width=3,
            steps=[("red", 1)],
        ),
        number(
            "Not served, our fault",
            "Requests of the range that failed here: by a fault of Tollgate's, for want of a store, or for having "
            "too much to do.",
            total("tollgate_requests_total", where='outcome=~"failed|unavailable"'),
            "short",
            empty=_NO_REQUESTS,
            width=3,
            steps=[("red", 1)],
        ),
        number(
            "Limits lost",
            "Limits of teams in the range of which Redis had lost what was used, so that they began anew.",
            total("tollgate_limiter_lost_buckets_total"),
            "short",
            empty=_NOT_SCRAPED,
            width=3,
            steps=[("orange", 1)],
        ),
    ]


def _of_ledger() -> list[Panel]:
    estimated, dispatched = total("tollgate_estimated_usage_total"), total("tollgate_overhead_seconds_count")
    return [
        number(
            "Charged by estimate",
            "Part of requests of the range whose tokens Tollgate counted, because upstream's count did not come.",
            f"{estimated} / ({dispatched} > 0)",
            "percentunit",
            empty=_NO_REQUESTS,
            width=3,
            steps=[("orange", 0.05)],
        ),
        number(
            "Without a price",
            "Requests of the range for a model that has no price: refused where there is a budget, else charged at "
            "nothing.",
            total("tollgate_unpriced_requests_total"),
            "short",
            empty=_NO_REQUESTS,
            width=3,
            steps=[("orange", 1)],
        ),
        number(
            "Age of the prices",
            "Since the day of the newest price in force. `tollgate prices import` lays newer ones over those shipped.",
            "time() - max(tollgate_price_table_timestamp_seconds > 0)",
            "dtdurations",
            empty="Prices have no date",
            width=3,
            steps=[("orange", 180 * 86_400)],
        ),
        number(
            "Spool used",
            "How full the disk space is that records wait in for the database. At 100 % requests are refused.",
            "max(sum by (instance) (tollgate_spool_bytes) / sum by (instance) (tollgate_spool_quota_bytes))",
            "percentunit",
            empty=_NOT_SCRAPED,
            width=3,
            steps=[("orange", 0.5), ("red", 0.8)],
        ),
    ]


def _over_time() -> list[Panel]:
    return [
        lines(
            "Late event loop",
            "How late the event loop of the slowest worker came round. Every request of that worker waits for it.",
            [("max by (instance) (tollgate_event_loop_lag_seconds)", "{{instance}}")],
            "s",
            empty=_NOT_SCRAPED,
        ),
        lines(
            "Records waiting for the database",
            "Age of the oldest record on disk that is not in the database yet. Ledger and budgets lag by so much; "
            "nothing is lost.",
            [("max by (instance) (tollgate_spool_lag_seconds)", "{{instance}}")],
            "s",
            empty=_NOT_SCRAPED,
        ),
        lines(
            "Errors of stores",
            "Operations a minute that a store did not carry out.",
            [(per_minute("tollgate_store_errors_total", "store, operation"), "{{store}} {{operation}}")],
            "short",
            empty=_NONE,
        ),
        lines(
            "Decided without Redis",
            "Decisions a second about limits that were made while Redis was away, by the policy that made them.",
            [(per_second("tollgate_degraded_decisions_total", "store, policy"), "{{store}} {{policy}}")],
            "short",
            empty="None, or no Redis",
        ),
    ]


def _beside() -> list[Panel]:
    return [
        lines(
            "Clients gone, log lines dropped",
            "Answers that are read to their end though their client has left; those that were given up; and lines of "
            "the request log that nobody read.",
            [
                ("sum(tollgate_draining_requests)", "being read"),
                (per_minute("tollgate_drains_given_up_total", "reason"), "given up a minute: {{reason}}"),
                (per_minute("tollgate_log_lines_dropped_total"), "log lines dropped a minute"),
            ],
            "short",
            empty=_NOT_SCRAPED,
        ),
        lines(
            "Warnings of budgets",
            "Warnings of teams in an hour, and tries to tell the webhook of them.",
            [
                (per_hour("tollgate_budget_warnings_total", "team"), "{{team}}"),
                (per_hour("tollgate_budget_notices_total", "result"), "webhook: {{result}}"),
            ],
            "short",
            empty="No warnings",
        ),
        lines(
            "Connections",
            "Connections of clients that are open now.",
            [("sum by (instance) (tollgate_open_connections)", "{{instance}}")],
            "short",
            empty=_NOT_SCRAPED,
            width=12,
        ),
        lines(
            "What was no request",
            "What clients sent in a minute that never became a request, and connections that were cut for being too "
            "slow or one too many.",
            [
                (per_minute("tollgate_malformed_requests_total", "reason"), "no request: {{reason}}"),
                (per_minute("tollgate_connections_cut_total", "reason"), "cut: {{reason}}"),
            ],
            "short",
            empty=_NOT_SCRAPED,
            width=12,
        ),
        table(
            "Versions",
            "Which version runs where.",
            [("Running", "count by (instance, version) (tollgate_build_info)", "short")],
            "short",
            empty=_NOT_SCRAPED,
            width=24,
            link=False,
        ),
    ]
