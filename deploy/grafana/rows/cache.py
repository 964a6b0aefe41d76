"""What is answered without asking upstream."""

from __future__ import annotations

from rows.panels import Panel, bars, lines, number
from rows.queries import TEAM, TEAM_MODEL, join, most, per_minute, per_second, total

__all__ = ["cache", "team_cache"]

_NO_REQUESTS = "No requests in this range"
_LOOKED_UP = "tollgate_cache_requests_total"


def cache() -> list[Panel]:
    """The cache, of all teams."""
    return [
        *_figures(6),
        number(
            "Shared in range",
            "Requests that were answered with what another one fetched at the same time.",
            total(_LOOKED_UP, where=join('result="collapsed"', TEAM)),
            "short",
            empty=_NO_REQUESTS,
            width=6,
        ),
        number(
            "In memory",
            "What answers take in the processes of Tollgate. Those in Redis are in `tollgate cache stats`.",
            "sum(tollgate_cache_bytes)",
            "bytes",
            empty="Not scraped",
            width=6,
        ),
        *_over_time(),
        lines(
            "Trouble with the cache in Redis",
            "Operations a minute that came to nothing. Each was a miss to the request, never an error.",
            [(per_minute("tollgate_cache_failures_total", "operation, reason"), "{{operation}}: {{reason}}")],
            "short",
            empty="None, or no cache in Redis",
            width=24,
        ),
    ]


def team_cache() -> list[Panel]:
    """The cache, of one team."""
    return [*_figures(12), *_over_time()]


def _figures(width: int) -> list[Panel]:
    answered = total(_LOOKED_UP, where=join('result=~"hit|collapsed"', TEAM))
    return [
        number(
            "Hit ratio in range",
            "Part of requests that were answered without a call of their own: from the cache, or with what another "
            "request fetched at the time.",
            f"{answered} / ({total(_LOOKED_UP, where=TEAM)} > 0)",
            "percentunit",
            empty=_NO_REQUESTS,
            width=width,
        ),
        number(
            "Tokens saved in range",
            "Input and output tokens of answers that were not asked for again.",
            total("tollgate_saved_tokens_total", where=TEAM_MODEL),
            "short",
            empty="Nothing saved in this range",
            width=width,
        ),
    ]


def _over_time() -> list[Panel]:
    return [
        lines(
            "What the cache said",
            "Requests a second. hit: from the cache; collapsed: shared with a request under way; miss: asked for, "
            "and kept where it may be; bypass: nothing that could be kept.",
            [(per_second(_LOOKED_UP, "result", TEAM), "{{result}}")],
            "reqps",
            empty=_NO_REQUESTS,
            width=12,
            stacked=True,
        ),
        bars(
            "Why it was no hit",
            "Requests in the time range that were not answered from the cache, by the reason that `Cache-Status` "
            "gives.",
            (most(_LOOKED_UP, "reason", join('result=~"miss|bypass"', TEAM)), "{{reason}}"),
            "short",
            empty=_NO_REQUESTS,
            width=12,
        ),
    ]
