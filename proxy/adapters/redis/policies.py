"""What is done while the limiter's store is away: everyone by their part of the limits, or everyone without.

The third policy, `Closed`, is nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.fallback import LIMITER_STORE
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.core.bucket import Admitted, Cost, Decision, Gauge, Handle, NeverFits, Reservation, Scope, Standing
from proxy.core.errors import StoreAway
from proxy.core.share import Part, part_of_scope
from proxy.core.tiers import Limits
from proxy.ports import Clock

__all__ = ["Open", "Share"]

_MOST_TEAMS = 10_000
_MS_PER_MINUTE = 60_000


class Open:
    """Everything passes, uncounted: limits are not worth an outage to whoever chose this."""

    def __init__(self, decided: Callable[[], None]) -> None:
        """`decided` counts the decisions made without the store."""
        self._decided = decided
        self._mine: set[Handle] = set()

    def __contains__(self, team: str) -> bool:
        """Tell that nothing was counted for any team."""
        return False

    def seen(self, team: str, standing: Standing) -> None:
        """Nothing to do: it keeps no buckets."""

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

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Nothing to do: it keeps no buckets."""

    def owed(self, team: str) -> Iterator[tuple[Scope, Cost]]:  # noqa: ARG002 - nothing was counted
        """Give nothing."""
        return iter(())

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:  # noqa: ARG002 - whatever was asked
        """Know nothing of any dimension."""
        return (Standing(),) * len(scopes)


class Share:
    """Each worker holds teams to its part of their limits, in buckets of its own.

    A bucket starts at this worker's part of the level last seen in the store, and empty where none was: others may have
    used it up. So the workers together admit at most the limit, and a burst more only where the number of workers was
    out of date. When the store is back it is charged with what is still in use here.
    """

    def __init__(self, clock: Clock, part: Callable[[], Part], decided: Callable[[], None]) -> None:
        """`part` is this worker's now; `decided` counts the decisions made without the store."""
        self._clock = clock
        self._part = part
        self._decided = decided
        self._local = MemoryLimiter(clock)
        self._seen: OrderedDict[str, tuple[int, Standing]] = OrderedDict()
        self._scopes: dict[str, dict[str, Scope]] = {}
        """The scopes that were counted here, whole, by team and name."""
        self._mine: set[Handle] = set()

    def __contains__(self, team: str) -> bool:
        """Whether anything was counted here that the store has not been told."""
        return team in self._scopes

    def seen(self, team: str, standing: Standing) -> None:
        """Remember where a team's bucket stood; the team not seen for longest is forgotten."""
        if team not in self._seen and len(self._seen) >= _MOST_TEAMS:
            self._seen.popitem(last=False)
        self._seen[team] = (self._clock.monotonic_ns() // 1_000_000, standing)
        self._seen.move_to_end(team)

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> Decision:
        """Decide by this worker's part. Raises `StoreAway` where it is too small for the question."""
        self._decided()
        parts = self._parts(team, scopes)
        if parts is None:
            raise StoreAway(LIMITER_STORE, "reserve") from failure
        decision = await self._local.reserve(team, parts, cost)
        if isinstance(decision, NeverFits):
            # The whole bucket may hold it; a part of it cannot tell.
            raise StoreAway(LIMITER_STORE, "reserve") from failure
        if isinstance(decision, Admitted):
            self._mine.add(decision.reservation.handles[0])
            return Admitted(decision.reservation, _of_whole(decision.standing, scopes[0], self._clock.now_ms()))
        return decision

    def settle(self, reservation: Reservation, actual: Cost) -> bool:
        """Settle what was admitted here."""
        handle = reservation.handles[0]
        if handle not in self._mine:
            return False
        self._mine.discard(handle)
        self._local.settle(reservation, actual)
        return True

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Count what the store could not be told."""
        parts = self._parts(team, scopes)
        if parts is not None:
            self._local.charge(team, parts, cost)

    def owed(self, team: str) -> Iterator[tuple[Scope, Cost]]:
        """Give up what is in use here, for the store to be charged with; this worker no longer counts the team."""
        part = self._part()
        for scope in self._scopes.pop(team, {}).values():
            own = part_of_scope(scope, part)
            if own is None:
                continue
            used = self._local.used(team, own)
            self._local.forget(team, scope.name)
            if used.requests or used.tokens:
                yield scope, used

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:
        """Where this worker's buckets stand. Raises `StoreAway` where its part is nothing."""
        parts = self._parts(team, scopes)
        if parts is None:
            raise StoreAway(LIMITER_STORE, "peek") from failure
        now_ms = self._clock.now_ms()
        stands = await self._local.peek(team, parts)
        return tuple(_of_whole(standing, scope, now_ms) for standing, scope in zip(stands, scopes, strict=True))

    def _parts(self, team: str, scopes: Sequence[Scope]) -> list[Scope] | None:
        """This worker's part of each scope, its bucket there; None when one part is nothing."""
        part = self._part()
        parts: list[Scope] = []
        for scope in scopes:
            own = part_of_scope(scope, part)
            if own is None:
                return None
            parts.append(own)
        counted = self._scopes.setdefault(team, {})
        for index, (scope, own) in enumerate(zip(scopes, parts, strict=True)):
            if scope.name not in counted:
                standing = self._seen.get(team) if index == 0 else None
                self._local.charge(team, (own,), self._level(own, standing, part))
            counted[scope.name] = scope
        return parts

    def _level(self, own: Scope, seen: tuple[int, Standing] | None, part: Part) -> Cost:
        """What a bucket of ours starts with as used."""
        limits = own.schedule.limits_at(self._clock.now_ms())
        if seen is None:
            return Cost(limits.effective_request_capacity or 0, limits.effective_token_capacity or 0)
        seen_ms, standing = seen
        passed_ms = self._clock.monotonic_ns() // 1_000_000 - seen_ms
        return Cost(
            _left_of(standing.requests, limits.requests_per_minute, part, passed_ms),
            _left_of(standing.tokens, limits.tokens_per_minute, part, passed_ms),
        )


def _left_of(gauge: Gauge | None, rate: int | None, part: Part, passed_ms: int) -> int:
    """Our part of what was used, rounded up, less what our part of the rate has refilled since."""
    if gauge is None or rate is None:
        return 0
    # Of a reset that was cut, the millisecond it is short of at most.
    used = -(-gauge.limit * (gauge.reset_ms + 1) // _MS_PER_MINUTE)
    return max(0, -(-used // part.workers) - rate * passed_ms // _MS_PER_MINUTE)


def _of_whole(standing: Standing, scope: Scope, now_ms: int) -> Standing:
    """What clients are told: the team's limits as they know them, and what is left of them here."""
    limits: Limits = scope.schedule.limits_at(now_ms)
    requests, tokens = standing.requests, standing.tokens
    return Standing(
        None if requests is None else requests._replace(limit=limits.requests_per_minute or requests.limit),
        None if tokens is None else tokens._replace(limit=limits.tokens_per_minute or tokens.limit),
    )
