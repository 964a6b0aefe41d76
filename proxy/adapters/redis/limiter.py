"""The limiter of many processes: every bucket in Redis, decided there by scripts that count as `core/bucket.py` does.

A decision is one round trip. Settlements and charges are queued on the same connection, in the order they were made,
and not waited for.

A place in a scope with a `max_parallel` is a lease, taken in the same step and given back by the settlement. It is
renewed while its request goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import cast

from proxy.adapters.redis.bucket_state import (
    bucket_key,
    charge_key,
    pack_charge,
    pack_cost,
    pack_schedule,
    pack_settlement,
    pack_terms,
)
from proxy.adapters.redis.budget_parts import BudgetParts
from proxy.adapters.redis.budgets import ABSENT, OVER_BUDGET, RedisBudgets
from proxy.adapters.redis.debts import Debt, Debts, beyond_reserved
from proxy.adapters.redis.denials import Denials
from proxy.adapters.redis.fallback import LIMITER_STORE, Fallback, Presence, Unwatched
from proxy.adapters.redis.leases import RENEW_SECONDS, Lease, Leases, take_back
from proxy.adapters.redis.limiter_scripts import LimiterScripts
from proxy.adapters.redis.losses import Losses
from proxy.adapters.redis.multiplexer import OnFailure
from proxy.adapters.redis.outcomes import Indefinite, NeverSent, RedisFailure, Why
from proxy.adapters.redis.scripts import Script, Scripts
from proxy.adapters.redis.stores_clock import StoresClock
from proxy.adapters.spent import SpentReader
from proxy.core import bucket
from proxy.core.bucket import (
    Admitted,
    Cost,
    Decision,
    Dimension,
    OverBudget,
    Refused,
    Reservation,
    Scope,
    Standing,
)
from proxy.core.budget import Spend
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import StoreAway
from proxy.ports import Clock

__all__ = ["DENY_MS", "LOOK_SECONDS", "LimiterScripts", "RedisLimiter"]

DENY_MS = 50
"""How long a refusal is told again without asking, at most."""
LOOK_SECONDS = 0.5
"""How often it is seen that the store is there."""
_MS = 1_000_000
_KNOCK_NS = 20 * _MS
_STANDING = 6


class RedisLimiter:
    """`ports.Limiter` on a `RedisRoute` that is opened and closed by its owner.

    Away: `fallback` decides; `store_failed("limiter", verb)` is told of every command that failed. A reservation or
    a refund is never sent again once it may have been carried out. What was used beyond a reservation, and a charge,
    is sent again before the team's next reservation, until the store has answered: under a name of its own, so that it
    counts once however often it is sent from then on.
    """

    def __init__(
        self,
        scripts: Scripts,
        clock: Clock,
        fallback: Fallback,
        store_failed: Callable[[str, str], None],
        *,
        presence: Presence | None = None,
        verbs: LimiterScripts | None = None,
        deny_ms: int = DENY_MS,
        worker: str = "",
        reader: SpentReader | None = None,
        parts: BudgetParts | None = None,
    ) -> None:
        """`store_failed` counts; `deny_ms` of 0 asks the store every time; `worker` is for who reads what is stored.

        `reader` makes accounts of budgets, and without one the ledger is as good as away; `parts` holds budgets while
        the store is away, and without it nobody does.
        """
        self._stores_clock = StoresClock(clock)
        self.clock_steps = self._stores_clock.steps
        self._scripts = scripts
        self._clock = clock
        self._fallback = fallback
        self._store_failed = store_failed
        self._presence = presence or Unwatched()
        self._verbs = verbs or LimiterScripts.packaged()
        self._denials = Denials(deny_ms)
        self._debts = Debts()
        reader = reader or SpentReader(None, clock, store_failed)
        self.budgets = RedisBudgets(scripts, reader, clock, self._verbs.of_accounts, parts)
        self._leases = Leases(worker)
        self._losses = Losses()
        self._is_wary = False
        """Whether a store may have been away a moment ago."""
        self._knocked_ns = -_KNOCK_NS
        self._overtaking = 0
        """How often the store was charged without being asked."""

    async def load(self) -> None:
        """Make the store know the scripts, which saves the first callers a round trip. Raises `RedisFailure`."""
        verbs = self._verbs
        await self._scripts.load(getattr(verbs, verb.name) for verb in fields(verbs))

    @property
    def lost_buckets(self) -> int:
        """Buckets of which the store was seen to have lost what it was told."""
        return self._losses.noticed

    @property
    def forgotten_debts(self) -> int:
        """Teams whose debts were given up for want of room."""
        return self._debts.forgotten

    async def watch(self) -> None:
        """See twice a second that the store is there: no absence of a second goes unnoticed. Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_SECONDS)

    def look(self) -> None:
        """See once; does not wait. A store that is back is told what it does not know."""
        self._is_wary = self._scripts.knock_at_all(self._is_away)
        if self._is_wary:
            self.tell_all()

    async def renew(self) -> None:
        """Renew the leases of what is under way, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            self.renew_leases()

    def renew_leases(self) -> None:
        """Renew them once; does not wait. What was not renewed is taken again the next time."""
        for key, leases in self._leases.by_key():
            self._post(self._verbs.renew, [key], leases, self._not_renewed)

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None = None) -> Decision:
        """Charge `cost` to every scope and `spend` to every budget, or nothing to any.

        scopes[0] is the team's own, and names differ. Raises `StoreAway` where a budget that refuses has no account
        and the ledger is away, or where nobody can hold it.
        """
        if team in self._denials and (refused := self._find_denial(team, scopes, cost)) is not None:
            return refused
        if self._is_wary or team in self._fallback or team in self._debts:
            return await self._reserve_warily(team, scopes, cost, spend)
        return await self._reserve(team, scopes, scopes, cost, spend)

    async def _reserve(
        self, team: str, scopes: Sequence[Scope], asked: Sequence[Scope], cost: Cost, spend: Spend | None
    ) -> Decision:
        """Ask the store, with `asked` for the scopes."""
        mark, overtaking = self._denials.mark(team), self._overtaking
        first, keys, lease = self._question(team, scopes, cost)
        decision: Decision
        try:
            if spend is None:
                answer = await self._ask(self._verbs.reserve, keys, asked, first)
                decision = bucket.decision(team, scopes, cost, answer)
            else:
                decision = await self._ask_capped(team, scopes, asked, cost, spend, keys, first)
        except asyncio.CancelledError:
            take_back(lease, self._scripts)
            raise
        except RedisFailure as failure:
            take_back(lease, self._scripts)
            return await self._stand_in(team, scopes, cost, spend, failure)
        if isinstance(decision, OverBudget):
            return decision
        self._hear(team, scopes, decision, overtaken=overtaking != self._overtaking)
        if isinstance(decision, Admitted):
            # It took of what a refusal waits for.
            self._denials.forget(team)
            if lease is not None:
                self._leases.hold(decision.reservation.handles[0], lease)
            return decision
        if asked is not scopes and decision.dimension is not Dimension.PARALLEL:
            return self._fallback.told(scopes, asked, decision)
        if isinstance(decision, Refused):
            self._denials.note(team, scopes, cost, decision, self._clock.monotonic_ns(), mark)
        return decision

    def _question(self, team: str, scopes: Sequence[Scope], cost: Cost) -> tuple[bytes, list[str], Lease | None]:
        """The first argument and the keys of a reservation, and the lease it asks for."""
        first, keys, counts_places = pack_cost(cost), [], False
        for scope in scopes:
            keys.append(bucket_key(team, scope.name))
            if scope.max_parallel is not None:
                counts_places = True
        lease = self._leases.draw(team, scopes, cost) if counts_places else None
        if lease is not None:
            first += lease.terms + lease.id
            keys += lease.keys
        return first, keys, lease

    async def _ask_capped(
        self,
        team: str,
        scopes: Sequence[Scope],
        asked: Sequence[Scope],
        cost: Cost,
        spend: Spend,
        keys: list[str],
        first: bytes,
    ) -> Decision:
        """Ask for budgets as well; where an account is not there, make it and ask once more."""
        for is_again in (False, True):
            more, terms = self.budgets.question(team, spend)
            answer = await self._ask(self._verbs.reserve_capped, keys + more, asked, first, last=(terms,))
            if answer[0] == OVER_BUDGET:
                return self.budgets.over(spend, answer)
            if answer[0] != ABSENT:
                return self.budgets.decision(team, scopes, cost, spend, answer)
            if not is_again:
                spend = await self.budgets.open(team, spend, answer[1:])
        raise StoreAway(LIMITER_STORE, "reserve")

    async def _stand_in(
        self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None, failure: RedisFailure
    ) -> Decision:
        """Decide without the store, which has failed to."""
        self._store_failed(LIMITER_STORE, "reserve")
        self._presence.silent()
        self._is_wary = True
        self._knock(team)
        return await self._decide_alone(team, scopes, cost, spend, failure)

    async def _decide_alone(
        self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None, failure: RedisFailure
    ) -> Decision:
        if spend is None:
            return await self._fallback.reserve(team, scopes, cost, failure)
        over = self.budgets.refusal(team, spend)
        if over is not None:
            return over
        return self.budgets.stood_in(team, spend, await self._fallback.reserve(team, scopes, cost, failure))

    def _hear(self, team: str, scopes: Sequence[Scope], decision: Decision, *, overtaken: bool) -> None:
        """Note what an answer tells of the store, and tell it what the fallback counted meanwhile."""
        self._fallback.seen(team, scopes, decision, overtaken=overtaken)
        if team in self._fallback or team in self.budgets:
            self._tell(team)
        if type(decision) is Admitted:
            reservation = decision.reservation
            self._losses.admitted(team, scopes, reservation.cost, reservation.handles, self._stores_clock.now_ms)

    async def _reserve_warily(self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None) -> Decision:
        """Tell the store what it does not know, and ask it if it is there."""
        key = bucket_key(team, TEAM_SCOPE)
        # Before the question, on the same connection: the answer knows of it.
        if (team in self._fallback or team in self._debts or team in self.budgets) and self._scripts.reaches(key):
            self._tell(team)
        away = self._scripts.away(key)
        asked = scopes if away is None else self._fallback.ask_with(scopes, cost, away)
        if asked is None:
            self._knock(team)
            return await self._decide_alone(team, scopes, cost, spend, NeverSent(Why.AWAY))
        if isinstance(asked, Refused):
            return asked
        return await self._reserve(team, scopes, asked, cost, spend)

    def settle(self, reservation: Reservation, actual: Cost, spent_nano_usd: int = 0) -> None:
        """Put `actual` in the place of the reserved cost; a second settlement of a reservation does nothing.

        `spent_nano_usd` is spent of the budgets instead of what was reserved.
        """
        team, scopes, handles = reservation.team, reservation.scopes, reservation.handles
        if handles[0].settled:
            return
        capped = None if reservation.spend is None else self.budgets.settle(reservation, spent_nano_usd)
        if self._fallback.settle(reservation, actual):
            return
        for handle in handles:
            handle.settled = True
        self._denials.forget(team)
        self._losses.settled(team, scopes, reservation.cost, actual)
        beyond = beyond_reserved(reservation.cost, actual)
        if beyond.requests or beyond.tokens:
            self._overtake(team, scopes, beyond)
        terms = [pack_terms(scope.schedule, handle) for scope, handle in zip(scopes, handles, strict=True)]
        first, keys = pack_settlement(reservation.cost, actual), [bucket_key(team, scope.name) for scope in scopes]
        if self._leases and (lease := self._leases.give_up(handles[0])) is not None:
            first += lease.id
            keys += lease.keys
        verb, args = self._verbs.settle, [first, *terms]
        if capped is not None:
            verb = self._verbs.settle_capped
            keys += capped[0]
            args.append(capped[1])
        self._post(verb, keys, args, partial(self._owe, "settle", team, scopes, beyond))

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Take `cost` without asking; the buckets may go into debt."""
        self._overtake(team, scopes, cost)
        keys = [bucket_key(team, scope.name) for scope in scopes]
        self._charge(team, scopes, cost, keys, partial(self._owe, "charge", team, scopes, cost))

    async def peek(self, team: str, scopes: Sequence[Scope]) -> tuple[Standing, ...]:
        """Where each scope stands now; writes nothing."""
        if team in self._debts:
            self._catch_up(team)
        try:
            numbers = await self._ask(self._verbs.peek, [bucket_key(team, scope.name) for scope in scopes], scopes)
        except RedisFailure as failure:
            self._store_failed(LIMITER_STORE, "peek")
            return await self._fallback.peek(team, scopes, failure)
        return tuple(bucket.standing(numbers[at : at + _STANDING]) for at in range(0, len(numbers), _STANDING))

    def _find_denial(self, team: str, scopes: Sequence[Scope], cost: Cost) -> Refused | None:
        return self._denials.find(team, scopes, cost, self._clock.monotonic_ns())

    async def _ask(
        self, verb: Script, keys: list[str], scopes: Sequence[Scope], *first: bytes, last: tuple[bytes, ...] = ()
    ) -> list[int]:
        args = [*first, *(pack_schedule(scope.schedule) for scope in scopes), *last]
        reply = await self._scripts.run(verb, keys, args)
        self._presence.answered()
        answer = cast("list[int]", reply)
        self._stores_clock.heard(answer.pop(0))
        return answer

    def _post(self, verb: Script, keys: list[str], args: list[bytes], on_failure: OnFailure) -> None:
        if not self._scripts.post(verb, keys, args, on_failure):
            on_failure(NeverSent(Why.AWAY))

    def _charge(self, team: str, scopes: Sequence[Scope], cost: Cost, keys: list[str], on_failure: OnFailure) -> None:
        self._denials.forget(team)
        args = [pack_charge(cost), *(pack_schedule(scope.schedule) for scope in scopes)]
        self._post(self._verbs.charge, keys, args, on_failure)

    def tell_all(self) -> None:
        """Charge a store that is back with all it has not been told, without waiting for the teams to come again."""
        for team in {*self._fallback.untold(), *self._debts.teams(), *self.budgets.untold()}:
            if self._scripts.reaches(bucket_key(team, TEAM_SCOPE)):
                self._tell(team)

    def _tell(self, team: str) -> None:
        """Charge the store with what was counted in its place, and with what it could not be told."""
        for scope, cost in self._fallback.owed(team):
            self._overtaking += 1
            self._debts.add(team, (scope,), cost)
        self.budgets.tell(team)
        self._catch_up(team)

    def _catch_up(self, team: str) -> None:
        for debt in tuple(self._debts.take(team)):
            keys = [*(bucket_key(team, scope.name) for scope in debt.scopes), charge_key(team, debt.id)]
            self._charge(team, debt.scopes, debt.cost, keys, partial(self._owe_again, team, debt))

    def _owe(self, verb: str, team: str, scopes: Sequence[Scope], cost: Cost, failure: RedisFailure) -> None:  # noqa: ARG002 - whatever it was
        """Keep what a command that failed would have charged."""
        self._store_failed(LIMITER_STORE, verb)
        self._is_wary = True
        if (cost.requests > 0 or cost.tokens > 0) and not self._fallback.charge(team, scopes, cost):
            self._debts.add(team, scopes, cost)

    def _owe_again(self, team: str, debt: Debt, failure: RedisFailure) -> None:
        """Keep a debt that may not have been charged."""
        self._store_failed(LIMITER_STORE, "charge")
        self._is_wary = True
        debt.doubtful = debt.doubtful or isinstance(failure, Indefinite)
        self._debts.keep(team, debt)

    def _overtake(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Note that a charge is on its way of which the next answers may not know."""
        self._overtaking += 1
        self._fallback.charged(team, scopes, cost)

    def _knock(self, team: str) -> None:
        """Have the store of a team show that it is there, if it is."""
        now_ns = self._clock.monotonic_ns()
        if now_ns - self._knocked_ns >= _KNOCK_NS:
            self._knocked_ns = now_ns
            self._scripts.knock(bucket_key(team, TEAM_SCOPE), self._is_away)

    def _is_away(self, failure: RedisFailure) -> None:  # noqa: ARG002 - whatever it was
        self._is_wary = True

    def _not_renewed(self, failure: RedisFailure) -> None:  # noqa: ARG002 - whatever it was
        self._store_failed(LIMITER_STORE, "renew")
