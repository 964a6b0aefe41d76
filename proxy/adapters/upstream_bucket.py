"""Upstream's limits for one key as one bucket of all workers."""

from __future__ import annotations

from proxy.core.bucket import Admitted, Cost, NeverFits, Refused, Reservation, Scope
from proxy.core.decision import TEAM_SCOPE
from proxy.core.tiers import Limits, Schedule
from proxy.ports import Limiter

__all__ = ["SharedBucket"]

_MARGIN = 30
"""The bucket holds less than upstream's by one in so many, two seconds' worth: calls do not all take equally long to
arrive, and upstream counts them when they do."""
_LOOK_MS = 1_000


class SharedBucket:
    """A bucket of the limiter, under a name that no team can have."""

    def __init__(
        self, limiter: Limiter, name: str, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> None:
        """`name` is the same in every worker."""
        self._limiter = limiter
        # No name of a team has a colon.
        self._team = f"upstream:{name}"
        limits = Limits(
            requests_per_minute,
            tokens_per_minute,
            None if requests_per_minute is None else _less(requests_per_minute),
            None if tokens_per_minute is None else _less(tokens_per_minute),
        )
        self._scopes = (Scope(TEAM_SCOPE, Schedule(limits, limits)),)

    async def reserve(self, tokens: int) -> Reservation | int:
        """Charge one call, or say in how many milliseconds to ask again. Raises `StoreAway`.

        One that is larger than the bucket waits until that is full.
        """
        cost = Cost(1, tokens)
        decision = await self._limiter.reserve(self._team, self._scopes, cost)
        if isinstance(decision, NeverFits):
            # Of a part of the bucket, while the store is away, that is sooner.
            decision = await self._limiter.reserve(self._team, self._scopes, Cost(1, min(tokens, decision.limit)))
        match decision:
            case Admitted():
                return decision.reservation
            case Refused():
                return max(1, decision.wait_ms)
            case _:
                return _LOOK_MS

    def settle(self, reservation: Reservation, actual: Cost) -> None:
        """Put what was used in the place of what was reserved."""
        self._limiter.settle(reservation, actual)


def _less(limit: int) -> int:
    return max(1, limit - -(-limit // _MARGIN))
