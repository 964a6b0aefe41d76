"""While the limiter's store is away, each worker spends its part of what budgets had left.

A part is of what this worker last saw left: with an answer of the store, or when the ledger's word was last taken,
which is a minute ago at the most. So all workers together spend no more than was left, and what others spent between
this worker's last look and the absence. A budget that this worker has not seen lately cannot be held: nothing is spent
of it.

What was spent is added to the account when the store is back. Until every worker has had time to, the parts of others
are kept free there.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from msgspec.structs import replace

from proxy.adapters.redis.fallback import LIMITER_STORE
from proxy.core.bucket import Handle, OverBudget, Reservation, Standing
from proxy.core.budget import Cap, Spend, minute_of
from proxy.core.errors import StoreAway
from proxy.core.share import Away, Part, part_of
from proxy.ports import Clock

__all__ = ["BudgetParts", "Telling"]

_MOST_SEEN = 10_000
_MOST_FAILED = 64
_FRESH_MS = 120_000
"""An account in use is seen every minute or so."""
_Key = tuple[str, str]


@dataclass(slots=True)
class _Seen:
    """An account as it was last seen, and what was spent of it here since without the store."""

    at_ms: int
    epoch: int
    total_nano_usd: int
    calm_nano_usd: int
    """The total before the latest absence: parts are of what was left then."""
    given: dict[int, int] = field(default_factory=dict)
    """By minute of admission; not yet told."""
    told: int = 0
    """How often the store was told."""
    telling_nano_usd: int = 0
    """What it is being told, and the total does not know of yet."""

    @property
    def used_nano_usd(self) -> int:
        """What is spent as far as this worker knows."""
        return self.total_nano_usd + self.telling_nano_usd + sum(self.given.values())


@dataclass(frozen=True, slots=True)
class Telling:
    """What the store is to be told of one account; it takes one of an `id` once, however often it comes."""

    id: str
    team: str
    name: str
    epoch: int
    minutes: dict[int, int]

    @property
    def nano_usd(self) -> int:
        """All of it."""
        return sum(self.minutes.values())


class BudgetParts:
    """This worker's parts; bounded, the account not seen for longest is forgotten."""

    def __init__(self, clock: Clock, part: Callable[[], Part], away: Callable[[str], Away | None]) -> None:
        """`part` is this worker's now; `away` is of the store that holds a team."""
        self._clock = clock
        self._part = part
        self._away = away
        self._seen: dict[_Key, _Seen] = {}
        self._mine: dict[Handle, tuple[int, ...]] = {}
        self._untold: dict[str, set[str]] = {}
        self._failed: dict[str, list[Telling]] = {}
        # A name may come again, with another process; what follows it does not.
        self._holder = secrets.token_hex(6)
        self._numbers = count(1)

    def __contains__(self, team: str) -> bool:
        """Whether anything was spent here that the store has not been told."""
        return team in self._untold or team in self._failed

    def untold(self) -> tuple[str, ...]:
        """Every team of which something was."""
        return tuple({*self._untold, *self._failed})

    def saw(self, team: str, cap: Cap, epoch: int, total_nano_usd: int) -> None:
        """Remember how an account stands."""
        key = (team, cap.name)
        seen = self._seen.pop(key, None)
        if seen is None:
            if len(self._seen) >= _MOST_SEEN:
                self._forget_one()
            seen = _Seen(0, epoch, total_nano_usd, total_nano_usd)
        seen.at_ms, seen.epoch, seen.total_nano_usd = self._now_ms(), epoch, total_nano_usd
        seen.telling_nano_usd = 0
        if self._away(team) is None:
            seen.calm_nano_usd = total_nano_usd
        self._seen[key] = seen

    def refusal(self, team: str, spend: Spend) -> OverBudget | None:
        """The first budget whose part has too little left. Raises `StoreAway` where nobody can tell."""
        for cap in spend.caps:
            if cap.limit_nano_usd is not None:
                seen = self._lately(team, cap)
                failed = (each.nano_usd for each in self._failed.get(team, ()) if each.name == cap.name)
                used = seen.used_nano_usd + sum(failed) + self._kept(cap.limit_nano_usd, seen)
                if used + spend.nano_usd > cap.limit_nano_usd:
                    return OverBudget(cap, used, spend.nano_usd, Standing())
        return None

    def take(self, team: str, spend: Spend, handle: Handle) -> tuple[int, ...]:
        """Spend of every budget that was seen; returns the minute of each."""
        minute, told = minute_of(spend.at_ms), []
        for cap in spend.caps:
            seen = self._seen.get((team, cap.name))
            told.append(seen.told if seen is not None else -1)
            if seen is not None:
                self._give(team, cap, seen, minute, spend.nano_usd)
        self._mine[handle] = tuple(told)
        return (minute,) * len(spend.caps)

    def settle(self, reservation: Reservation, spent_nano_usd: int) -> bool:
        """Settle what was spent here; False when it was not, or is settled.

        Where the store was told meanwhile only more comes to it: of less the ledger tells.
        """
        spend, handle = reservation.spend, reservation.handles[0]
        told = self._mine.pop(handle, None)
        if spend is None or told is None:
            return False
        for cap, minute, then in zip(spend.caps, reservation.minutes, told, strict=True):
            seen = self._seen.get((reservation.team, cap.name))
            if seen is not None and then >= 0:
                added = spent_nano_usd - spend.nano_usd
                self._give(reservation.team, cap, seen, minute, added if seen.told == then else max(0, added))
        return True

    def owed(self, team: str) -> tuple[Telling, ...]:
        """Give up what was spent, for the store to be told."""
        tellings = self._failed.pop(team, [])
        for name in self._untold.pop(team, ()):
            seen = self._seen.get((team, name))
            if seen is not None:
                id_ = f"{self._holder}:{next(self._numbers)}"
                tellings.append(Telling(id_, team, name, seen.epoch, seen.given))
                seen.given = {}
                seen.told += 1
        for each in tellings:
            seen = self._seen.get((team, each.name))
            if seen is not None:
                seen.telling_nano_usd += each.nano_usd
        return tuple(tellings)

    def keep(self, telling: Telling) -> None:
        """Take back what the store may not have been told. Bounded: the oldest is left to the ledger, which has it."""
        seen = self._seen.get((telling.team, telling.name))
        if seen is not None:
            seen.telling_nano_usd = max(0, seen.telling_nano_usd - telling.nano_usd)
            failed = self._failed.setdefault(telling.team, [])
            failed.append(telling)
            del failed[:-_MOST_FAILED]

    def ask_with(self, team: str, spend: Spend) -> Spend:
        """The budgets without the parts of others, who may not have told yet. Raises `StoreAway` as `refusal` does."""
        if self._away(team) is None or self._part().workers == 1:
            return spend
        return replace(spend, caps=tuple(self._less(team, cap) for cap in spend.caps))

    def _less(self, team: str, cap: Cap) -> Cap:
        if cap.limit_nano_usd is None:
            return cap
        kept = self._kept(cap.limit_nano_usd, self._lately(team, cap))
        return replace(cap, limit_nano_usd=cap.limit_nano_usd - kept)

    def _kept(self, limit_nano_usd: int, seen: _Seen) -> int:
        """The parts of others."""
        left = max(0, limit_nano_usd - seen.calm_nano_usd)
        return left - part_of(left, self._part())

    def _lately(self, team: str, cap: Cap) -> _Seen:
        seen, away = self._seen.get((team, cap.name)), self._away(team)
        unheard_ms = away.unheard_ms if away is not None else 0
        if seen is None or self._now_ms() - seen.at_ms > unheard_ms + _FRESH_MS:
            raise StoreAway(LIMITER_STORE, "reserve")
        return seen

    def _give(self, team: str, cap: Cap, seen: _Seen, minute: int, amount: int) -> None:
        if amount:
            seen.given[minute] = seen.given.get(minute, 0) + amount
            self._untold.setdefault(team, set()).add(cap.name)

    def _forget_one(self) -> None:
        """Drop the one that was not seen for longest; what was spent of it the ledger has."""
        team, name = next(iter(self._seen))
        del self._seen[team, name]
        names = self._untold.get(team, set())
        names.discard(name)
        if not names:
            self._untold.pop(team, None)
        failed = [each for each in self._failed.pop(team, ()) if each.name != name]
        if failed:
            self._failed[team] = failed

    def _now_ms(self) -> int:
        return self._clock.monotonic_ns() // 1_000_000
