"""What is done while the limiter's store is away: everyone without limits. The others are `Share` and `Closed`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from proxy.adapters.redis.outcomes import RedisFailure
from proxy.core.bucket import Admitted, Cost, Decision, Handle, NeverFits, Refused, Reservation, Scope, Standing
from proxy.core.share import Away

__all__ = ["Open"]


class Open:
    """Everything passes, uncounted: limits are not worth an outage to whoever chose this."""

    def __init__(self, decided: Callable[[], None]) -> None:
        """`decided` counts the decisions made without the store."""
        self._decided = decided
        self._mine: set[Handle] = set()

    def __contains__(self, team: str) -> bool:
        """Tell that nothing was counted for any team."""
        return False

    def seen(self, team: str, scopes: Sequence[Scope], decision: Decision, *, overtaken: bool) -> None:
        """Nothing to do: it keeps no buckets."""

    def charged(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Nothing to do: it keeps no buckets."""

    def ask_with(self, scopes: Sequence[Scope], cost: Cost, away: Away) -> Sequence[Scope]:  # noqa: ARG002 - nobody else counts
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

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> Decision:  # noqa: ARG002 - whatever was asked
        """Admit."""
        self._decided()
        handles = tuple(Handle() for _ in scopes)
        self._mine.add(handles[0])
        return Admitted(Reservation(team, tuple(scopes), cost, handles), Standing())

    def settle(self, reservation: Reservation, actual: Cost) -> bool:  # noqa: ARG002 - nothing was counted
        """Tell whether it was admitted here."""
        if reservation.handles[0] not in self._mine:
            return False
        self._mine.discard(reservation.handles[0])
        return True

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> bool:  # noqa: ARG002 - it keeps no buckets
        """Count nothing."""
        return False

    def untold(self) -> tuple[str, ...]:
        """Name nobody."""
        return ()

    def owed(self, team: str) -> Iterator[tuple[Scope, Cost]]:  # noqa: ARG002 - nothing was counted
        """Give nothing."""
        return iter(())

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:  # noqa: ARG002 - whatever was asked
        """Know nothing of any dimension."""
        return (Standing(),) * len(scopes)
