"""Waiting for limits to have room, where a request asks to wait: first come, first served within a team.

Who is refused by a limit, and would have room within the time it is ready to wait, lines up behind the others of its
team. The first of a line asks the limiter again: when its wait is over, when a request of its team settles, and once a
second, for other processes give back as well. Nobody else does. On its admission the next one asks at once.

The lines of different teams have nothing to do with each other but the number of places, of which no team can keep
another out.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from msgspec.structs import replace

from proxy.core.bucket import Admitted, Cost, Decision, Dimension, Refused, Scope
from proxy.core.durations import parse_duration
from proxy.core.errors import InvalidRequest, Overloaded
from proxy.core.fair_queue import Entry, FairQueue, QueueRefusal
from proxy.core.line_wait import Ahead, refusal_behind
from proxy.ports import Clock, Limiter, QueueWatch, Spawn

__all__ = ["MAX_WAIT_HEADER", "Asking", "Turns", "parse_max_wait"]

MAX_WAIT_HEADER = "x-tollgate-max-wait"
_LOOK_MS = 1_000
"""Longest time between two questions of the first."""
_AT_ONCE_SECONDS = 0.0001
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?", re.ASCII)


def parse_max_wait(text: str) -> int:
    """Read the header as milliseconds: a Go duration, or a plain number of seconds. Raises `InvalidRequest`."""
    text = text.strip()
    try:
        return int(float(text) * 1_000) if _SECONDS.fullmatch(text) else parse_duration(text)
    except ValueError:
        raise InvalidRequest(
            f"{MAX_WAIT_HEADER} must be a duration, such as 20s, 500ms or 1m30s, or a number of seconds.",
            param=MAX_WAIT_HEADER,
        ) from None


@dataclass(frozen=True, slots=True)
class Asking:
    """Who waits, and for what."""

    team: str
    weight: int
    scopes: Sequence[Scope]
    cost: Cost
    ask: Callable[[], Awaitable[Decision]]
    """Asks the limiter, by what holds then for whoever asks; what it raises ends the wait."""


@dataclass(slots=True, eq=False)
class _Waiter:
    asking: Asking
    refused: Refused | None
    """The latest answer of the limiter."""
    ask_at: float = 0.0
    """By the loop's clock: when the limiter is asked again."""
    room_at: float = 0.0
    """By the loop's clock: when there is room, as far as the limiter knows."""
    counted: bool = False
    """Those behind count on its cost."""
    let_go: QueueRefusal | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def hear(self, refused: Refused) -> None:
        now = _time()
        self.refused = refused
        self.room_at = now + refused.wait_ms / 1_000
        self.ask_at = now + min(refused.wait_ms, _LOOK_MS) / 1_000

    def ring(self) -> None:
        self.ask_at = 0.0
        self.news.set()


