"""Who decides while the limiter's store is away.

What the limiter hands over has failed for good: definite failures that can be mended (an unknown script, a redirection)
were sent again below. A `Definite` failure means that the store has charged nothing; an `Indefinite` one that it may
have, and that nothing was given in return: such a charge decays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from proxy.adapters.redis.outcomes import RedisFailure
from proxy.core.bucket import Cost, Decision, NeverFits, Refused, Reservation, Scope, Standing
from proxy.core.errors import StoreAway
from proxy.core.share import Away

__all__ = ["LIMITER_STORE", "Closed", "Fallback", "Presence", "Unwatched"]

LIMITER_STORE = "limiter"
"""The store's name in errors and metrics."""


class Presence(Protocol):
    """Hears with every answer, and with every one that does not come, whether the store is there."""

    def answered(self) -> None:
        """The store is there."""
        ...

    def silent(self) -> None:
        """It is not, and the fallback has to decide."""
        ...


class Unwatched:
    """Nobody hears."""

    def answered(self) -> None:
        """Tell nobody."""

    def silent(self) -> None:
        """Tell nobody."""


class Fallback(Protocol):
    """A policy for a store that is away. Waits for nothing but its own process."""

    def __contains__(self, team: str) -> bool:
        """Whether it has counted anything of a team that the store has not been told."""
        ...

    def seen(self, team: str, scopes: Sequence[Scope], decision: Decision, *, overtaken: bool) -> None:
        """Hear what the store has decided; `overtaken` when it was charged meanwhile and may not have known of it."""
        ...

    def charged(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Hear that the store is charged without being asked."""
        ...

    def ask_with(self, scopes: Sequence[Scope], cost: Cost, away: Away) -> Sequence[Scope] | Refused | None:
        """The scopes as a store is to be asked that was away a moment ago, or what is answered; None: it is away."""
        ...

    def told(
        self, scopes: Sequence[Scope], asked: Sequence[Scope], decision: Refused | NeverFits
    ) -> Refused | NeverFits:
        """What is answered where the store had no room as it was asked."""
        ...

    def untold(self) -> tuple[str, ...]:
        """Every team of which it has counted something that the store has not been told."""
        ...

    def owed(self, team: str) -> Iterable[tuple[Scope, Cost]]:
        """Give up what it has counted of a team, now that the store is back: it is charged with this."""
        ...

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> Decision:
        """Decide in the store's place, or raise `StoreAway`."""
        ...

    def settle(self, reservation: Reservation, actual: Cost) -> bool:
        """Settle a reservation that this policy admitted; False for one it did not."""
        ...

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> bool:
        """Count a charge the store has not been told, to be given up with `owed`; False where it does not."""
        ...

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:
        """Where each scope stands, as far as this policy knows."""
        ...


class Closed:
    """Nothing passes that nobody counts."""

    def __contains__(self, team: str) -> bool:
        """Tell that it has counted nothing."""
        return False

    def seen(self, team: str, scopes: Sequence[Scope], decision: Decision, *, overtaken: bool) -> None:
        """Nothing to do: it keeps no buckets."""

    def charged(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Nothing to do: it keeps no buckets."""

    def ask_with(self, scopes: Sequence[Scope], cost: Cost, away: Away) -> Sequence[Scope]:  # noqa: ARG002 - nobody else gives
        """Leave them as they are."""
        return scopes

    def told(
        self,
        scopes: Sequence[Scope],  # noqa: ARG002 - as above
        asked: Sequence[Scope],  # noqa: ARG002 - as above
        decision: Refused | NeverFits,
    ) -> Refused | NeverFits:
        """Leave it as it is."""
        return decision

    def untold(self) -> tuple[str, ...]:
        """Name nobody."""
        return ()

    def owed(self, team: str) -> Iterable[tuple[Scope, Cost]]:  # noqa: ARG002 - whatever was asked
        """Give nothing."""
        return ()

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> Decision:  # noqa: ARG002 - whatever was asked
        """Raise `StoreAway`."""
        raise StoreAway(LIMITER_STORE, "reserve") from failure

    def settle(self, reservation: Reservation, actual: Cost) -> bool:  # noqa: ARG002 - as above
        """Tell that it admitted nothing."""
        return False

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> bool:  # noqa: ARG002 - it keeps no buckets
        """Count nothing."""
        return False

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:  # noqa: ARG002 - as above
        """Know nothing of any dimension."""
        return (Standing(),) * len(scopes)
