"""Who asks for how much, who is refused, who waits."""

from __future__ import annotations

from rows.panels import Panel, bars, lines
from rows.queries import TEAM, TEAM_MODEL, join, most, p95, per_minute, per_second

__all__ = ["team_traffic", "traffic"]

_NO_REQUESTS = "No requests in this range"
_NONE = "None"


def traffic() -> list[Panel]:
    """Traffic of all teams."""
    return [
        _requests(),
        _tokens(),
        _refused(),
        lines(
            "Refused, by team",
            "Requests a minute answered 429, of the ten teams with most. Click a line for the page of its team.",
            [(f"topk(10, {per_minute('tollgate_rate_limited_total', 'team', TEAM)})", "{{team}}")],
            "short",
            empty=_NONE,
            link=True,
        ),
        _limits_used("{{team}} {{dimension}}"),
        *_queues(),
        lines(
            "Tiers on trial",
            "Requests a minute that the tier a team is tried on would have refused. Nothing was refused.",
            [(per_minute("tollgate_shadow_limited_total", "team", TEAM), "{{team}}")],
            "short",
            empty="No tier on trial",
            width=24,
        ),
    ]


def team_traffic() -> list[Panel]:
    """Traffic of one team."""
    answered = join('outcome=~"ok|cached"', TEAM_MODEL)
    return [
        _requests(),
        _tokens(),
        _refused(),
        _limits_used("{{dimension}}"),
        bars(
            "Answers by model",
            "Requests of the time range that were answered, by upstream or from the cache.",
            (most("tollgate_requests_total", "model", answered), "{{model}}"),
            "short",
            empty=_NO_REQUESTS,
        ),
    ]


def _requests() -> Panel:
    return lines(
        "Requests by outcome",
        "Requests a second. ok: answered by upstream; cached: from the cache or shared with another request; "
        "limited: over a limit or a budget; rejected: not a request that can be served; client_gone: the client "
        "left; upstream_error: upstream failed; unavailable: too much to do, or a store away; failed: a fault of "
        "Tollgate's.",
        [(per_second("tollgate_requests_total", "outcome", TEAM_MODEL), "{{outcome}}")],
        "reqps",
        empty=_NO_REQUESTS,
        width=12,
        stacked=True,
        exemplars=True,
    )


def _tokens() -> Panel:
    return lines(
        "Tokens per minute",
        "Tokens that were paid for. cached_input is the part of input that upstream had cached, reasoning the part "
        "of output that nobody sees; both are counted in these already.",
        [(per_minute("tollgate_tokens_total", "kind", TEAM_MODEL), "{{kind}}")],
        "short",
        empty=_NO_REQUESTS,
        width=12,
    )


def _refused() -> Panel:
    return lines(
        "Refused, by limit",
        "Requests a minute answered 429: over requests or tokens a minute, over requests at one time (parallel), or "
        "over a budget.",
        [(per_minute("tollgate_rate_limited_total", "limit", TEAM), "{{limit}}")],
        "short",
        empty=_NONE,
    )


def _limits_used(legend: str) -> Panel:
    return lines(
        "Limits used",
        "Used part of a team's limits when its latest request was admitted: at 100 % the next one has to wait. The "
        "ten fullest.",
        [(f"topk(10, max by (team, dimension) (tollgate_limit_used_ratio{{{TEAM}}}))", legend)],
        "percentunit",
        empty="No limits in use",
    )


def _queues() -> list[Panel]:
    return [
        lines(
            "In flight and waiting",
            "Requests being served now, and those of them that wait: for limits to have room, or for the pace of "
            "upstream.",
            [
                ("sum(tollgate_in_flight_requests)", "in flight"),
                ("sum by (queue) (tollgate_queued_requests)", "waiting for {{queue}}"),
            ],
            "short",
            empty="Not scraped",
        ),
        lines(
            "Time in a queue",
            "What 95 of 100 waited, of those that had to wait.",
            [(p95("tollgate_queue_wait_seconds", "queue"), "for {{queue}}")],
            "s",
            empty="Nobody waited",
        ),
        lines(
            "Not served from a queue",
            "Requests a minute that were ready to wait and were not let in, or were let go of unserved.",
            [(per_minute("tollgate_queue_refusals_total", "queue, reason"), "{{queue}}: {{reason}}")],
            "short",
            empty=_NONE,
        ),
    ]
