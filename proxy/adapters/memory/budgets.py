"""The accounts of budgets of one process."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.adapters.spent import SpentReader, at_once, resync_for_ever
from proxy.core.budget import MINUTE_MS, Account, Cap, Spend, minute_of
from proxy.core.decision import Reservation
from proxy.ports import Clock

__all__ = ["MemoryBudgets", "Taken"]

_Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Taken:
    """What was reserved of the budgets of a `Spend`, in their order."""

    minutes: tuple[int, ...]
    epochs: tuple[int, ...]
    reached: tuple[Cap, ...]


@dataclass(slots=True)
class _Kept:
    cap: Cap
    account: Account
    used_ms: int
    """When it was last asked for."""


class MemoryBudgets:
    """Accounts by team and name: made from the ledger when they are first asked for, dropped when idle or over.

    An account that nobody asked for since all its requests have settled is in the ledger, and nowhere else. Who was
    told of a warning is kept until the span is over, and as long as the process lives.
    """

    def __init__(self, reader: SpentReader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock
        self._kept: dict[_Key, _Kept] = {}
        self._told: dict[tuple[str, str, int | None], int | None] = {}
        """Warnings that somebody was told of, with their amount: the end of their span."""
        self._epoch = 0
        self._swept_ms = clock.now_ms()

    def __len__(self) -> int:
        """Accounts held."""
        return len(self._kept)

    async def open(self, team: str, spend: Spend) -> Spend:
        """Make the accounts that are not there; returns what can be held. Raises `StoreAway`."""
        now_ms, absent = self._clock.now_ms(), []
        for cap in spend.caps:
            kept = self._kept.get((team, cap.name))
            if kept is None:
                absent.append(cap)
            else:
                kept.used_ms = now_ms
        return await self._reader.open(team, spend, absent, lambda cap: self._make(team, cap)) if absent else spend

    def refusal(self, team: str, spend: Spend) -> tuple[Cap, int] | None:
        """The first budget that has too little left, and what is spent of it."""
        for cap in spend.caps:
            account = self._kept[team, cap.name].account
            if not account.fits(cap.limit_nano_usd, spend.nano_usd):
                return cap, account.spent_nano_usd
        return None

    def take(self, team: str, spend: Spend) -> Taken:
        """Reserve of every budget."""
        minutes, epochs, reached = [], [], []
        for cap in spend.caps:
            key = (team, cap.name)
            account = self._kept[key].account
            minutes.append(account.take(minute_of(spend.at_ms), spend.nano_usd))
            epochs.append(account.epoch)
            told = (*key, cap.warn_nano_usd)
            if account.reach(cap.warn_nano_usd) and told not in self._told:
                reached.append(cap)
                self._told[told] = cap.span.end_ms
        return Taken(tuple(minutes), tuple(epochs), tuple(reached))

    def settle(self, reservation: Reservation, actual_nano_usd: int) -> None:
        """Put what was spent in the place of what was reserved; what is dropped since is the ledger's."""
        spend = reservation.spend
        if spend is None:
            return
        for cap, minute, epoch in zip(spend.caps, reservation.minutes, reservation.epochs, strict=True):
            kept = self._kept.get((reservation.team, cap.name))
            if kept is not None:
                kept.account.settle(minute, spend.nano_usd, actual_nano_usd, epoch)

    def forget(self, team: str, name: str) -> None:
        """Drop an account: it is made anew from the ledger."""
        self._kept.pop((team, name), None)

    async def run(self) -> None:
        """Take the ledger's word for what has settled, every minute. Until cancelled."""
        await resync_for_ever(self.resync)

    async def resync(self) -> None:
        """Take it once for every account that is in use; while the ledger is away nothing changes."""
        self._sweep(self._clock.now_ms())
        await at_once(self._kept.items(), self._resync)

    async def _resync(self, item: tuple[_Key, _Kept]) -> None:
        (team, _), kept = item
        spent = await self._reader.read(team, kept.cap)
        kept.account.resync(spent.boundary, spent.base_nano_usd)

    async def _make(self, team: str, cap: Cap) -> None:
        spent = await self._reader.read(team, cap)
        key, now_ms = (team, cap.name), self._clock.now_ms()
        if now_ms >= self._swept_ms + MINUTE_MS:
            self._sweep(now_ms)
        self._epoch += 1
        account = Account(spent.base_nano_usd, spent.boundary, dict(spent.minutes), epoch=self._epoch)
        self._kept[key] = _Kept(cap, account, now_ms)

    def _sweep(self, now_ms: int) -> None:
        """Drop what is over or idle. Requests of a span that is over may still be admitted to it for a while."""
        self._swept_ms = now_ms
        grace_ms = 2 * self._reader.settled_after_ms
        for key, kept in tuple(self._kept.items()):
            end_ms = kept.cap.span.end_ms
            if now_ms >= kept.used_ms + grace_ms or (end_ms is not None and now_ms >= end_ms + grace_ms):
                del self._kept[key]
        for told, end_ms in tuple(self._told.items()):
            if end_ms is not None and now_ms >= end_ms + grace_ms:
                del self._told[told]
