"""How long one waits for limits behind others of its team: their costs come out of the same buckets first."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.bucket import UNITS, Cost, Dimension, Refused, Scope, Standing

__all__ = ["Ahead", "refusal_behind"]

Ahead = tuple[int, int]
"""Requests and tokens that others will take of a scope first."""


def refusal_behind(
    scopes: Sequence[Scope], standings: Sequence[Standing], ahead: Sequence[Ahead], cost: Cost, now_ms: int
) -> Refused | None:
    """What the limiter would say, had it admitted all that is ahead already; None: it would admit.

    `standings` are where the buckets of `scopes` stand now. A bucket that is drawn on as soon as it has room never
    fills up meanwhile, so the wait is the whole sum over the refill, which is told to the millisecond, or one more.
    What is left out: the refill that one limit wastes while another is waited for, and changes of a tier on the way.
    Both make the wait longer than this.
    """
    longest: tuple[int, Scope, int, int, int] | None = None
    for scope, standing, (requests, tokens) in zip(scopes, standings, ahead, strict=True):
        figures = scope.schedule.limits_at(now_ms).figures
        takes = (requests + max(0, cost.requests), tokens + max(0, cost.tokens))
        for which, gauge in enumerate((standing.requests, standing.tokens)):
            rate, capacity = figures[2 * which : 2 * which + 2]
            if gauge is None or not rate or not takes[which]:
                continue
            # The time until it is full was cut to whole milliseconds.
            used = 0 if gauge.remaining * UNITS >= capacity else (gauge.reset_ms + 1) * rate
            wait_ms = -(-(used + takes[which] * UNITS - capacity) // rate)
            if wait_ms > 0 and (longest is None or wait_ms > longest[0]):
                longest = (wait_ms, scope, which, rate, used)
    if longest is None:
        return None
    wait_ms, scope, which, rate, used = longest
    return Refused(
        wait_ms,
        scope.name,
        (Dimension.REQUESTS, Dimension.TOKENS)[which],
        rate,
        -(-used // UNITS),
        (cost.requests, cost.tokens)[which],
        standings[0],
    )
