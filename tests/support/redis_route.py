"""Routes and multiplexers for tests: opened, spawned for and closed in one block, with nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.route import RedisRoute
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.core.breaker import BreakerPolicy
from tests.support.tasks import Tasks

__all__ = ["PATIENT", "in_haste", "open_route", "until_async", "until_true"]

# Deadlines that a loaded machine keeps, for tests that are not about deadlines.
PATIENT = MultiplexerOptions(
    Bounds(deadline_seconds=10.0, silence_seconds=20.0),
    BreakerPolicy(rest_ms=20, max_rest_ms=100),
    connect_seconds=10.0,
    max_backoff_seconds=0.2,
)
_WAIT_SECONDS = 40.0


@asynccontextmanager
async def open_route(
    url: str, options: MultiplexerOptions = PATIENT, tasks: Tasks | None = None
) -> AsyncIterator[RedisRoute]:
    """The route of a URL, open; at the end everything that was spawned must have ended by itself."""
    tasks = tasks or Tasks()
    route = route_for(url, tasks, options)
    try:
        await route.open()
        yield route
    finally:
        await route.close()
        await tasks.finished()


@contextmanager
def in_haste(route: RedisRoute, deadline_seconds: float = 0.05) -> Iterator[None]:
    """Within the block an answer is given up soon, on the connections that are there; before and after as usual.

    For what becomes of answers that do not come: what a test asks besides is not to fail on a busy machine.
    """
    wires = [wire for primary in route.primaries() if (wire := primary._wire) is not None]
    usual = [wire.deadline_seconds for wire in wires]
    for wire in wires:
        wire.hold_to(deadline_seconds)
    try:
        yield
    finally:
        for wire, seconds in zip(wires, usual, strict=True):
            wire.hold_to(seconds)


async def until_true(holds: Callable[[], object], what: str, seconds: float = _WAIT_SECONDS) -> None:
    """Wait until something holds."""
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110 - what holds is decided elsewhere, often in another process
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


async def until_async(ask: Callable[[], Awaitable[object]], what: str, seconds: float = _WAIT_SECONDS) -> object:
    """Ask until there is an answer; a failure is none."""
    failure: RedisFailure | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    return await ask()
                except RedisFailure as error:
                    failure = error
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}; last: {failure!r}") from None
