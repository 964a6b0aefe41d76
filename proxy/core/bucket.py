"""Token-bucket arithmetic in exact integers (interface types; arithmetic follows)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from proxy.core.tiers import Schedule

__all__ = [
    "Admitted",
    "Cost",
    "Decision",
    "Dimension",
    "Gauge",
    "Handle",
    "NeverFits",
    "Refused",
    "Reservation",
    "Scope",
    "Standing",
]


class Dimension(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class Cost:
    """What a request takes from a bucket, in whole requests and tokens."""

    requests: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Scope:
    """One bucket a request must pass; `name` is its identity within the team (`team`, `key:<kid>`, `model:<name>`)."""

    name: str
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Gauge:
    """Where one dimension of one bucket stands: `reset_ms` is the time until it is full again."""

    limit: int
    remaining: int
    reset_ms: int


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a bucket stands; None for a dimension without a limit."""

    requests: Gauge | None = None
    tokens: Gauge | None = None


@dataclass(frozen=True, slots=True)
class Handle:
    """What settlement needs to know of one scope's reservation; opaque outside the limiter."""

    # Fields are the limiter's own (epoch, removed totals and levels at reservation).


@dataclass(frozen=True, slots=True)
class Reservation:
    """An admitted cost, to be settled once with what was really used."""

    team: str
    scopes: tuple[Scope, ...]
    cost: Cost
    handles: tuple[Handle, ...]


@dataclass(frozen=True, slots=True)
class Admitted:
    """Every scope had room, and was charged."""

    reservation: Reservation
    standing: Standing
    """Of the first scope, after the charge."""


@dataclass(frozen=True, slots=True)
class Refused:
    """At least one scope had no room; nothing was changed in any."""

    wait_ms: int
    """Admitted after this many milliseconds of quiet, and not one earlier."""
    scope: str
    dimension: Dimension
    limit: int
    """Per minute."""
    used: int
    requested: int
    standing: Standing


@dataclass(frozen=True, slots=True)
class NeverFits:
    """The cost is above a scope's capacity; waiting does not help; nothing was changed."""

    scope: str
    dimension: Dimension
    limit: int
    """Capacity of the bucket."""
    requested: int
    standing: Standing


Decision = Admitted | Refused | NeverFits
