"""Engines of `ports.Limiter` for tests, on a clock that stands still until it is moved."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from proxy.adapters.memory.budgets import MemoryBudgets
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.accounts import account_key
from proxy.adapters.redis.bucket_state import bucket_key
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.spent import SpentReader
from proxy.ports import Clock, Limiter
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command, on_hand_clock, scripts_with
from tests.support.redis_route import open_route
from tests.support.spend_books import SpendBooks

__all__ = ["Engine", "HandClock", "memory_engine", "redis_engine"]

_AHEAD_MS = 61_000


@dataclass
class HandClock:
    """A clock that moves when it is told to, and tells a server that goes by it."""

    wall_ms: int = FAR_AHEAD_MS
    monotonic_ms: int = 5_000_000
    on_change: Callable[[int], None] = field(default=lambda now_ms: None, repr=False)

    def now_ms(self) -> int:
        return self.wall_ms

    def monotonic_ns(self) -> int:
        return self.monotonic_ms * 1_000_000

    def advance(self, passed_ms: int) -> None:
        """Let time pass."""
        self.monotonic_ms += passed_ms
        self.step(passed_ms)

    def step(self, by_ms: int) -> None:
        """Set the wall clock, as an operator or a time daemon does."""
        if by_ms:
            # A server that is told the same millisecond again would go through its microseconds again.
            self.wall_ms += by_ms
            self.on_change(self.wall_ms)


@dataclass
class _CallersClock:
    """The clock of a caller of a store: ahead of the store's by a minute, and nothing may depend on it."""

    stores: HandClock

    def now_ms(self) -> int:
        return self.stores.now_ms() + _AHEAD_MS

    def monotonic_ns(self) -> int:
        return self.stores.monotonic_ns()


@dataclass
class Engine:
    """A limiter, the clock it goes by, and a way to make it lose a bucket: by team and scope."""

    limiter: Limiter
    clock: HandClock
    lose: Callable[[str, str], Awaitable[object]]
    callers_clock: Clock
    """By which callers tell when a request was admitted."""
    books: SpendBooks
    """The ledger that accounts of budgets are made from."""
    failures: Counter[tuple[str, str]]
    """Operations of stores that were counted as failed."""
    resync: Callable[[], Awaitable[None]]
    lose_account: Callable[[str, str], Awaitable[object]]
    """By team and name."""


def memory_engine(clock: HandClock, of: type[MemoryLimiter] = MemoryLimiter) -> Engine:
    """The embedded limiter."""
    books, failures = SpendBooks(), Counter[tuple[str, str]]()
    budgets = MemoryBudgets(_reader(books, clock, failures), clock)
    limiter = of(clock, budgets)

    async def lose(team: str, scope: str) -> None:
        limiter.forget(team, scope)

    async def lose_account(team: str, name: str) -> None:
        budgets.forget(team, name)

    return Engine(limiter, clock, lose, clock, books, failures, budgets.resync, lose_account)


@asynccontextmanager
async def redis_engine(url: str, clock: HandClock, *changes: Callable[[str, str], str]) -> AsyncIterator[Engine]:
    """The limiter on an empty server, its scripts on `clock` and with `changes`; no command may fail."""
    failures: Counter[tuple[str, str]] = Counter()
    async with open_route(url) as route:

        def tell(now_ms: int) -> None:
            # Queued behind what was posted before, so that this is still carried out at its own time.
            assert route.post("hand", *clock_command(now_ms))

        async def lose(team: str, scope: str) -> None:
            await route.execute(bucket_key(team, scope), "DEL", bucket_key(team, scope))

        async def lose_account(team: str, name: str) -> None:
            await route.execute(account_key(team, name), "DEL", account_key(team, name))

        clock.on_change = tell
        tell(clock.now_ms())
        books, callers = SpendBooks(), _CallersClock(clock)
        limiter = RedisLimiter(
            Scripts(route),
            callers,
            Closed(),
            lambda store, operation: failures.update([(store, operation)]),
            verbs=scripts_with(*changes, on_hand_clock),
            reader=_reader(books, callers, failures),
        )
        await limiter.load()
        yield Engine(limiter, clock, lose, callers, books, failures, limiter.budgets.resync, lose_account)
    assert not [failed for failed in failures if failed[0] != "ledger"]


def _reader(books: SpendBooks, clock: Clock, failures: Counter[tuple[str, str]]) -> SpentReader:
    return SpentReader(books, clock, lambda store, operation: failures.update([(store, operation)]))
