"""Whose call goes upstream next, and when: one pacer for each key of an upstream, in each worker.

aiolimiter says when: it waits and does not reject, which is right here and wrong for tenants (they are limited by
`core/bucket.py`). Each call takes one unit of a short period, so that there are no bursts. The pace is this worker's
part of upstream's requests per minute, slowed down by what upstream says (`core/pace.py`). `core/fair_queue.py` says
whose: those who wait are served by one pump, whoever of them came first to the limiter.

Where upstream's limits are shared, or it has one of tokens, each call is also charged to one bucket for all workers:
the limiter's, under a name no team can have. It is settled with what the call has used.

An upstream without a limit is not paced; it is held back for as long as it asks to be, like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiolimiter import AsyncLimiter

from proxy.core.bucket import Admitted, Cost, NeverFits, Refused, Reservation, Scope
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import Overloaded
from proxy.core.fair_queue import Entry, FairQueue, QueueRefusal
from proxy.core.pace import FULL, Pace, hear
from proxy.core.tiers import Limits, Schedule
from proxy.ports import Clock, Limiter, QueueWatch, Spawn, Turn

__all__ = ["FREE_TURN", "Pacer", "PacerOptions", "SharedBucket"]

_PERIOD_SECONDS = 2.0
"""Short, so that a burst is at most two seconds' worth of calls."""
_LOOK_SECONDS = 1.0
"""Longest sleep of the pump: after it, the number of workers and what others gave back are looked at again."""
_AT_ONCE_SECONDS = 0.0001
_MARGIN = 30
"""The shared bucket holds less than upstream's by one in so many, two seconds' worth: calls do not all take equally
long to arrive, and upstream counts them when they do."""


class SharedBucket:
    """Upstream's limits for one key as one bucket of all workers."""

    def __init__(
        self, limiter: Limiter, name: str, requests_per_minute: int | None, tokens_per_minute: int | None
    ) -> None:
        """`name` is the same in every worker."""
        self._limiter = limiter
        # No name of a team has a colon.
        self._team = f"upstream:{name}"
        limits = Limits(
            requests_per_minute,
            tokens_per_minute,
            None if requests_per_minute is None else _less(requests_per_minute),
            None if tokens_per_minute is None else _less(tokens_per_minute),
        )
        self._scopes = (Scope(TEAM_SCOPE, Schedule(limits, limits)),)
        self._most_tokens = limits.effective_token_capacity

    async def reserve(self, tokens: int) -> Reservation | int:
        """Charge one call, or say in how many milliseconds to ask again. Raises `StoreAway`.

        One that is larger than the bucket waits until that is full.
        """
        most = self._most_tokens
        cost = Cost(1, tokens if most is None else min(tokens, most))
        decision = await self._limiter.reserve(self._team, self._scopes, cost)
        if isinstance(decision, NeverFits):
            # A part of the bucket, while the store is away, is smaller.
            cost = Cost(1, min(cost.tokens, decision.limit))
            decision = await self._limiter.reserve(self._team, self._scopes, cost)
        match decision:
            case Admitted():
                return decision.reservation
            case Refused():
                return max(1, decision.wait_ms)
            case _:
                return int(_LOOK_SECONDS * 1_000)

    def settle(self, reservation: Reservation, actual: Cost) -> None:
        """Put what was used in the place of what was reserved."""
        self._limiter.settle(reservation, actual)