class Turns:
    """The lines of one worker."""

    def __init__(
        self,
        limiter: Limiter,
        clock: Clock,
        spawn: Spawn,
        watch: QueueWatch,
        *,
        max_waiting: int = 1_000,
        longest_wait_ms: int = 60_000,
    ) -> None:
        self.longest_wait_ms = longest_wait_ms
        self._limiter = limiter
        self._clock = clock
        self._spawn = spawn
        self._watch = watch
        self._queue: FairQueue[_Waiter] = FairQueue(max_waiting)
        self._costs: dict[tuple[str, str], Ahead] = {}
        """Of each team's scope: requests and tokens that those who wait will take of it."""
        self._closed = False
        self.settlements = 0
        """Requests that were settled, of all teams."""

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def has_line(self, team: str) -> bool:
        """Whether others of the team wait."""
        return self._queue.waiting(team) > 0

    def settled(self, team: str) -> None:
        """Hear that a request of a team was settled: its place is free, and what it did not use is back."""
        self.settlements += 1
        first = self._queue.first_of(team) if self._queue else None
        if first is not None:
            first.item.ring()

    def close(self) -> None:
        """Let go of all who wait, and of who comes to wait from now on."""
        self._closed = True
        for entry in self._queue.drain():
            self._send_away(entry, QueueRefusal.SHUTDOWN)

    async def wait(
        self, asking: Asking, refused: Refused | None, bound_ms: int, *, settlements: int | None = None
    ) -> Decision:
        """Wait at most `bound_ms`, and return the limiter's decision; one that came to nothing is `Refused`.

        `refused` is its answer to one who has asked already, when there had been so many `settlements`: it may not know
        of those since. It is None for one that lines up behind others. A refusal tells
        the wait that is left, what is queued ahead included. Raises `Overloaded` at shutdown, and what asking raises.
        """
        if self._closed:
            raise self._away(QueueRefusal.SHUTDOWN)
        waiter = _Waiter(asking, refused)
        entry = self._push(waiter)
        if entry is None:
            self._watch.refused(QueueRefusal.FULL)
            return refused or await self._expected(asking)
        begun_ns = self._clock.monotonic_ns()
        why = QueueRefusal.TOO_LONG
        try:
            if self._queue.first_of(asking.team) is entry and refused is not None:
                waiter.hear(refused)
                if settlements != self.settlements:
                    waiter.ring()
                expected = refused
            else:
                expected = await self._expected(asking)
            if expected.wait_ms <= bound_ms or expected.dimension is Dimension.PARALLEL:
                why = QueueRefusal.DEADLINE
                self._count(waiter, 1)
                with suppress(TimeoutError):
                    async with asyncio.timeout(bound_ms / 1_000):
                        return await self._turn_of(entry)
                expected = await self._present(entry)
        finally:
            self._leave(entry)
            self._watch.waited((self._clock.monotonic_ns() - begun_ns) / 1e9)
        self._watch.refused(why)
        return expected

    async def _turn_of(self, entry: Entry[_Waiter]) -> Decision:
        """Wait to be the first, and ask until the limiter says anything but no."""
        waiter, team = entry.item, entry.item.asking.team
        while waiter.let_go is None:
            if self._queue.first_of(team) is not entry:
                await waiter.news.wait()
            elif (left := waiter.ask_at - _time()) > _AT_ONCE_SECONDS:
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await waiter.news.wait()
            else:
                waiter.news.clear()
                decision = await self._ask(waiter)
                if not isinstance(decision, Refused):
                    return decision
                waiter.hear(decision)
                if waiter.news.is_set():
                    # What has come back meanwhile, the answer may not know of.
                    waiter.ask_at = 0.0
                continue
            waiter.news.clear()
        if waiter.let_go is QueueRefusal.SHUTDOWN:
            raise self._away(QueueRefusal.SHUTDOWN)
        self._watch.refused(waiter.let_go)
        return await self._expected(waiter.asking)

    async def _ask(self, waiter: _Waiter) -> Decision:
        """Ask in a task of its own: who leaves meanwhile, or is out of time, has been charged nothing in the end."""
        answer: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()
        self._spawn(self._put(waiter.asking, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._undo(answer.result())
            raise

    async def _put(self, asking: Asking, answer: asyncio.Future[Decision]) -> None:
        try:
            decision = await asking.ask()
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            if not answer.done():
                answer.set_exception(error)
            return
        if answer.done():
            self._undo(decision)
        else:
            answer.set_result(decision)

    def _undo(self, decision: Decision) -> None:
        if isinstance(decision, Admitted):
            self._limiter.settle(decision.reservation, Cost(0, 0))
            self.settled(decision.reservation.team)

    def _push(self, waiter: _Waiter) -> Entry[_Waiter] | None:
        team, weight = waiter.asking.team, waiter.asking.weight
        entry = self._queue.push(team, waiter, weight)
        if entry is None and (gone := self._queue.make_room(team)) is not None:
            self._send_away(gone, QueueRefusal.FULL)
            entry = self._queue.push(team, waiter, weight)
        return entry

    def _send_away(self, entry: Entry[_Waiter], why: QueueRefusal) -> None:
        self._count(entry.item, -1)
        entry.item.let_go = why
        entry.item.news.set()

    def _leave(self, entry: Entry[_Waiter]) -> None:
        team = entry.item.asking.team
        # Also of one that was sent away before it was counted.
        self._count(entry.item, -1)
        if self._queue.remove(entry):
            # If it was the first, the next one asks at once; any other has only been told.
            first = self._queue.first_of(team)
            if first is not None:
                first.item.news.set()

    def _away(self, why: QueueRefusal) -> Overloaded:
        self._watch.refused(why)
        return Overloaded("shutting down")

    # What is queued ahead.

    def _count(self, waiter: _Waiter, sign: int) -> None:
        """Have those behind count on a waiter's cost, or no more."""
        if waiter.counted == (sign > 0):
            return
        waiter.counted = sign > 0
        asking = waiter.asking
        for scope in asking.scopes:
            at = (asking.team, scope.name)
            requests, tokens = self._costs.get(at, (0, 0))
            costs = (requests + sign * asking.cost.requests, tokens + sign * asking.cost.tokens)
            if any(costs):
                self._costs[at] = costs
            else:
                self._costs.pop(at, None)

    def _ahead_of_next(self, asking: Asking) -> list[Ahead]:
        """What those who wait take of each scope, before anybody who comes after them."""
        return [self._costs.get((asking.team, scope.name), (0, 0)) for scope in asking.scopes]

    def _ahead_of(self, entry: Entry[_Waiter]) -> list[Ahead]:
        ahead = {scope.name: (0, 0) for scope in entry.item.asking.scopes}
        for waiter in self._queue.ahead_of(entry):
            for scope in waiter.asking.scopes:
                if scope.name in ahead:
                    requests, tokens = ahead[scope.name]
                    cost = waiter.asking.cost
                    ahead[scope.name] = (requests + cost.requests, tokens + cost.tokens)
        return list(ahead.values())

    async def _present(self, entry: Entry[_Waiter]) -> Refused:
        """The wait that is left to one who is out of time."""
        waiter = entry.item
        if waiter.refused is not None and self._queue.first_of(waiter.asking.team) is entry:
            left_ms = math.ceil((waiter.room_at - _time()) * 1_000)
            return replace(waiter.refused, wait_ms=max(1, left_ms))
        return await self._expected(waiter.asking, self._ahead_of(entry))

    async def _expected(self, asking: Asking, ahead: list[Ahead] | None = None) -> Refused:
        """The wait behind others, as far as it can be known; `ahead` is None for one behind all who wait."""
        standings = await self._limiter.peek(asking.team, asking.scopes)
        if ahead is None:
            # Not before: of those who come at the same moment, each counts on the ones before it.
            ahead = self._ahead_of_next(asking)
        refused = refusal_behind(asking.scopes, standings, ahead, asking.cost, self._clock.now_ms())
        if refused is not None:
            return refused
        # It has room, but for the others: it waits as long as the first of them.
        first = self._queue.first_of(asking.team)
        if first is not None and first.item.refused is not None:
            left_ms = math.ceil((first.item.room_at - _time()) * 1_000)
            return replace(first.item.refused, wait_ms=max(1, left_ms), standing=standings[0])
        return Refused(1, asking.scopes[0].name, Dimension.REQUESTS, 0, 0, asking.cost.requests, standings[0])


def _time() -> float:
    return asyncio.get_running_loop().time()
