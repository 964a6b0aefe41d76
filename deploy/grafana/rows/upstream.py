"""What upstream does."""

from __future__ import annotations

from rows.panels import Panel, lines, states
from rows.queries import p95, per_minute, per_second

__all__ = ["upstream"]

_NO_REQUESTS = "No requests in this range"
_NONE = "None"
_CALLS = (
    f"({per_second('tollgate_upstream_duration_seconds_count', 'upstream')}"
    f" + {per_second('tollgate_retries_total', 'upstream')})"
)
"""One for each request, and one for each time it was sent again."""


def upstream() -> list[Panel]:
    """Errors, retries, breakers, and what is left."""
    return [
        lines(
            "Errors, by kind",
            "Calls a minute that gave no usable answer: status_ and upstream's status, or unreachable, timeout, "
            "broken (the connection), content (not what the protocol promises).",
            [(per_minute("tollgate_upstream_errors_total", "upstream, kind"), "{{upstream}} {{kind}}")],
            "short",
            empty=_NONE,
        ),
        lines(
            "Errors, of all calls",
            "Part of the calls to each upstream that gave no usable answer.",
            [(f"{per_second('tollgate_upstream_errors_total', 'upstream')} / {_CALLS}", "{{upstream}}")],
            "percentunit",
            empty=_NO_REQUESTS,
        ),
        lines(
            "Waiting for upstream",
            "What 95 of 100 requests waited for each upstream, calls that were made again included.",
            [(p95("tollgate_upstream_duration_seconds", "upstream"), "{{upstream}}")],
            "s",
            empty=_NO_REQUESTS,
        ),
        lines(
            "Calls made again",
            "Calls a minute that were made again, and those that were not because too many were made again already.",
            [
                (per_minute("tollgate_retries_total", "upstream, reason"), "{{upstream}} {{reason}}"),
                (per_minute("tollgate_retries_refused_total", "upstream"), "{{upstream}} given up"),
            ],
            "short",
            empty=_NONE,
        ),
        states(
            "Breakers",
            "Whether each upstream is called. After a run of failures it rests; then one request tries it out.",
            ("max by (upstream) (tollgate_breaker_state)", "{{upstream}}"),
            [("called", "green"), ("tried out", "orange"), ("rests", "red")],
            empty="Not scraped",
        ),
        lines(
            "Left of upstream's own limits",
            "Requests and tokens that upstream last said are left, for the key with the fewest.",
            [("min by (upstream, dimension) (tollgate_upstream_remaining)", "{{upstream}} {{dimension}}")],
            "short",
            empty="Upstream does not say",
        ),
        lines(
            "Keys refused",
            "Calls a minute that an upstream refused to one of our keys: the key itself, its quota, or its rate; and "
            "how many keys are passed over for that now.",
            [
                (
                    per_minute("tollgate_upstream_key_refusals_total", "upstream, key, reason"),
                    "{{upstream}} key {{key}}: {{reason}}",
                ),
                ("max by (upstream) (tollgate_upstream_keys_resting)", "{{upstream}} keys resting"),
            ],
            "short",
            empty=_NONE,
            width=24,
        ),
    ]
