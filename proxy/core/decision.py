"""What a limiter is asked and what it answers: records, and how they are made of an engine's plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from proxy.core.budget import Cap, Spend
from proxy.core.tiers import Schedule

__all__ = [
    "ADMITTED",
    "NEVER_FITS",
    "PARALLEL_WAIT_MS",
    "REFUSED",
    "TEAM_SCOPE",
    "Admitted",
    "Cost",
    "Decision",
    "Dimension",
    "Gauge",
    "Handle",
    "NeverFits",
    "OverBudget",
    "Refused",
    "Reservation",
    "Scope",
    "Standing",
    "decision",
    "standing",
]

ADMITTED, REFUSED, NEVER_FITS = range(3)
"""First number of an answer."""

PARALLEL_WAIT_MS = 1_000
"""What is told to a request that finds every place taken: when one falls free cannot be known."""


TEAM_SCOPE = "team"
"""Name of the scope that is a team's own; always the first."""


class Dimension(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    PARALLEL = "parallel"
    """Requests under way at one time: admitted and not yet settled."""


_DIMENSIONS = (Dimension.REQUESTS, Dimension.TOKENS, Dimension.PARALLEL)


class Cost(msgspec.Struct, frozen=True, gc=False):
    """What a request takes from a bucket, in whole requests and tokens; a negative count takes nothing."""

    requests: int
    tokens: int


class Scope(msgspec.Struct, frozen=True, gc=False):
    """One bucket a request must pass, and how many may be under way at one time.

    `name` is its identity within the team: `team`, `key:<kid>`, `model:<name>`, `shadow`.
    """

    name: str
    schedule: Schedule
    max_parallel: int | None = None
    """Places. A reservation of at least one request takes one until it is settled; None: no limit, nothing counted."""

    def places_for(self, cost: Cost) -> int:
        """Places a reservation of `cost` takes here: one or none."""
        return 1 if self.max_parallel is not None and cost.requests > 0 else 0


# What is made for every request is a struct, which takes a fifth of the time that a frozen dataclass does. None can be
# part of a cycle, so the collector need not look at them.


class Gauge(msgspec.Struct, frozen=True, gc=False):
    """Where one dimension of one bucket stands.

    `reset_ms` is the time until it is full again, cut to whole milliseconds as the OpenAI API cuts it in
    `x-ratelimit-reset-*`: up to one later it is full, and 0 may be less than one to go.
    """

    limit: int
    remaining: int
    reset_ms: int


class Standing(msgspec.Struct, frozen=True, gc=False):
    """Where a bucket stands; None for a dimension without a limit."""

    requests: Gauge | None = None
    tokens: Gauge | None = None


class Handle(msgspec.Struct, eq=False, gc=False):
    """What settlement needs to know of one scope's reservation; opaque outside the limiter.

    In bucket units, as of the reservation: what had been removed in all, and the level just after it (-1: the
    dimension was without limit and nothing was charged). Compared by identity, and the one record here that changes:
    `settled` is marked by the engine, so that a reservation counts once however often it is handed in.
    """

    epoch: int = 0
    removed_requests: int = 0
    level_requests: int = -1
    removed_tokens: int = 0
    level_tokens: int = -1
    settled: bool = False


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """An admitted cost, to be settled once with what was really used."""

    team: str
    scopes: tuple[Scope, ...]
    cost: Cost
    handles: tuple[Handle, ...]
    spend: Spend | None = None
    minutes: tuple[int, ...] = ()
    """Of each cap of `spend`: the minute of its account that was reserved into."""
    epochs: tuple[int, ...] = ()
    """Of each cap of `spend`: the epoch of its account."""


class Admitted(msgspec.Struct, frozen=True, gc=False):
    """Every scope had room, and was charged."""

    reservation: Reservation
    standing: Standing
    """Of the first scope, after the charge."""
    reached: tuple[Cap, ...] = ()
    """Budgets whose warning is reached, and this was the first request of all to find it so."""


class Refused(msgspec.Struct, frozen=True, gc=False):
    """At least one scope had no room; nothing was changed in any."""

    wait_ms: int
    """Admitted after this many milliseconds of quiet, and not one earlier; for `PARALLEL` a guess."""
    scope: str
    """The scope that asks for the longest wait, and its dimension."""
    dimension: Dimension
    limit: int
    """Per minute; at one time for `PARALLEL`."""
    used: int
    """Rounded up, so that `used + requested` is above the capacity whenever it is refused for that."""
    requested: int
    standing: Standing


class NeverFits(msgspec.Struct, frozen=True, gc=False):
    """The cost is above a scope's capacity; waiting does not help; nothing was changed."""

    scope: str
    dimension: Dimension
    limit: int
    """Capacity of the bucket."""
    requested: int
    standing: Standing


class OverBudget(msgspec.Struct, frozen=True, gc=False):
    """The request might cost more than a budget has left; nothing was changed in any, nor in any bucket."""

    cap: Cap
    used_nano_usd: int
    """Spent and reserved in the span."""
    requested_nano_usd: int
    standing: Standing


Decision = Admitted | Refused | NeverFits | OverBudget


def standing(numbers: Sequence[int]) -> Standing:
    """A standing of six numbers: limit per minute (0: none), remaining and reset_ms of requests, then of tokens."""
    limit_r, remaining_r, reset_r, limit_t, remaining_t, reset_t = numbers
    return Standing(
        Gauge(limit_r, remaining_r, reset_r) if limit_r else None,
        Gauge(limit_t, remaining_t, reset_t) if limit_t else None,
    )


def decision(team: str, scopes: Sequence[Scope], cost: Cost, answer: Sequence[int]) -> Admitted | Refused | NeverFits:
    """The decision an engine's answer about buckets stands for.

    An answer is a flat list of integers: status, the six numbers of the first scope's standing, and

    * `ADMITTED`: five numbers of each scope's handle, in the order of its fields;
    * `REFUSED`: wait_ms, index of the binding scope, its dimension (0 requests, 1 tokens, 2 parallel), its limit, used;
    * `NEVER_FITS`: index of the scope, dimension, capacity.

    Where places are counted is the engine's own affair. One that keeps a lease with an expiry for each reservation
    (members of a sorted set, say) drops what has expired, counts the rest, and once every bucket has room answers for
    the first scope with no place free: `REFUSED`, the standing uncharged, `PARALLEL_WAIT_MS`, the scope's index, 2, its
    `max_parallel`, the leases counted. It adds its leases, one in each scope with a `max_parallel`, in the same atomic
    step as the charge, and drops them at settlement. An admission's answer does not speak of them.
    """
    status = answer[0]
    stands = standing(answer[1:7])
    if status == ADMITTED:
        handles: tuple[Handle, ...] = (Handle(answer[7], answer[8], answer[9], answer[10], answer[11]),)
        if len(answer) > 12:
            handles += tuple(map(Handle, answer[12::5], answer[13::5], answer[14::5], answer[15::5], answer[16::5]))
        return Admitted(Reservation(team, tuple(scopes), cost, handles), stands)
    if status == REFUSED:
        wait_ms, index, which, limit, used = answer[7:]
        requested = (cost.requests, cost.tokens, 1)[which]
        return Refused(wait_ms, scopes[index].name, _DIMENSIONS[which], limit, used, requested, stands)
    index, which, capacity = answer[7:]
    requested = cost.tokens if which else cost.requests
    return NeverFits(scopes[index].name, _DIMENSIONS[which], capacity, requested, stands)
