"""What is done while the limiter's store is away: everyone by their part of the limits, or everyone without.

The third policy, `Closed`, is nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence

from msgspec.structs import replace

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.fallback import LIMITER_STORE
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.core.bucket import (
    Admitted,
    Cost,
    Decision,
    Dimension,
    Gauge,
    Handle,
    Refused,
    Reservation,
    Scope,
    Standing,
)
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import StoreAway
from proxy.core.share import Part, part_of, part_of_scope
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


class Share:
    """Each worker holds teams to its part of their limits, in buckets of its own.

    A bucket starts at this worker's part of the level last seen in the store, and empty where none was: others may have
    used it up. So the workers together admit at most what was left, and a burst more only where what they saw was out
    of date: their number, or a level that others have raised since. When the store is back it is charged with what was
    used here, and not with what was assumed at the start.
    """

    def __init__(self, clock: Clock, part: Callable[[], Part], decided: Callable[[], None]) -> None:
        """`part` is this worker's now; `decided` counts the decisions made without the store."""
        self._clock = clock
        self._part = part
        self._decided = decided
        self._local = MemoryLimiter(clock)
        self._assumed = MemoryLimiter(clock)
        """The same buckets as they would be had nobody used them here."""
        self._seen: OrderedDict[str, tuple[int, Standing]] = OrderedDict()
        self._counted: dict[str, dict[str, tuple[Scope, Scope]]] = {}
        """What was counted here, by team and name: the scope, and this worker's part of it."""
        self._mine: dict[Handle, Reservation] = {}

    def __contains__(self, team: str) -> bool:
        """Whether anything was counted here that the store has not been told."""
        return team in self._counted

    def untold(self) -> tuple[str, ...]:
        """Every team of which something was counted here that the store has not been told."""
        return tuple(self._counted)

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
        standing = _of_whole(decision.standing, scopes[0], self._clock.now_ms())
        if isinstance(decision, Admitted):
            # Given out with the whole scopes: once the store has been told, it is the store's to settle.
            local = decision.reservation
            self._mine[local.handles[0]] = local
            return Admitted(replace(local, scopes=tuple(scopes)), standing)
        whole, own = next(pair for pair in zip(scopes, parts, strict=True) if pair[0].name == decision.scope)
        now_ms = self._clock.now_ms()
        (limit, capacity), (_, own_capacity) = (_bound(each, decision.dimension, now_ms) for each in (whole, own))
        if isinstance(decision, Refused):
            return replace(decision, limit=limit, used=decision.used + capacity - own_capacity, standing=standing)
        if decision.requested <= capacity:
            # The whole bucket may hold it; a part of it cannot tell.
            raise StoreAway(LIMITER_STORE, "reserve") from failure
        return replace(decision, limit=capacity, standing=standing)

    def settle(self, reservation: Reservation, actual: Cost) -> bool:
        """Settle what was admitted here; False when the store has been told of it since, and is to settle it.

        There nothing comes back, the handle being of no epoch of the store's, and what was used beyond is charged.
        """
        local = self._mine.pop(reservation.handles[0], None)
        if local is None:
            return False
        self._local.settle(local, actual)
        counted = self._counted.get(local.team, {})
        told = [scope.name for scope in local.scopes if scope.name not in counted]
        for name in told:
            self._local.forget(local.team, name)
        return not told

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> bool:
        """Count what the store could not be told; False where this worker's part is nothing."""
        parts = self._parts(team, scopes)
        if parts is None:
            return False
        self._local.charge(team, parts, cost)
        return True

    def owed(self, team: str) -> Iterator[tuple[Scope, Cost]]:
        """Give up what was used here, for the store to be charged with; this worker no longer counts the team."""
        for name, (whole, own) in self._counted.pop(team, {}).items():
            used, assumed = self._local.used(team, own), self._assumed.used(team, own)
            self._local.forget(team, name)
            self._assumed.forget(team, name)
            cost = Cost(max(0, used.requests - assumed.requests), max(0, used.tokens - assumed.tokens))
            if cost.requests or cost.tokens:
                if name == TEAM_SCOPE:
                    self._see_told(team, whole, cost)
                yield whole, cost

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:
        """Where this worker's buckets stand. Raises `StoreAway` where its part is nothing."""
        parts = self._parts(team, scopes)
        if parts is None:
            raise StoreAway(LIMITER_STORE, "peek") from failure
        now_ms = self._clock.now_ms()
        stands = await self._local.peek(team, parts)
        return tuple(_of_whole(standing, scope, now_ms) for standing, scope in zip(stands, scopes, strict=True))

    def _see_told(self, team: str, whole: Scope, cost: Cost) -> None:
        """Count what the store is told in what was last seen of it: it may go away again before anybody asks."""
        if team not in self._seen:
            return
        seen_ms, standing = self._seen[team]
        requests, tokens = standing.requests, standing.tokens
        now_ms = self._clock.monotonic_ns() // 1_000_000
        limits = whole.schedule.limits_at(self._clock.now_ms())
        if requests is not None:
            capacity = limits.effective_request_capacity or 0
            requests = _charged(requests, capacity, cost.requests, now_ms - seen_ms)
        if tokens is not None:
            capacity = limits.effective_token_capacity or 0
            tokens = _charged(tokens, capacity, cost.tokens, now_ms - seen_ms)
        self._seen[team] = (now_ms, Standing(requests, tokens))

    def _parts(self, team: str, scopes: Sequence[Scope]) -> list[Scope] | None:
        """This worker's part of each scope, its bucket there; None when one part is nothing."""
        part = self._part()
        parts: list[Scope] = []
        for scope in scopes:
            own = part_of_scope(scope, part)
            if own is None:
                return None
            parts.append(own)
        counted = self._counted.setdefault(team, {})
        for scope, own in zip(scopes, parts, strict=True):
            if scope.name not in counted:
                level = self._level(scope, own, self._seen.get(team) if scope.name == TEAM_SCOPE else None, part)
                self._local.charge(team, (own,), level)
                self._assumed.charge(team, (own,), level)
            counted[scope.name] = (scope, own)
        return parts

    def _level(self, whole: Scope, own: Scope, seen: tuple[int, Standing] | None, part: Part) -> Cost:
        """What a bucket of ours starts with as used."""
        now_ms = self._clock.now_ms()
        limits, of_all = own.schedule.limits_at(now_ms), whole.schedule.limits_at(now_ms)
        requests, tokens = limits.effective_request_capacity or 0, limits.effective_token_capacity or 0
        if seen is None:
            return Cost(requests, tokens)
        seen_ms, standing = seen
        of_requests, of_tokens = standing.requests, standing.tokens
        passed_ms = self._clock.monotonic_ns() // 1_000_000 - seen_ms
        # A standing under other limits says nothing of this bucket.
        if of_requests is not None and of_requests.limit == of_all.requests_per_minute:
            requests = _left_of(of_requests, of_all.effective_request_capacity or 0, part, passed_ms)
        if of_tokens is not None and of_tokens.limit == of_all.tokens_per_minute:
            tokens = _left_of(of_tokens, of_all.effective_token_capacity or 0, part, passed_ms)
        return Cost(requests, tokens)


