"""How long things take. Times are kept by endpoint, model and upstream, never by team."""

from __future__ import annotations

from rows.panels import Panel, lines
from rows.queries import MODEL, p95, quantiles

__all__ = ["latency", "team_latency"]

_NO_REQUESTS = "No requests in this range"
_NO_STREAMS = "No streams in this range"


def latency() -> list[Panel]:
    """Latency of everything."""
    return [
        lines(
            "Requests",
            "From the head of a request to the end of its answer, of all endpoints and teams: what half, 95 and 99 "
            "of 100 stay below. Dots are single requests: their ids are in the log.",
            quantiles("tollgate_request_duration_seconds"),
            "s",
            empty=_NO_REQUESTS,
            exemplars=True,
        ),
        lines(
            "First token",
            "From the head of a request to the first bytes of its streamed answer, of the chosen models.",
            quantiles("tollgate_time_to_first_token_seconds", MODEL),
            "s",
            empty=_NO_STREAMS,
            exemplars=True,
        ),
        lines(
            "Tollgate's own time",
            "What a request that went upstream took beside waiting for upstream; time in a queue is part of it.",
            quantiles("tollgate_overhead_seconds"),
            "s",
            empty=_NO_REQUESTS,
        ),
        lines(
            "Requests, by endpoint",
            "What 95 of 100 requests of each endpoint stay below.",
            [(p95("tollgate_request_duration_seconds", "endpoint"), "{{endpoint}}")],
            "s",
            empty=_NO_REQUESTS,
            width=12,
        ),
        lines(
            "Requests, by what the cache said",
            "What 95 of 100 requests stay below: hits, misses, those that shared another's answer (collapsed), and "
            "those that have nothing to do with the cache (bypass).",
            [(p95("tollgate_request_duration_seconds", "cache"), "{{cache}}")],
            "s",
            empty=_NO_REQUESTS,
            width=12,
        ),
    ]


def team_latency() -> list[Panel]:
    """Latency of what one team uses."""
    return [
        lines(
            "First token, by model",
            "From the head of a request to the first bytes of its streamed answer: what 95 of 100 stay below, of all "
            "teams that use the model. Times are not kept by team.",
            [(p95("tollgate_time_to_first_token_seconds", "model", MODEL), "{{model}}")],
            "s",
            empty=_NO_STREAMS,
            width=24,
        )
    ]
