"""A worker's own bucket of one scope, and what of it the store has not been told."""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.core import bucket
from proxy.core.bucket import UNITS, Cost, Scope, State
from proxy.core.share import Part, owing

__all__ = ["Held", "give", "owed", "raise_to", "widen"]


@dataclass(slots=True)
class Held:
    """A worker's bucket of one scope."""

    whole: Scope
    own: Scope
    part: Part
    state: State
    given: list[int] = field(default_factory=lambda: [0, 0])
    """Requests and tokens used here that the store has not been told of."""
    told: int = 0
    """How often the store was told."""


def give(held: Held, requests: int, tokens: int) -> None:
    """Note what was used here, or take it back."""
    held.given = [max(0, held.given[0] + requests), max(0, held.given[1] + tokens)]


def owed(held: Held, now_ms: int) -> Cost:
    """What the store is to be charged with for this bucket, rounded up."""
    state, own = bucket.advance(held.state, held.own.schedule, now_ms)
    whole = held.whole.schedule.limits_at(now_ms).figures
    requests, tokens = (
        owing(own[at], own[at + 1], (whole[at], whole[at + 1]), held.part, state[2 + at], held.given[at // 2] * UNITS)
        if whole[at]
        else 0
        for at in (0, 2)
    )
    return Cost(-(-requests // UNITS), -(-tokens // UNITS))


def widen(held: Held, own: Scope, now_ms: int) -> None:
    """Count as used what a bucket holds more from now on: nobody has saved it up."""
    before, after = (scope.schedule.limits_at(now_ms).figures for scope in (held.own, own))
    _add(held, max(0, after[1] - before[1]), max(0, after[3] - before[3]), now_ms)


def raise_to(held: Held, least: State, now_ms: int) -> None:
    """Count as much as used as `least` says, at least."""
    state, _ = bucket.advance(held.state, held.own.schedule, now_ms)
    _add(held, max(0, least[2] - state[2]), max(0, least[4] - state[4]), now_ms)


def _add(held: Held, requests: int, tokens: int, now_ms: int) -> None:
    """Count units as used that nobody has used here."""
    (epoch, at_ms, used_r, removed_r, used_t, removed_t), _ = bucket.advance(held.state, held.own.schedule, now_ms)
    held.state = (epoch, at_ms, used_r + requests, removed_r, used_t + tokens, removed_t)
