"""Load from this process: a closed loop, and an open one that counts the time in which requests wait for their turn."""

from __future__ import annotations

import asyncio
import math
import select
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from caller import Caller, CallFailed, connect
from question import Load
from servers import Server

GRACE_SECONDS = 30.0
TIMER_SECONDS = 1e-6
"""A timer may be early by the grain of the clock."""
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Waits:
    """Latencies of an open loop, sorted, in microseconds; and how late the generator itself was, as its 99th of 100."""

    microseconds: tuple[float, ...]
    late_p99_microseconds: float

    def quantile(self, part: float) -> float:
        """The latency that so many had at most."""
        return quantile(self.microseconds, part)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The least of the values that `part` of all do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


class Precise(selectors.DefaultSelector):
    """Waits to the microsecond: epoll knows milliseconds alone, and can be waited for by what knows more."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As the selector of this platform, but precisely."""
        if timeout is not None and timeout > 0:
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        return super().select(timeout)


def run_precisely(work: Coroutine[Any, Any, Result]) -> Result:
    """Run on a loop whose timers keep to the microsecond, which neither asyncio's nor uvloop's own do."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(Precise())) as runner:
        return runner.run(work)


class _Loop:
    """What both loops share: connections, the requests to come, and an end."""

    def __init__(self, server: Server, load: Load) -> None:
        self._load = load
        self._server = server
        self._requests = load.requests(server)
        self._callers: list[Caller] = []
        self._refused = 0
        self._over: asyncio.Future[None] | None = None

    async def _ask_all(self, told: Callable[[Caller, int], None], begin: Callable[[], None], seconds: float) -> None:
        """Connect, begin, and wait for the end; a failure ends it."""
        self._over = asyncio.get_running_loop().create_future()
        try:
            for _ in range(self._load.connections):
                self._callers.append(await connect(self._server.port, told, self._failed))
            begin()
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                await self._over
        except (CallFailed, TimeoutError, OSError) as error:
            raise SystemExit(f"{self._server.name}: {error!r}") from None
        finally:
            for caller in self._callers:
                caller.close()

    def _failed(self, error: CallFailed) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    def _finish(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


class ClosedLoop(_Loop):
    """Each connection asks again as soon as it is answered, until time is over."""

    async def run(self, seconds: float) -> tuple[int, float, int, float, float]:
        """Answers, seconds, refusals, and the microseconds in which half, and 99 of 100, were answered."""
        loop = asyncio.get_running_loop()
        asked: dict[Caller, float] = {}
        waits: list[float] = []
        began = until = 0.0

        def told(caller: Caller, status: int) -> None:
            now = loop.time()
            waits.append(now - asked.pop(caller))
            self._refused += status >= 400
            if now < until:
                ask(caller)
            elif not asked:
                self._finish()

        def ask(caller: Caller) -> None:
            asked[caller] = loop.time()
            caller.ask(next(self._requests))

        def begin() -> None:
            nonlocal began, until
            began = loop.time()
            until = began + seconds
            for caller in self._callers:
                ask(caller)

        await self._ask_all(told, begin, seconds)
        took = loop.time() - began
        waits.sort()
        return len(waits), took, self._refused, quantile(waits, 0.5) * 1e6, quantile(waits, 0.99) * 1e6


class OpenLoop(_Loop):
    """Requests are due at fixed instants; one that finds no free connection waits for it, and its latency with it."""

    async def run(self, per_second: float, seconds: float) -> Waits:
        """Ask `per_second * seconds` times, and wait for all answers."""
        loop = asyncio.get_running_loop()
        count = max(1, round(per_second * seconds))
        due_of: dict[Caller, float] = {}
        waiting: deque[float] = deque()
        free: list[Caller] = []
        waits: list[float] = []
        late: list[float] = []
        began = 0.0
        arrived = 0

        def arrive() -> None:
            nonlocal arrived
            now = loop.time()
            while arrived < count and (due := began + arrived / per_second) <= now + TIMER_SECONDS:
                waiting.append(due)
                late.append(max(0.0, now - due))
                arrived += 1
            if arrived < count:
                loop.call_at(began + arrived / per_second, arrive)
            serve()

        def serve() -> None:
            while waiting and free:
                caller = free.pop()
                due_of[caller] = waiting.popleft()
                caller.ask(next(self._requests))

        def told(caller: Caller, status: int) -> None:
            waits.append(loop.time() - due_of.pop(caller))
            self._refused += status >= 400
            free.append(caller)
            serve()
            if len(waits) == count:
                self._finish()

        def begin() -> None:
            nonlocal began
            free.extend(self._callers)
            began = loop.time()
            arrive()

        await self._ask_all(told, begin, seconds)
        if self._refused and not self._load.refused:
            raise SystemExit(f"{self._server.name}: {self._refused} of {count} requests refused")
        return Waits(tuple(sorted(wait * 1e6 for wait in waits)), quantile(sorted(late), 0.99) * 1e6)
