"""What the ledger has of accounts, as limiters ask for it: one at a time for each, and not at once after a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from proxy.core.budget import MINUTE_MS, SETTLED_AFTER_MINUTES, Cap, Spend, minute_of
from proxy.core.errors import StoreAway
from proxy.ports import Clock, SpendLedger, Spent

__all__ = ["RESYNC_SECONDS", "SpentReader", "at_once", "resync_for_ever"]

RESYNC_SECONDS = 60.0
"""How often the ledger's word is taken for what has settled."""
_LEDGER = "ledger"
_OPERATION = "spent"
_REST_NS = 1_000_000_000
_AT_ONCE = 4

T = TypeVar("T")


class SpentReader:
    """Reads the ledger for accounts; counts what it could not read."""

    def __init__(
        self,
        ledger: SpendLedger | None,
        clock: Clock,
        store_failed: Callable[[str, str], None],
        *,
        settled_after_minutes: int = SETTLED_AFTER_MINUTES,
        lag_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        """`lag_ms` is how old an event may be that has not reached the ledger; no ledger is one that is always away."""
        self._ledger = ledger
        self._clock = clock
        self._store_failed = store_failed
        self._lag_ms = lag_ms
        self._under_way: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._rest_until_ns = clock.monotonic_ns()
        self.settled_after_ms = settled_after_minutes * MINUTE_MS
        """How long a request may take to end and to reach the ledger."""

    def boundary(self) -> int:
        """The minute before which every request has ended, and the ledger has it."""
        return minute_of(self._clock.now_ms() - self.settled_after_ms - self._lag_ms())

    async def read(self, team: str, cap: Cap) -> Spent:
        """What was spent of a budget. Raises `StoreAway`; for a second after that without asking."""
        if self._ledger is None or self._clock.monotonic_ns() < self._rest_until_ns:
            self._store_failed(_LEDGER, _OPERATION)
            raise StoreAway(_LEDGER, _OPERATION)
        try:
            return await self._ledger.spent(team, cap.scope, cap.span, self.boundary())
        except StoreAway:
            self._rest_until_ns = self._clock.monotonic_ns() + _REST_NS
            self._store_failed(_LEDGER, _OPERATION)
            raise

    async def open(
        self, team: str, spend: Spend, absent: Iterable[Cap], make: Callable[[Cap], Awaitable[None]]
    ) -> Spend:
        """Have `make` called for each account that is absent; returns what can be held.

        Raises `StoreAway` where a budget that refuses cannot be made; one that only warns is left out.
        """
        lost: set[str] = set()
        for cap in absent:
            try:
                await self._join((team, cap.name), partial(make, cap))
            except StoreAway:
                if cap.limit_nano_usd is not None:
                    raise
                lost.add(cap.name)
        if not lost:
            return spend
        return replace(spend, caps=tuple(cap for cap in spend.caps if cap.name not in lost))

    async def _join(self, key: tuple[str, str], call: Callable[[], Awaitable[None]]) -> None:
        """Call, or wait for the call that is under way; who is cancelled leaves the work to those who wait."""
        while (under_way := self._under_way.get(key)) is not None:
            await asyncio.wait([under_way])
            if not under_way.cancelled():
                return under_way.result()
        future = self._under_way[key] = asyncio.get_running_loop().create_future()
        try:
            await call()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # marks it as seen: nobody may be waiting
            raise
        else:
            future.set_result(None)
        finally:
            del self._under_way[key]


async def at_once(work: Iterable[T], do: Callable[[T], Awaitable[None]]) -> None:
    """Do some at a time; the first `StoreAway` ends it."""
    todo = iter(tuple(work))
    away = False

    async def some() -> None:
        nonlocal away
        for each in todo:
            if away:
                return
            try:
                await do(each)
            except StoreAway:
                away = True

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def resync_for_ever(resync: Callable[[], Awaitable[None]], every_seconds: float = RESYNC_SECONDS) -> None:
    """Call it every minute or so, until cancelled: workers that were started together do not stay so."""
    while True:
        await asyncio.sleep(every_seconds * (0.8 + 0.4 * random.random()))  # noqa: S311 - spreads load, hides nothing
        await resync()
