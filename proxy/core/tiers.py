"""Tiers: which limits hold at an instant.

A tier is data, a list of phases; a team passes through them from the moment it was put on the tier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType

__all__ = ["DEFAULT_TIERS", "LARGEST_LIMIT", "UNITS", "Figures", "Limits", "Phase", "Schedule", "Tier"]

UNITS = 60_000
"""Bucket units in one request or token: the milliseconds of a minute, so that a limit per minute is units per ms."""
LARGEST_LIMIT = 10_000_000_000
"""The highest rate and capacity: their units, and sums of a few, stay exact in a double."""

Figures = tuple[int, int, int, int]
"""Request rate (units/ms), request capacity (units), token rate, token capacity; a rate of 0 is without limit."""


class _Memo:
    """Room for what is derived once; not a field, so neither compared nor written out."""

    __slots__ = ("figures",)
    figures: Figures
    """The same limits as plain integers in bucket units."""


@dataclass(frozen=True, slots=True)
class Limits(_Memo):
    """The two rates of a bucket and its burst; None means unlimited.

    A capacity of None is one minute's worth of the rate; a capacity without a rate counts for nothing. Over any span
    of T minutes a bucket lets at most `capacity + rate x T` pass. Raises ValueError for a number outside
    1..`LARGEST_LIMIT`.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    request_capacity: int | None = None
    token_capacity: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "request_capacity", "token_capacity"):
            number = getattr(self, name)
            if number is not None and not 1 <= number <= LARGEST_LIMIT:
                raise ValueError(f"{name} must be between 1 and {LARGEST_LIMIT}, not {number}")
        figures = (
            self.requests_per_minute or 0,
            (self.effective_request_capacity or 0) * UNITS,
            self.tokens_per_minute or 0,
            (self.effective_token_capacity or 0) * UNITS,
        )
        object.__setattr__(self, "figures", figures)

    def __reduce__(self) -> tuple[type[Limits], tuple[int | None, ...]]:
        return Limits, (self.requests_per_minute, self.tokens_per_minute, self.request_capacity, self.token_capacity)

    @property
    def effective_request_capacity(self) -> int | None:
        """Requests a full bucket holds; None without a limit."""
        return None if self.requests_per_minute is None else self.request_capacity or self.requests_per_minute

    @property
    def effective_token_capacity(self) -> int | None:
        """Tokens a full bucket holds; None without a limit."""
        return None if self.tokens_per_minute is None else self.token_capacity or self.tokens_per_minute

    def overridden_by(self, own: Limits | None) -> Limits:
        """These limits with each number that `own` has in its place.

        A rate of its own brings one minute of itself as capacity unless `own` has a capacity too: the burst was chosen
        for the rate that is replaced.
        """
        return self if own is None else _overridden(self, own)


@lru_cache(maxsize=4_096)
def _overridden(limits: Limits, own: Limits) -> Limits:
    """See `Limits.overridden_by`; remembered, since it is asked for with every request of a team."""
    requests, request_capacity = limits.requests_per_minute, limits.request_capacity
    tokens, token_capacity = limits.tokens_per_minute, limits.token_capacity
    if own.requests_per_minute is not None:
        requests, request_capacity = own.requests_per_minute, None
    if own.tokens_per_minute is not None:
        tokens, token_capacity = own.tokens_per_minute, None
    return Limits(requests, tokens, own.request_capacity or request_capacity, own.token_capacity or token_capacity)


@dataclass(frozen=True, slots=True)
class Phase:
    """Limits that hold for `lasts_ms` milliseconds, or from then on when None."""

    limits: Limits
    lasts_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """Limits around a switch, so that the store's clock decides which side of it a request is on.

    `before` holds at every instant < `switch_at_ms`, `after` from that millisecond on. No switch: `before` holds.
    """

    before: Limits
    after: Limits
    switch_at_ms: int | None = None

    def limits_at(self, now_ms: int) -> Limits:
        """The limits that hold at `now_ms` (unix milliseconds)."""
        if self.switch_at_ms is not None and now_ms >= self.switch_at_ms:
            return self.after
        return self.before


class _TierMemo:
    """Likewise for a tier."""

    __slots__ = ("ends_after_ms", "schedules")
    ends_after_ms: tuple[int, ...]
    """When each phase but the last is over, from the beginning of the first."""
    schedules: dict[tuple[int, int, Limits | None], Schedule]
    """By begin, number of the switch, and override: asked for with every request of a team."""


_MOST_SCHEDULES = 65_536


@dataclass(frozen=True, slots=True)
class Tier(_TierMemo):
    """A named list of phases; the last one is without end.

    Raises ValueError without phases, when a phase before the last has no positive duration, or the last has one.
    """

    name: str
    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError(f"tier {self.name!r} has no phase")
        if self.phases[-1].lasts_ms is not None:
            raise ValueError(f"the last phase of tier {self.name!r} must be without end")
        if any(phase.lasts_ms is None or phase.lasts_ms <= 0 for phase in self.phases[:-1]):
            raise ValueError(f"every phase of tier {self.name!r} but the last must last a positive time")
        ends = tuple(accumulate(phase.lasts_ms or 0 for phase in self.phases[:-1]))
        object.__setattr__(self, "ends_after_ms", ends)
        object.__setattr__(self, "schedules", {})

    def __reduce__(self) -> tuple[type[Tier], tuple[str, tuple[Phase, ...]]]:
        return Tier, (self.name, self.phases)

    def schedule(self, since_ms: int, now_ms: int, override: Limits | None = None) -> Schedule:
        """The limits at `now_ms` for a team put on the tier at `since_ms`, and the switch nearest to `now_ms`.

        The nearest switch may lie in the past: a store whose clock is behind the caller's, and a bucket last touched
        before the switch, still need the limits that held then. The result stays true until half of the phase after
        the switch is over. Each number of `override` takes the place of the tier's, on both sides.
        """
        ends = self.ends_after_ms
        switch = 0 if len(ends) < 2 else min(range(len(ends)), key=lambda index: abs(since_ms + ends[index] - now_ms))
        asked = since_ms, switch, override
        known = self.schedules.get(asked)
        return self._remember(asked, self._around(*asked)) if known is None else known

    def _around(self, since_ms: int, switch: int, override: Limits | None) -> Schedule:
        before, *after = (phase.limits.overridden_by(override) for phase in self.phases[switch : switch + 2])
        return Schedule(before, after[0], since_ms + self.ends_after_ms[switch]) if after else Schedule(before, before)

    def _remember(self, asked: tuple[int, int, Limits | None], schedule: Schedule) -> Schedule:
        if len(self.schedules) >= _MOST_SCHEDULES:
            self.schedules.clear()
        self.schedules[asked] = schedule
        return schedule


def _default_tiers() -> Mapping[str, Tier]:
    first_48_hours_ms = 48 * 60 * 60 * 1_000
    tiers = (
        Tier("free", (Phase(Limits(20, 40_000)),)),
        Tier("payg", (Phase(Limits(60, 60_000), first_48_hours_ms), Phase(Limits(3_500, 90_000)))),
        Tier("unlimited", (Phase(Limits()),)),
    )
    return MappingProxyType({tier.name: tier for tier in tiers})


DEFAULT_TIERS = _default_tiers()
"""The documented tiers by name; an operator's own join or replace them."""
