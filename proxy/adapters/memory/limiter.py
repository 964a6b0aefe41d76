"""The limiter of one process: every bucket in a dict."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from proxy.adapters.memory.budgets import MemoryBudgets
from proxy.adapters.spent import SpentReader
from proxy.core import bucket
from proxy.core.bucket import Admitted, Cost, Decision, OverBudget, Reservation, Scope, Standing, State
from proxy.core.budget import Spend
from proxy.core.decision import ADMITTED
from proxy.core.tiers import Schedule
from proxy.ports import Clock

__all__ = ["ClockSteps", "MemoryLimiter"]

_SWEEP_EVERY_MS = 1_000
_SWEEP_AT_LEAST = 64
_SWEEPS_PER_ROUND = 60
_STEP_AHEAD_MS = 2_000

_Key = tuple[str, str]


@dataclass(slots=True)
class ClockSteps:
    """How often the clock was set while the limiter ran."""

    back: int = 0
    ahead: int = 0


class MemoryLimiter:
    """`ports.Limiter` for one event loop; cannot be away.

    Buckets live as long as they are not full: each second that sees an operation drops the full ones among a sixtieth
    of all (64 at least), so that an idle team soon costs nothing. No task, no lock: no method gives up the loop, but
    for an account of a budget that has to be made, and then before anything is decided. Places are counted by
    reservation, and only while there are any.
    """

    def __init__(self, clock: Clock, budgets: MemoryBudgets | None = None) -> None:
        """Without `budgets` the ledger is as good as away, and a request with a budget that refuses is not admitted."""
        self.budgets = MemoryBudgets(SpentReader(None, clock, lambda *_: None), clock) if budgets is None else budgets
        self.clock_steps = ClockSteps()
        """Set back: by any amount. Set ahead: by more than two seconds, as seen against the monotonic clock."""
        self._clock = clock
        self._buckets: dict[_Key, tuple[State, Schedule]] = {}
        self._round: deque[_Key] = deque()
        self._in_flight: dict[_Key, int] = {}
        self._epoch = 0
        self._last_ms = clock.now_ms()
        self._offset_ms = self._last_ms - clock.monotonic_ns() // 1_000_000
        self._sweep_at_ms = self._last_ms

    def __len__(self) -> int:
        """Buckets held."""
        return len(self._buckets)

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None = None) -> Decision:
        """Charge `cost` to every scope and `spend` to every budget, or nothing to any.

        scopes[0] is the team's own, and names differ. Raises `StoreAway` where a budget that refuses has no account
        and the ledger is away.
        """
        if spend is None:
            return self._decide(team, scopes, cost)
        spend = await self.budgets.open(team, spend)
        over = self.budgets.refusal(team, spend)
        if over is not None:
            state = self._state((team, scopes[0].name))
            stands = bucket.standing(bucket.peek(state, scopes[0].schedule, self._now_ms()))
            return OverBudget(*over, spend.nano_usd, stands)
        decision = self._decide(team, scopes, cost)
        if not isinstance(decision, Admitted):
            return decision
        taken = self.budgets.take(team, spend)
        reservation = replace(decision.reservation, spend=spend, minutes=taken.minutes, epochs=taken.epochs)
        return Admitted(reservation, decision.standing, taken.reached)

    def _decide(self, team: str, scopes: Sequence[Scope], cost: Cost) -> Decision:
        now_ms = self._now_ms()
        buckets = self._buckets
        keys: list[_Key] = []
        states: list[State | None] = []
        counts_places = False
        for scope in scopes:
            key = (team, scope.name)
            keys.append(key)
            held = buckets.get(key)
            states.append(held and held[0])
            if scope.max_parallel is not None:
                counts_places = True
        self._epoch += 1
        in_flight = self._taken(keys) if counts_places else ()
        answer, after = bucket.reserve(states, scopes, cost, now_ms, self._epoch, in_flight)
        for index, state in enumerate(after):
            if state is None:
                continue
            if states[index] is None:
                self._keep(keys[index], state, scopes[index].schedule)
            else:
                buckets[keys[index]] = (state, scopes[index].schedule)
        if counts_places and answer[0] == ADMITTED:
            for key, scope in zip(keys, scopes, strict=True):
                self._take_places(key, scope.places_for(cost))
        return bucket.decision(team, scopes, cost, answer)

    def settle(self, reservation: Reservation, actual: Cost, spent_nano_usd: int = 0) -> None:
        """Charge `actual` instead of the reserved cost, and give the places back; a second settlement does nothing.

        `spent_nano_usd` is spent of the budgets instead of what was reserved.
        """
        now_ms = self._now_ms()
        if not reservation.handles[0].settled:
            self.budgets.settle(reservation, spent_nano_usd)
        for index, handle in enumerate(reservation.handles):
            if handle.settled:
                continue
            handle.settled = True
            scope = reservation.scopes[index]
            key = (reservation.team, scope.name)
            self._take_places(key, -scope.places_for(reservation.cost))
            if actual == reservation.cost:
                continue  # what was charged stands, as with every hit
            self._epoch += 1
            state = bucket.settle(
                self._state(key), scope.schedule, handle, reservation.cost, actual, now_ms, self._epoch
            )
            self._keep(key, state, scope.schedule)

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Take `cost` without asking; the buckets may go into debt."""
        now_ms = self._now_ms()
        for scope in scopes:
            key = (team, scope.name)
            self._epoch += 1
            self._keep(key, bucket.charge(self._state(key), scope.schedule, cost, now_ms, self._epoch), scope.schedule)

    async def peek(self, team: str, scopes: Sequence[Scope]) -> tuple[Standing, ...]:
        """Where each scope stands now; writes nothing."""
        now_ms = self._now_ms()
        return tuple(
            bucket.standing(bucket.peek(self._state((team, scope.name)), scope.schedule, now_ms)) for scope in scopes
        )

    def used(self, team: str, scope: Scope) -> Cost:
        """What is used of a bucket now, rounded up; a debt counts in full."""
        state = self._state((team, scope.name))
        if state is None:
            return Cost(0, 0)
        (_, _, used_requests, _, used_tokens, _), _ = bucket.advance(state, scope.schedule, self._now_ms())
        return Cost(-(-used_requests // bucket.UNITS), -(-used_tokens // bucket.UNITS))

    def forget(self, team: str, scope: str) -> None:
        """Make a bucket full again; reservations that are open in it will have nothing to give back."""
        key = (team, scope)
        if self._buckets.pop(key, None) is not None:
            self._round.remove(key)

    def _taken(self, keys: Sequence[_Key]) -> list[int]:
        return [self._in_flight.get(key, 0) for key in keys]

    def _take_places(self, key: _Key, places: int) -> None:
        if not places:
            return
        taken = self._in_flight.get(key, 0) + places
        if taken:
            self._in_flight[key] = taken
        else:
            del self._in_flight[key]

    def _state(self, key: _Key) -> State | None:
        held = self._buckets.get(key)
        return held and held[0]

    def _keep(self, key: _Key, state: State, schedule: Schedule) -> None:
        if key not in self._buckets:
            if bucket.is_full(state, schedule, state[1]):
                return
            self._round.append(key)
        self._buckets[key] = (state, schedule)

    def _now_ms(self) -> int:
        now_ms = self._clock.now_ms()
        passed_ms = now_ms - self._last_ms
        if passed_ms < 0 or passed_ms > _STEP_AHEAD_MS:
            self._watch(now_ms)
        self._last_ms = now_ms
        if passed_ms < 0 or now_ms >= self._sweep_at_ms:
            self._sweep(now_ms)
        return now_ms

    def _watch(self, now_ms: int) -> None:
        """Tell a clock that was set from a time in which nothing happened."""
        offset_ms = now_ms - self._clock.monotonic_ns() // 1_000_000
        if now_ms < self._last_ms:
            self.clock_steps.back += 1
        elif offset_ms - self._offset_ms > _STEP_AHEAD_MS:
            self.clock_steps.ahead += 1
        self._offset_ms = offset_ms

    def _sweep(self, now_ms: int) -> None:
        self._sweep_at_ms = now_ms + _SWEEP_EVERY_MS
        for _ in range(min(len(self._round), max(_SWEEP_AT_LEAST, len(self._round) // _SWEEPS_PER_ROUND + 1))):
            key = self._round.popleft()
            state, schedule = self._buckets[key]
            if bucket.is_full(state, schedule, now_ms):
                del self._buckets[key]
            else:
                # Written back, so that a bucket whose clock was ahead of a step back refills from now on.
                self._buckets[key] = (bucket.advance(state, schedule, now_ms)[0], schedule)
                self._round.append(key)
