"""While the limiter's store is away, everyone by their part of the limits."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from proxy.adapters.redis.fallback import LIMITER_STORE
from proxy.adapters.redis.held import Held, give, owed, raise_to, widen
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.core import bucket
from proxy.core.bucket import (
    UNITS,
    Admitted,
    Cost,
    Decision,
    Dimension,
    Gauge,
    Handle,
    NeverFits,
    Refused,
    Reservation,
    Scope,
    Standing,
    State,
)
from proxy.core.errors import StoreAway
from proxy.core.share import LATER_MS, Away, Part, credit_ms, kept_for_others, opening, part_of_scope
from proxy.core.tiers import Limits, Schedule
from proxy.ports import Clock

__all__ = ["Share"]

_MOST_SEEN = 10_000
_MS_PER_MINUTE = 60_000
_Key = tuple[str, str]


@dataclass(slots=True)
class _Mine:
    """A reservation that was admitted here, by the parts of its scopes."""

    reservation: Reservation
    held: list[Held]
    told: int
    """How often the store had been told by then."""


@dataclass(frozen=True, slots=True)
class _Sight:
    """What was used of a bucket of the store at the most, in units, and as which part it was seen."""

    at_ms: int
    used: tuple[int, int]
    part: Part


class Share:
    """Each worker holds teams to its part of their limits, in buckets of its own; `core.share` says why that holds.

    A bucket starts empty and has its part of the rate from when this worker has found the store away for `notice_ms`.
    A worker that is alone starts where it last saw the bucket. The store is charged with what was used here, and not
    with what was assumed at the start.
    """

    def __init__(
        self,
        clock: Clock,
        part: Callable[[], Part],
        decided: Callable[[], None],
        *,
        away: Callable[[str], Away | None] = lambda _: None,
        notice_ms: int = 1_000,
    ) -> None:
        """`part` is this worker's now; `decided` counts the decisions made without the store; `away` is of a team's."""
        self._clock = clock
        self._part = part
        self._decided = decided
        self._away = away
        self._notice_ms = notice_ms
        self._epoch = 0
        self._seen: OrderedDict[_Key, _Sight] = OrderedDict()
        self._held: dict[str, dict[str, Held]] = {}
        self._untold: dict[str, None] = {}
        self._mine: dict[Handle, _Mine] = {}
        self._places: dict[_Key, int] = {}
        self._holding: set[Handle] = set()
        """Reservations that take places, by their first handles."""

    def __contains__(self, team: str) -> bool:
        """Whether anything was counted here that the store has not been told."""
        return team in self._untold

    def untold(self) -> tuple[str, ...]:
        """Every team of which something was counted here that the store has not been told."""
        return tuple(self._untold)

    def seen(self, team: str, scopes: Sequence[Scope], decision: Decision, *, overtaken: bool) -> None:
        """Remember where the buckets stood, where that tells anything; the one not seen for longest is forgotten."""
        if team in self._held and team not in self._untold:
            del self._held[team]
        part = self._part()
        if type(decision) is Admitted:
            self._count_places(decision.reservation)
            # Others may have had what is left by the time it matters, and a bucket that admits is in no debt.
            if part.workers == 1:
                for scope, handle in zip(scopes, decision.reservation.handles, strict=True):
                    level = (max(0, handle.level_requests), max(0, handle.level_tokens))
                    self._see(team, scope, level, part, decision.reservation.cost if overtaken else None)
        else:
            whole = scopes[0].schedule.limits_at(self._clock.now_ms()).figures
            level = (_used(decision.standing.requests, whole[1]), _used(decision.standing.tokens, whole[3]))
            if part.workers == 1 or level[0] > whole[1] or level[1] > whole[3]:
                self._see(team, scopes[0], level, part, Cost(0, 0) if overtaken else None)

    def charged(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Count in what was last seen what the store is charged with since."""
        for scope in scopes:
            sight = self._seen.get((team, scope.name))
            if sight is not None:
                self._see(team, scope, (0, 0), sight.part, cost)

    def ask_with(self, scopes: Sequence[Scope], cost: Cost, away: Away) -> Sequence[Scope] | Refused | None:
        """The scopes without the room that others may have used; a refusal where what is left is too small."""
        if away.back_ms is None:
            return None
        part = self._part()
        if part.workers == 1:
            return scopes
        now_ms, asked = self._clock.now_ms(), []
        for scope in scopes:
            for dimension in (Dimension.REQUESTS, Dimension.TOKENS):
                takes = cost.requests if dimension is Dimension.REQUESTS else cost.tokens
                limit, capacity = _bound(scope, dimension, now_ms)
                kept = kept_for_others(limit, capacity, part, away, self._notice_ms) if limit else 0
                if takes > 0 and limit and capacity - kept < takes <= capacity:
                    stands = _used_up(scopes[0], LATER_MS - away.back_ms, now_ms)
                    return Refused(LATER_MS - away.back_ms, scope.name, dimension, limit, kept, takes, stands)
            asked.append(_without(scope, part, away, self._notice_ms))
        return asked

    def told(
        self, scopes: Sequence[Scope], asked: Sequence[Scope], decision: Refused | NeverFits
    ) -> Refused | NeverFits:
        """The refusal as of the whole bucket; room that is kept for others is soon there again."""
        now_ms = self._clock.now_ms()
        whole, less = next(pair for pair in zip(scopes, asked, strict=True) if pair[0].name == decision.scope)
        (limit, capacity), (_, left) = (_bound(scope, decision.dimension, now_ms) for scope in (whole, less))
        if isinstance(decision, NeverFits):
            return replace(decision, limit=capacity)
        sooner_ms = decision.wait_ms - (capacity - left) * _MS_PER_MINUTE // limit
        wait_ms = max(sooner_ms, min(decision.wait_ms, LATER_MS))
        return replace(decision, wait_ms=wait_ms, used=decision.used + capacity - left)

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> Decision:
        """Decide by this worker's part. Raises `StoreAway` where it is too small for the question."""
        self._decided()
        held = self._open(team, scopes)
        if held is None:
            raise StoreAway(LIMITER_STORE, "reserve") from failure
        now_ms = self._clock.now_ms()
        parts = [each.own for each in held]
        places = [self._places.get((team, each.name), 0) for each in parts]
        answer, after = bucket.reserve([each.state for each in held], parts, cost, now_ms, self._new_epoch(), places)
        for each, state in zip(held, after, strict=True):
            each.state = state or each.state
        decision = bucket.decision(team, parts, cost, answer)
        standing = _of_whole(decision.standing, scopes[0], now_ms)
        if isinstance(decision, Admitted):
            # Given out with the whole scopes: once the store has been told, it is the store's to settle.
            local = decision.reservation
            self._mine[local.handles[0]] = _Mine(local, held, held[0].told)
            self._count_places(local)
            for each in held:
                give(each, cost.requests, cost.tokens)
            self._untold[team] = None
            return Admitted(replace(local, scopes=tuple(scopes)), standing)
        whole, own = next((each.whole, each.own) for each in held if each.own.name == decision.scope)
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
        if self._holding and reservation.handles[0] in self._holding:
            self._holding.discard(reservation.handles[0])
            self._take_places(reservation, -1)
        mine = self._mine.pop(reservation.handles[0], None)
        if mine is None:
            return False
        local = mine.reservation
        if mine.told != mine.held[0].told:
            return False
        now_ms, epoch = self._clock.now_ms(), self._new_epoch()
        for each, handle in zip(mine.held, local.handles, strict=True):
            handle.settled = True
            each.state = bucket.settle(each.state, each.own.schedule, handle, local.cost, actual, now_ms, epoch)
            beyond_r = max(0, actual.requests) - max(0, local.cost.requests)
            give(each, beyond_r, max(0, actual.tokens) - max(0, local.cost.tokens))
        return True

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> bool:
        """Count what the store could not be told; False where this worker's part is nothing."""
        held = self._open(team, scopes)
        if held is None:
            return False
        now_ms, epoch = self._clock.now_ms(), self._new_epoch()
        for each in held:
            each.state = bucket.charge(each.state, each.own.schedule, cost, now_ms, epoch)
            give(each, max(0, cost.requests), max(0, cost.tokens))
        self._untold[team] = None
        return True

    def owed(self, team: str) -> Iterator[tuple[Scope, Cost]]:
        """Give up what was used here, for the store to be charged with."""
        if team not in self._untold:
            return
        del self._untold[team]
        now_ms = self._clock.now_ms()
        for each in self._held[team].values():
            cost = owed(each, now_ms)
            each.given = [0, 0]
            each.told += 1
            if cost.requests or cost.tokens:
                self.charged(team, (each.whole,), cost)
                yield each.whole, cost

    async def peek(self, team: str, scopes: Sequence[Scope], failure: RedisFailure) -> tuple[Standing, ...]:
        """Where this worker's buckets stand. Raises `StoreAway` where its part is nothing."""
        held = self._open(team, scopes)
        if held is None:
            raise StoreAway(LIMITER_STORE, "peek") from failure
        now_ms = self._clock.now_ms()
        stands = [bucket.standing(bucket.peek(each.state, each.own.schedule, now_ms)) for each in held]
        return tuple(_of_whole(standing, scope, now_ms) for standing, scope in zip(stands, scopes, strict=True))

    def _open(self, team: str, scopes: Sequence[Scope]) -> list[Held] | None:
        """This worker's bucket of each scope, new where it has none; None when one part is nothing."""
        part, parts = self._part(), []
        for scope in scopes:
            own = part_of_scope(scope, part)
            if own is None:
                return None
            parts.append(own)
        away, now_ms, found = self._away(team), self._clock.now_ms(), []
        held = self._held.setdefault(team, {})
        for whole, own in zip(scopes, parts, strict=True):
            each = held.get(whole.name)
            if each is None:
                state = self._opening(team, whole, own, part, away, now_ms)
                each = held[whole.name] = Held(whole, own, part, state)
            else:
                widen(each, own, now_ms)
                if away is not None:
                    # It may have been away, back for others, and away again since.
                    raise_to(each, self._opening(team, whole, own, part, away, now_ms), now_ms)
                each.whole, each.own, each.part = whole, own, part
            found.append(each)
        return found

    def _opening(self, team: str, whole: Scope, own: Scope, part: Part, away: Away | None, now_ms: int) -> State:
        failing_ms = away.failing_ms if away is not None else 0
        sight = self._seen.get((team, whole.name))
        if sight is None or not sight.part.still_is(part):
            return opening(own, (0, 0), credit_ms(away, self._notice_ms), now_ms)
        used = self._decayed(sight, whole.schedule, now_ms, failing_ms if part.workers > 1 else 0)
        if part.workers == 1:
            return (0, now_ms, used[0], 0, used[1], 0)
        figures = whole.schedule.limits_at(now_ms).figures
        debt_r, debt_t = (-(-max(0, used[which] - figures[1 + 2 * which]) // part.workers) for which in (0, 1))
        return opening(own, (debt_r, debt_t), credit_ms(away, self._notice_ms), now_ms)

    def _see(self, team: str, scope: Scope, level: tuple[int, int], part: Part, beside: Cost | None) -> None:
        """Remember what is used of a bucket, in units; no less than was seen before and `beside`, if that is given."""
        key = (team, scope.name)
        if beside is not None and (sight := self._seen.get(key)) is not None and sight.part.still_is(part):
            used_r, used_t = self._decayed(sight, scope.schedule, self._clock.now_ms(), 0)
            level = (
                max(level[0], used_r + max(0, beside.requests) * UNITS),
                max(level[1], used_t + max(0, beside.tokens) * UNITS),
            )
        elif key not in self._seen and len(self._seen) >= _MOST_SEEN:
            self._seen.popitem(last=False)
        self._seen[key] = _Sight(self._clock.monotonic_ns() // 1_000_000, level, part)
        self._seen.move_to_end(key)

    def _decayed(self, sight: _Sight, schedule: Schedule, now_ms: int, ago_ms: int) -> tuple[int, int]:
        """What was seen as it is by now, or as it was `ago_ms` before, if nobody has used anything since."""
        passed_ms = max(0, self._clock.monotonic_ns() // 1_000_000 - sight.at_ms - ago_ms)
        seen = (0, now_ms - ago_ms - passed_ms, sight.used[0], 0, sight.used[1], 0)
        state, _ = bucket.advance(seen, schedule, now_ms - ago_ms)
        return state[2], state[4]

    def _count_places(self, reservation: Reservation) -> None:
        """Count the places that a reservation takes, wherever it was admitted, until it is settled."""
        for scope in reservation.scopes:
            if scope.max_parallel is not None and reservation.cost.requests > 0:
                self._holding.add(reservation.handles[0])
                self._take_places(reservation, 1)
                return

    def _take_places(self, reservation: Reservation, sign: int) -> None:
        for scope in reservation.scopes:
            key = (reservation.team, scope.name)
            taken = self._places.get(key, 0) + sign * scope.places_for(reservation.cost)
            if taken:
                self._places[key] = taken
            else:
                self._places.pop(key, None)

    def _new_epoch(self) -> int:
        self._epoch += 1
        return self._epoch


def _used(gauge: Gauge | None, capacity: int) -> int:
    """Units used at the most, by what a bucket of `capacity` units is told to stand at."""
    if gauge is None:
        return 0
    # The reset is cut to milliseconds, and alone tells of a debt.
    by_reset = gauge.limit * (gauge.reset_ms + 1)
    return min(by_reset, capacity - gauge.remaining * UNITS) if gauge.remaining else by_reset


def _without(scope: Scope, part: Part, away: Away, notice_ms: int) -> Scope:
    """The scope with the room left out that others may have used."""
    before, after = (_less(limits, part, away, notice_ms) for limits in (scope.schedule.before, scope.schedule.after))
    return replace(scope, schedule=Schedule(before, after, scope.schedule.switch_at_ms))


def _less(limits: Limits, part: Part, away: Away, notice_ms: int) -> Limits:
    left = [
        # One that is left where there is none is for those who take nothing of it.
        None
        if not limit or not capacity
        else max(1, capacity - kept_for_others(limit, capacity, part, away, notice_ms))
        for limit, capacity in (
            (limits.requests_per_minute, limits.effective_request_capacity),
            (limits.tokens_per_minute, limits.effective_token_capacity),
        )
    ]
    return Limits(limits.requests_per_minute, limits.tokens_per_minute, *left)


def _used_up(scope: Scope, reset_ms: int, now_ms: int) -> Standing:
    """A standing in which nothing is left."""
    limits = scope.schedule.limits_at(now_ms)
    requests, tokens = limits.requests_per_minute, limits.tokens_per_minute
    return Standing(Gauge(requests, 0, reset_ms) if requests else None, Gauge(tokens, 0, reset_ms) if tokens else None)


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
