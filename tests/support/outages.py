"""Workers beside one bucket that comes and goes, on a hand-set clock: who sees what, when, is the test's to choose.

The store is a real bucket, the workers are real `Share`s; what is modelled is what lies between: a store serves
everybody or nobody, and each worker finds out in its own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proxy.adapters.redis.outcomes import NeverSent, Why
from proxy.adapters.redis.share import Share
from proxy.core import bucket
from proxy.core.bucket import UNITS, Admitted, Cost, Decision, Refused, Reservation, Scope, State
from proxy.core.errors import StoreAway
from proxy.core.share import LATER_MS, Away, Part
from proxy.core.tiers import Limits, Schedule

__all__ = ["LOOK_MS", "NOTICE_MS", "Team", "Worker"]

LOOK_MS = 500
"""How often a worker sees that the store is there."""
NOTICE_MS = 1_000
TEAM = "a"
_AWAY = NeverSent(Why.AWAY)


class HandClock:
    ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ns(self) -> int:
        return self.ms * 1_000_000


@dataclass
class Team:
    """A team's tokens: the bucket in the store, and the one that a single process would have."""

    rate: int
    capacity: int
    clock: HandClock = field(default_factory=HandClock)
    is_there: bool = True
    held: State | None = None
    true: State | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        limits = Limits(None, self.rate, None, self.capacity)
        self.scope = Scope("team", Schedule(limits, limits))

    def reserve(self, scope: Scope, cost: Cost) -> Decision:
        """Ask the store."""
        assert self.is_there
        self.epoch += 1
        answer, (after,) = bucket.reserve([self.held], (scope,), cost, self.clock.ms, self.epoch)
        self.held = after or self.held
        return bucket.decision(TEAM, (scope,), cost, answer)

    def settle(self, reservation: Reservation, actual: Cost) -> None:
        self.epoch += 1
        (handle,) = reservation.handles
        self.held = bucket.settle(
            self.held, self.scope.schedule, handle, reservation.cost, actual, self.clock.ms, self.epoch
        )

    def charge(self, cost: Cost) -> None:
        self.epoch += 1
        self.held = bucket.charge(self.held, self.scope.schedule, cost, self.clock.ms, self.epoch)

    def use(self, tokens: int) -> int:
        """Tokens are used; returns by how many units more are in use than `capacity + rate x T` allows for some T."""
        self.true = bucket.charge(self.true, self.scope.schedule, Cost(0, tokens), self.clock.ms, 1)
        return self.true_units() - self.capacity * UNITS

    def true_units(self) -> int:
        return self._used_of(self.true)

    def used_units(self) -> int:
        return self._used_of(self.held)

    def _used_of(self, state: State | None) -> int:
        return 0 if state is None else bucket.advance(state, self.scope.schedule, self.clock.ms)[0][4]


class Worker:
    """One worker: its share, and the absence as it sees it."""

    def __init__(self, team: Team, part: Part) -> None:
        self.team = team
        self.share = Share(team.clock, lambda: part, lambda: None, away=lambda _: self.away(), notice_ms=NOTICE_MS)
        self.heard_ms = team.clock.ms
        self.absence: tuple[int, int, int, int | None] | None = None
        """Heard last, failing since, found away last, back since."""

    @property
    def finds_it_away(self) -> bool:
        return self.absence is not None and self.absence[3] is None

    def away(self) -> Away | None:
        now_ms = self.team.clock.ms
        if self.absence is None or (self.absence[3] is not None and now_ms - self.absence[3] >= LATER_MS):
            return None
        heard_ms, since_ms, found_ms, back_ms = self.absence
        return Away(
            now_ms - heard_ms, now_ms - since_ms, found_ms - since_ms, None if back_ms is None else now_ms - back_ms
        )

    def look(self) -> None:
        """See whether the store is there, and tell it what it does not know."""
        now_ms = self.team.clock.ms
        if self.team.is_there:
            self.heard_ms = now_ms
            if self.finds_it_away:
                assert self.absence is not None
                self.absence = (*self.absence[:3], now_ms)
            self.tell()
        elif self.away() is None:
            self.absence = (self.heard_ms, now_ms, now_ms, None)
        else:
            assert self.absence is not None
            since_ms = self.absence[1] if self.finds_it_away else now_ms
            self.absence = (self.absence[0], since_ms, now_ms, None)

    def tell(self) -> None:
        for _, cost in self.share.owed(TEAM):
            self.team.charge(cost)

    def ask(self, tokens: int) -> Reservation | None:
        """A request of so many tokens, and what became of it."""
        scope, cost = self.team.scope, Cost(0, tokens)
        if not self.team.is_there and not self.finds_it_away:
            self.look()
        if self.finds_it_away:
            return self._part(scope, cost)
        self.tell()
        asked: Sequence[Scope] | Refused | None = (scope,)
        if (away := self.away()) is not None:
            asked = self.share.ask_with((scope,), cost, away)
            assert asked is not None
        if isinstance(asked, Refused):
            return None
        self.heard_ms = self.team.clock.ms
        decision = self.team.reserve(asked[0], cost)
        self.share.seen(TEAM, (scope,), decision, overtaken=False)
        return decision.reservation if isinstance(decision, Admitted) else None

    def settle(self, reservation: Reservation, tokens: int) -> None:
        """What was used is known. A settlement that the store does not get is lost."""
        if self.share.settle(reservation, Cost(0, tokens)):
            return
        if self.team.is_there and not self.finds_it_away:
            self.team.settle(reservation, Cost(0, tokens))

    def _part(self, scope: Scope, cost: Cost) -> Reservation | None:
        deciding = self.share.reserve(TEAM, (scope,), cost, _AWAY)
        try:
            # It waits for nothing, so no loop is needed, which would be most of the time that a history takes.
            deciding.send(None)
        except StopIteration as done:
            return done.value.reservation if isinstance(done.value, Admitted) else None
        except StoreAway:
            return None
        raise AssertionError("it waits")