def _less(limit: int) -> int:
    return max(1, limit - -(-limit // _MARGIN))


@dataclass(frozen=True, slots=True)
class PacerOptions:
    """What one key of an upstream allows, and how long it is waited for."""

    requests_per_minute: int | None = None
    """Of all workers together; None: not paced."""
    max_waiting: int = 1_000
    deadline_seconds: float = 10.0


class _Free:
    """A turn of which nobody keeps an account."""

    __slots__ = ()

    def settle(self, tokens: int) -> None:
        """Do nothing."""


FREE_TURN: Turn = _Free()


class _Counted:
    """A turn that was charged to a bucket."""

    __slots__ = ("_bucket", "_reservation", "_woken")

    def __init__(self, bucket: SharedBucket, reservation: Reservation, woken: Callable[[], None]) -> None:
        self._bucket = bucket
        self._reservation: Reservation | None = reservation
        self._woken = woken

    def settle(self, tokens: int) -> None:
        self._settle(Cost(1, max(0, tokens)))

    def undo(self) -> None:
        self._settle(Cost(0, 0))

    def _settle(self, actual: Cost) -> None:
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._bucket.settle(reservation, actual)
            self._woken()


class _Unwatched:
    def waited(self, seconds: float) -> None:
        """Tell nobody."""

    def refused(self, reason: QueueRefusal) -> None:
        """Tell nobody."""


@dataclass(slots=True, eq=False)
class _Waiter:
    tokens: int
    answer: asyncio.Future[Turn]
    ask_at: float = 0.0
    """By the loop's clock: until then its bucket has no room."""


@dataclass(slots=True)
class _Gate:
    """aiolimiter at a rate that changes."""

    rate: float = 0.0
    """Calls a minute; 0: any number."""
    limiter: AsyncLimiter | None = None
    credit: bool = False
    """A unit was taken for one who then left."""

    def is_open(self) -> bool:
        return self.credit or self.limiter is None or self.limiter.has_capacity()

    async def pass_through(self) -> None:
        """Take a unit; waits for it."""
        if self.credit:
            self.credit = False
        elif self.limiter is not None:
            await self.limiter.acquire()

    async def turn_to(self, rate: float) -> None:
        """Go on at another rate: with what was left of a burst, and no more."""
        if rate == self.rate:
            return
        before, self.rate = self.limiter, rate
        self.limiter = _limiter_of(rate)
        if before is not None:
            used = self.limiter.max_rate - _free(before)
            if used > 0:
                await self.limiter.acquire(used)  # does not wait: it is new


def _limiter_of(rate: float) -> AsyncLimiter:
    # A bucket smaller than one call would let none through.
    per_period = rate * _PERIOD_SECONDS / 60
    return AsyncLimiter(per_period, _PERIOD_SECONDS) if per_period >= 1 else AsyncLimiter(1, 60 / rate)


def _free(limiter: AsyncLimiter) -> float:
    """Units that can be taken now, rounded down to a thousandth of all; it tells only whether so many can be."""
    least, most = 0, 1_000
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if limiter.has_capacity(limiter.max_rate * middle / 1_000) else (least, middle - 1)
    return limiter.max_rate * least / 1_000


@dataclass(slots=True)
class Pacer:
    """Lets calls upstream go at their pace; a bounded number wait, each for a bounded time.

    `workers` is how many share the requests per minute; asked at each call. `bucket` is None where nothing has to be
    counted beside the pace. `watch` hears of each wait.
    """

    options: PacerOptions
    clock: Clock
    spawn: Spawn
    workers: Callable[[], int] = lambda: 1
    bucket: SharedBucket | None = None
    watch: QueueWatch = field(default_factory=_Unwatched)
    pace: Pace = field(default_factory=Pace)
    _queue: FairQueue[_Waiter] = field(init=False)
    _gate: _Gate = field(default_factory=_Gate)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _pumps: bool = False
    _closed: bool = False

    def __post_init__(self) -> None:
        self._queue = FairQueue(self.options.max_waiting)

    @property
    def waiting(self) -> int:
        """Calls that wait for their turn."""
        return len(self._queue)

    @property
    def calls_per_minute(self) -> float | None:
        """The pace now; None: there is none."""
        return self._rate() or None

    def observe(self, status: int, headers: Mapping[str, str]) -> None:
        """Hear the head of each answer, which may slow the pace down; `headers` is case-insensitive."""
        heard = hear(status, headers, self.clock.now_ms())
        if heard.refused or heard.scarce or self.pace.refusals:
            self.pace = self.pace.after(heard, self._now_ms())

    async def turn(
        self, team: str = "", weight: int = 1, tokens: int = 0, deadline_seconds: float | None = None
    ) -> Turn:
        """Return when a call may be made for `team`; what it returns is to be settled with the tokens it used.

        Waits `deadline_seconds` at most, and never longer than the options say. Raises `Overloaded` when too many
        wait, or it would take too long, and `StoreAway` where the bucket's policy says so.
        """
        waiter = None
        if not self._queue and not self._closed and not self.pace.held_ms(self._now_ms()):
            await self._gate.turn_to(self._rate())
            if self._gate.is_open():
                await self._gate.pass_through()
                if self.bucket is None:
                    return FREE_TURN
                got = await self.bucket.reserve(tokens)
                if isinstance(got, Reservation):
                    return self._counted(got, tokens)
                self._gate.credit = True
                waiter = self._waiter(tokens, got)
        most = self.options.deadline_seconds
        seconds = most if deadline_seconds is None else min(most, deadline_seconds)
        return await self._wait(team, weight, waiter or self._waiter(tokens, 0), seconds)

    def close(self) -> None:
        """Let go of all who wait, and of who comes from now on and would have to."""
        self._closed = True
        for entry in self._queue.drain():
            self._let_go(entry, QueueRefusal.SHUTDOWN)

    def _waiter(self, tokens: int, wait_ms: int) -> _Waiter:
        loop = asyncio.get_running_loop()
        return _Waiter(tokens, loop.create_future(), loop.time() + wait_ms / 1_000 if wait_ms else 0.0)

    async def _wait(self, team: str, weight: int, waiter: _Waiter, seconds: float) -> Turn:
        entry = self._line_up(team, weight, waiter, seconds)
        answer, begun_ns = waiter.answer, self.clock.monotonic_ns()
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            if answer.done() and not answer.cancelled():
                return answer.result()
            raise self._refusal(QueueRefusal.DEADLINE) from None
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._give_back(answer.result())
            raise
        finally:
            if self._queue.remove(entry):
                self._news.set()
            self.watch.waited((self.clock.monotonic_ns() - begun_ns) / 1e9)

    def _line_up(self, team: str, weight: int, waiter: _Waiter, seconds: float) -> Entry[_Waiter]:
        if self._closed:
            raise self._refusal(QueueRefusal.SHUTDOWN)
        if self.pace.held_ms(self._now_ms()) > seconds * 1_000:
            raise self._refusal(QueueRefusal.TOO_LONG)
        entry = self._queue.push(team, waiter, weight)
        if entry is None:
            gone = self._queue.make_room(team)
            entry = self._queue.push(team, waiter, weight) if gone is not None else None
            if gone is None or entry is None:
                raise self._refusal(QueueRefusal.FULL)
            self._let_go(gone, QueueRefusal.FULL)
        self._news.set()
        if not self._pumps:
            self._pumps = True
            self.spawn(self._pump())
        return entry

    async def _pump(self) -> None:
        """Serve those who wait, one after the other, until nobody does."""
        try:
            while (entry := self._queue.first()) is not None:
                left = max(self.pace.held_ms(self._now_ms()) / 1_000, entry.item.ask_at - _time())
                if left > _AT_ONCE_SECONDS:
                    await self._sleep(left)
                elif await self._take_unit() and entry is self._queue.first():
                    await self._serve(entry)
        finally:
            self._pumps = False

    async def _serve(self, entry: Entry[_Waiter]) -> None:
        """Give the first its turn, if the bucket has room."""
        waiter = entry.item
        turn: Turn = FREE_TURN
        if self.bucket is not None:
            try:
                got = await self.bucket.reserve(waiter.tokens)
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                if self._queue.remove(entry):
                    waiter.answer.set_exception(error)
                return
            if not isinstance(got, Reservation):
                waiter.ask_at = _time() + got / 1_000
                return
            turn = self._counted(got, waiter.tokens)
        if not entry.waits or waiter.answer.done():
            # It has left, and may not have had the time to say so.
            self._queue.remove(entry)
            self._give_back(turn)
            return
        self._gate.credit = False
        self._queue.serve(entry)
        waiter.answer.set_result(turn)

    async def _take_unit(self) -> bool:
        """Wait for the pace, for a while."""
        await self._gate.turn_to(self._rate())
        try:
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._gate.pass_through()
        except TimeoutError:
            return False
        self._gate.credit = True
        return True

    async def _sleep(self, seconds: float) -> None:
        self._news.clear()
        try:
            async with asyncio.timeout(min(seconds, _LOOK_SECONDS)):
                await self._news.wait()
        except TimeoutError:
            pass

    def _counted(self, reservation: Reservation, tokens: int) -> Turn:
        bucket = self.bucket
        if bucket is None:
            return FREE_TURN
        turn = _Counted(bucket, reservation, self._woken)
        if not tokens:
            turn.settle(0)  # nothing can come back of it
        return turn

    def _woken(self) -> None:
        """Ask again for who is first: something came back."""
        entry = self._queue.first()
        if entry is not None:
            entry.item.ask_at = 0.0
            self._news.set()

    def _give_back(self, turn: Turn) -> None:
        """Nobody makes this call."""
        self._gate.credit = True
        if isinstance(turn, _Counted):
            turn.undo()

    def _let_go(self, entry: Entry[_Waiter], reason: QueueRefusal) -> None:
        if not entry.item.answer.done():
            entry.item.answer.set_exception(self._refusal(reason))

    def _refusal(self, reason: QueueRefusal) -> Overloaded:
        self.watch.refused(reason)
        if reason is QueueRefusal.SHUTDOWN:
            return Overloaded("shutting down")
        rate = self._rate()
        queue_ms = int(len(self._queue) * 60_000 / rate) if rate else 0
        wait_ms = min(60_000, max(1_000, queue_ms, self.pace.held_ms(self._now_ms())))
        return Overloaded(_REASONS[reason], wait_ms)

    def _rate(self) -> float:
        whole = self.options.requests_per_minute
        if whole is None:
            return 0.0
        return whole * self.pace.at(self._now_ms()) / (FULL * max(1, self.workers()))

    def _now_ms(self) -> int:
        return self.clock.monotonic_ns() // 1_000_000


_REASONS = {
    QueueRefusal.FULL: "too many calls wait for their turn upstream",
    QueueRefusal.TOO_LONG: "upstream asks to be left alone for a while",
    QueueRefusal.DEADLINE: "no turn upstream came in time",
}


def _time() -> float:
    return asyncio.get_running_loop().time()
