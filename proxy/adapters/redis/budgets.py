"""Accounts of budgets in Redis, as the limiter there needs them.

They are decided by the scripts that decide buckets, in the same round trip. What is here makes accounts from the
ledger, takes its word for them every minute, and reads what scripts answer of them.

What a reservation of which no answer came has charged stays charged until the ledger's word is taken for its minute,
and so does what a settlement that was lost would have given back: that long a budget holds less than it could.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from msgspec.structs import replace

from proxy.adapters.redis.accounts import account_key, account_keys, pack_reserved, pack_spent
from proxy.adapters.redis.bucket_state import charge_key
from proxy.adapters.redis.budget_parts import BudgetParts, Telling
from proxy.adapters.redis.fallback import LIMITER_STORE
from proxy.adapters.redis.limiter_scripts import AccountScripts
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.spent import SpentReader, at_once, resync_for_ever
from proxy.core import bucket
from proxy.core.bucket import Admitted, Cost, Decision, NeverFits, OverBudget, Refused, Reservation, Scope
from proxy.core.budget import Cap, Spend
from proxy.core.decision import ADMITTED, standing
from proxy.core.errors import StoreAway
from proxy.ports import Clock

__all__ = ["ABSENT", "OVER_BUDGET", "RedisBudgets"]

OVER_BUDGET, ABSENT = 3, 4
"""First numbers of answers that speak of accounts alone."""
_OF_AN_ACCOUNT = 4
_STANDING = slice(1, 7)
_MOST_USED = 10_000


class RedisBudgets:
    """The accounts that this worker asks for."""

    def __init__(
        self,
        scripts: Scripts,
        reader: SpentReader,
        clock: Clock,
        verbs: AccountScripts,
        parts: BudgetParts | None = None,
    ) -> None:
        """`parts` decides while the store is away; without it nobody holds budgets then."""
        self.parts = parts
        self._scripts = scripts
        self._reader = reader
        self._clock = clock
        self._verbs = verbs
        self._used: dict[tuple[str, str], tuple[Cap, int]] = {}
        """Accounts and when they were last asked for; who was asked for longest ago comes first."""
        self._kept_ms = 2 * reader.settled_after_ms

    def __len__(self) -> int:
        """Accounts that were asked for lately."""
        return len(self._used)

    def __contains__(self, team: str) -> bool:
        """Whether anything was spent here that the store has not been told."""
        return self.parts is not None and team in self.parts

    def untold(self) -> tuple[str, ...]:
        """Every team of which something was."""
        return () if self.parts is None else self.parts.untold()

    def question(self, team: str, spend: Spend) -> tuple[list[str], bytes]:
        """The keys and the terms of a reservation. Raises `StoreAway` for a while after the store was."""
        now_ms = self._clock.now_ms()
        for cap in spend.caps:
            key = (team, cap.name)
            self._used.pop(key, None)
            self._used[key] = (cap, now_ms)
        while len(self._used) > _MOST_USED:
            del self._used[next(iter(self._used))]
        asked = spend if self.parts is None else self.parts.ask_with(team, spend)
        return account_keys(team, spend.caps), pack_reserved(asked, self._kept_ms)

    def decision(
        self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend, answer: list[int]
    ) -> Admitted | Refused | NeverFits:
        """The decision of the buckets; an admission is one of all the accounts as well."""
        if answer[0] != ADMITTED:
            return bucket.decision(team, scopes, cost, answer)
        size = len(answer) - _OF_AN_ACCOUNT * len(spend.caps)
        admitted = bucket.decision(team, scopes, cost, answer[:size])
        assert isinstance(admitted, Admitted)  # noqa: S101 - the first number says so
        minutes, epochs, totals, were_reached = (tuple(answer[size + place :: _OF_AN_ACCOUNT]) for place in range(4))
        if self.parts is not None:
            for cap, epoch, total in zip(spend.caps, epochs, totals, strict=True):
                self.parts.saw(team, cap, epoch, total)
        reservation = replace(admitted.reservation, spend=spend, minutes=minutes, epochs=epochs)
        reached = tuple(cap for cap, was_reached in zip(spend.caps, were_reached, strict=True) if was_reached)
        return Admitted(reservation, admitted.standing, reached)

    def over(self, spend: Spend, answer: Sequence[int]) -> OverBudget:
        """The refusal that an answer stands for. Raises `StoreAway` where only the parts of others are too much."""
        index, used = answer[7:9]
        cap = spend.caps[index]
        if cap.limit_nano_usd is None or used + spend.nano_usd <= cap.limit_nano_usd:
            raise StoreAway(LIMITER_STORE, "reserve")
        return OverBudget(cap, used, spend.nano_usd, standing(answer[_STANDING]))

    async def open(self, team: str, spend: Spend, absent: Sequence[int]) -> Spend:
        """Make the accounts of these indexes; returns what can be held. Raises `StoreAway`, `RedisFailure`."""
        caps = [spend.caps[index] for index in absent]
        return await self._reader.open(team, spend, caps, partial(self._make, team))

    async def _make(self, team: str, cap: Cap) -> None:
        spent = await self._reader.read(team, cap)
        tail = [number for item in spent.minutes.items() for number in item]
        args = (spent.base_nano_usd, spent.boundary, self._kept_ms, *tail)
        # Whoever makes it first: it is not made twice.
        await self._scripts.run(self._verbs.open, [account_key(team, cap.name)], [str(each) for each in args])

    async def run(self) -> None:
        """Take the ledger's word for what has settled, every minute. Until cancelled."""
        await resync_for_ever(self.resync)

    async def resync(self) -> None:
        """Take it once for every account in use; while the ledger is away nothing changes.

        Harmless however many workers do it: the boundary moves forward only, and the base is the ledger's whoever
        brings it.
        """
        until_ms = self._clock.now_ms() - self._kept_ms
        for key, (_, used_ms) in tuple(self._used.items()):
            if used_ms <= until_ms:
                del self._used[key]
        await at_once(((team, cap) for (team, _), (cap, _) in self._used.items()), self._resync)

    async def _resync(self, item: tuple[str, Cap]) -> None:
        team, cap = item
        key = account_key(team, cap.name)
        if not self._scripts.reaches(key):
            return
        spent = await self._reader.read(team, cap)
        args = [str(spent.boundary), str(spent.base_nano_usd)]
        try:
            answer = cast("list[int]", await self._scripts.run(self._verbs.resync, [key], args))
        except RedisFailure:
            return
        if answer and self.parts is not None:
            self.parts.saw(team, cap, *answer)

    def refusal(self, team: str, spend: Spend) -> OverBudget | None:
        """What this worker's parts have too little for, the store being away. Raises `StoreAway`."""
        return None if self.parts is None else self.parts.refusal(team, spend)

    def stood_in(self, team: str, spend: Spend, decision: Decision) -> Decision:
        """Spend of this worker's parts what was admitted without the store."""
        if self.parts is None or not isinstance(decision, Admitted):
            return decision
        minutes = self.parts.take(team, spend, decision.reservation.handles[0])
        return Admitted(replace(decision.reservation, spend=spend, minutes=minutes), decision.standing)

    def settle(self, reservation: Reservation, spent_nano_usd: int) -> tuple[list[str], bytes] | None:
        """The keys and the terms of a settlement; None where the store's accounts hold nothing of it."""
        spend = reservation.spend
        if spend is None or not reservation.epochs:
            if self.parts is not None:
                self.parts.settle(reservation, spent_nano_usd)
            return None
        keys = [account_key(reservation.team, cap.name) for cap in spend.caps]
        return keys, pack_spent(spend, spent_nano_usd, reservation.minutes, reservation.epochs)

    def tell(self, team: str) -> None:
        """Add to the accounts what was spent while the store was away."""
        if self.parts is None:
            return
        for telling in self.parts.owed(team):
            keys = [account_key(team, telling.name), charge_key(team, telling.id)]
            args = [str(telling.epoch), *(str(number) for item in telling.minutes.items() for number in item)]
            failed = partial(self._not_told, self.parts, telling)
            if not self._scripts.post(self._verbs.add, keys, args, failed):
                self.parts.keep(telling)

    def _not_told(self, parts: BudgetParts, telling: Telling, failure: RedisFailure) -> None:  # noqa: ARG002 - whatever it was
        parts.keep(telling)