def _charged(gauge: Gauge, capacity: int, cost: int, passed_ms: int) -> Gauge:
    """The gauge as it is after `passed_ms` and a charge, with nothing rounded in our favour; `remaining` may be < 0."""
    refilled = gauge.limit * passed_ms // _MS_PER_MINUTE
    due_ms = max(0, gauge.reset_ms + 1 - passed_ms) if gauge.reset_ms else 0
    return replace(
        gauge,
        remaining=min(capacity, gauge.remaining + refilled) - cost,
        reset_ms=due_ms - (-cost * _MS_PER_MINUTE // gauge.limit),
    )


def _left_of(gauge: Gauge, capacity: int, part: Part, passed_ms: int) -> int:
    """Our part of what was used, rounded up, less what our part of the rate has refilled since, rounded down."""
    # The reset alone tells of a debt; it may be short of a millisecond.
    due_ms = gauge.reset_ms + 1 if gauge.reset_ms else 0
    used = max(capacity - gauge.remaining, -(-gauge.limit * due_ms // _MS_PER_MINUTE))
    return max(0, -(-used // part.workers) - part_of(gauge.limit, part) * passed_ms // _MS_PER_MINUTE)


def _bound(scope: Scope, dimension: Dimension, now_ms: int) -> tuple[int, int]:
    """What a refusal names as the limit, and what the bucket holds."""
    limits = scope.schedule.limits_at(now_ms)
    match dimension:
        case Dimension.REQUESTS:
            return limits.requests_per_minute or 0, limits.effective_request_capacity or 0
        case Dimension.TOKENS:
            return limits.tokens_per_minute or 0, limits.effective_token_capacity or 0
        case Dimension.PARALLEL:
            return scope.max_parallel or 0, scope.max_parallel or 0


def _of_whole(standing: Standing, scope: Scope, now_ms: int) -> Standing:
    """What clients are told: the team's limits as they know them, and what is left of them here."""
    limits: Limits = scope.schedule.limits_at(now_ms)
    requests, tokens = standing.requests, standing.tokens
    return Standing(
        None if requests is None else replace(requests, limit=limits.requests_per_minute or requests.limit),
        None if tokens is None else replace(tokens, limit=limits.tokens_per_minute or tokens.limit),
    )
