"""One queue of calls upstream: at a pace, not while it is held back, and with what a bucket has left.

aiolimiter says when: it waits and does not reject, which is right here and wrong for tenants (they are limited by
`core/bucket.py`). Each call takes one unit of a short period, so that there are no bursts. `core/fair_queue.py` says
whose: those who wait are served by one pump, whoever of them came first to the limiter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.adapters.pace_gate import Gate
from proxy.adapters.upstream_bucket import SharedBucket
from proxy.core.bucket import Cost, Reservation
from proxy.core.errors import Overloaded
from proxy.core.fair_queue import Entry, FairQueue, QueueRefusal
from proxy.core.pace import FULL, Heard, Pace
from proxy.ports import Clock, QueueWatch, Spawn, Turn

__all__ = ["FREE_TURN", "Lane", "PacerOptions"]

_LOOK_SECONDS = 1.0
"""Longest sleep of the pump: after it, the number of workers and what others gave back are looked at again."""
_AT_ONCE_SECONDS = 0.0001
_PROBE_MS = 1_000


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


_CALM = Pace()


@dataclass(slots=True, eq=False)
class _Waiter:
    tokens: int
    answer: asyncio.Future[Turn]
    ask_at: float = 0.0
    """By the loop's clock: until then its bucket has no room."""


@dataclass(slots=True, eq=False)
class Lane:
    """Calls that wait for the same thing.

    `workers` is how many share the requests per minute; asked at each call. `bucket` is None where nothing has to be
    counted beside the pace. `room` makes room for one of a team, or says that there is none. `watch` hears of refusals.
    """

    options: PacerOptions
    clock: Clock
    spawn: Spawn
    workers: Callable[[], int]
    room: Callable[[str], bool]
    watch: QueueWatch
    bucket: SharedBucket | None = None
    pace: Pace = _CALM
    queue: FairQueue[_Waiter] = field(init=False)
    _gate: Gate = field(default_factory=Gate)
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _pumps: bool = False
    _probed_until_ms: int = 0
    _returns: int = 0
    """How often something came back to the bucket."""
    _closed: bool = False

    def __post_init__(self) -> None:
        self.queue = FairQueue(self.options.max_waiting)

    @property
    def calls_per_minute(self) -> float:
        """The pace now; 0: any."""
        whole = self.options.requests_per_minute
        if whole is None:
            return 0.0
        level = FULL if self.pace is _CALM else self.pace.at(self._now_ms())
        return whole * level / (FULL * max(1, self.workers()))

    @property
    def is_open(self) -> bool:
        """Whether everybody has a turn at once, and nobody keeps an account of it."""
        return self.options.requests_per_minute is None and self.bucket is None and self.pace is _CALM

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits, and nothing but how often it was refused sets it apart from one that is new."""
        now_ms = self._now_ms()
        return not self.queue and self.pace.at(now_ms) == FULL and not self._held_ms()

    @property
    def is_calm(self) -> bool:
        """Whether nothing sets it apart from one that is new."""
        return not self.pace.refusals and self.is_idle

    def observe(self, heard: Heard) -> None:
        """Hear what an answer says, which may slow the pace down."""
        self.pace = self.pace.after(heard, self._now_ms())
        self._probed_until_ms = 0
        self._news.set()

    async def turn(self, team: str, weight: int, tokens: int, on_wait: Callable[[], float]) -> Turn:
        """Return when a call may be made for `team`; what it returns is to be settled with the tokens it used.

        `on_wait` is called when it begins to wait, and says until when by the loop's clock. Raises `Overloaded` when
        too many wait, or it would take too long, and `StoreAway` where the bucket's policy says so.
        """
        waiter = None
        if not self.queue and not self._held_ms():
            await self._gate.turn_to(self.calls_per_minute)
            if self._gate.is_open():
                await self._gate.pass_through()
                self._probe()
                if self.bucket is None:
                    return FREE_TURN
                returns = self._returns
                try:
                    got = await self._charged(self.bucket, tokens)
                except BaseException:
                    self.give_back()
                    raise
                if isinstance(got, Reservation):
                    return _Counted(self.bucket, got, self._woken)
                self._gate.credit = True
                waiter = self._waiter(tokens, got if returns == self._returns else 0)
        return await self._wait(team, weight, waiter or self._waiter(tokens, 0), on_wait)

    def give_back(self) -> None:
        """Nobody makes a call that had its turn, and for which nothing is to be settled."""
        self._gate.credit = True
        self._probed_until_ms = 0
        self._news.set()

    def close(self) -> None:
        """Let go of all who wait, and of who comes from now on and would have to."""
        self._closed = True
        for entry in self.queue.drain():
            self.let_go(entry, QueueRefusal.SHUTDOWN)

    async def _charged(self, bucket: SharedBucket, tokens: int) -> Reservation | int:
        """Charge the bucket in a task of its own: who leaves before it has answered is charged nothing in the end.

        Else clients that leave could make all others miss tokens they do not pay for.
        """
        answer: asyncio.Future[Reservation | int] = asyncio.get_running_loop().create_future()
        self.spawn(self._charge(bucket, tokens, answer))
        try:
            return await answer
        except asyncio.CancelledError:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                self._uncharge(bucket, answer.result())
            raise

    async def _charge(self, bucket: SharedBucket, tokens: int, answer: asyncio.Future[Reservation | int]) -> None:
        try:
            got = await bucket.reserve(tokens)
        except Exception as error:  # noqa: BLE001 - whoever asked raises it
            if not answer.done():
                answer.set_exception(error)
            return
        if answer.done():
            self._uncharge(bucket, got)
        else:
            answer.set_result(got)

    def _uncharge(self, bucket: SharedBucket, got: Reservation | int) -> None:
        if isinstance(got, Reservation):
            _Counted(bucket, got, self._woken).undo()

    def _waiter(self, tokens: int, wait_ms: int) -> _Waiter:
        loop = asyncio.get_running_loop()
        return _Waiter(tokens, loop.create_future(), _ask_at(wait_ms) if wait_ms else 0.0)

    async def _wait(self, team: str, weight: int, waiter: _Waiter, on_wait: Callable[[], float]) -> Turn:
        entry, answer = self._line_up(team, weight, waiter), waiter.answer
        try:
            async with asyncio.timeout_at(on_wait()):
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
            if self.queue.remove(entry):
                self._news.set()

    def _line_up(self, team: str, weight: int, waiter: _Waiter) -> Entry[_Waiter]:
        if self._closed:
            raise self._refusal(QueueRefusal.SHUTDOWN)
        if self._shut_ms() >= self.options.deadline_seconds * 1_000:
            raise self._refusal(QueueRefusal.TOO_LONG)
        entry = self.queue.push(team, waiter, weight) if self.room(team) else None
        if entry is None:
            raise self._refusal(QueueRefusal.FULL)
        self._news.set()
        if not self._pumps:
            self._pumps = True
            self.spawn(self._pump())
        return entry

    async def _pump(self) -> None:
        """Serve those who wait, one after the other, until nobody does."""
        try:
            while (entry := self.queue.first()) is not None:
                left = max(self._held_ms() / 1_000, entry.item.ask_at - _time())
                if left > _AT_ONCE_SECONDS:
                    await self._sleep(left)
                elif await self._take_unit() and entry is self.queue.first():
                    await self._serve(entry)
        finally:
            self._pumps = False

    async def _serve(self, entry: Entry[_Waiter]) -> None:
        """Give the first its turn, if the bucket has room."""
        waiter = entry.item
        turn: Turn = FREE_TURN
        if self.bucket is not None:
            returns = self._returns
            try:
                got = await self.bucket.reserve(waiter.tokens)
            except Exception as error:  # noqa: BLE001 - whoever asked raises it
                if self.queue.remove(entry) and not waiter.answer.done():
                    waiter.answer.set_exception(error)
                return
            if not isinstance(got, Reservation):
                # What has come back meanwhile, the answer may not know of.
                waiter.ask_at = _ask_at(got) if returns == self._returns else 0.0
                return
            turn = _Counted(self.bucket, got, self._woken)
        if not entry.waits or waiter.answer.done():
            # It has left, and may not have had the time to say so.
            self.queue.remove(entry)
            self._give_back(turn)
            return
        self._gate.credit = False
        self._probe()
        self.queue.serve(entry)
        waiter.answer.set_result(turn)

    async def _take_unit(self) -> bool:
        """Wait for the pace, for a while."""
        await self._gate.turn_to(self.calls_per_minute)
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

    def _woken(self) -> None:
        """Ask again for who is first: something came back."""
        self._returns += 1
        entry = self.queue.first()
        if entry is not None:
            entry.item.ask_at = 0.0
            self._news.set()

    def _give_back(self, turn: Turn) -> None:
        """Nobody makes this call."""
        self._gate.credit = True
        if isinstance(turn, _Counted):
            turn.undo()

    def let_go(self, entry: Entry[_Waiter], reason: QueueRefusal) -> None:
        """Refuse one that was taken out of the queue."""
        if not entry.item.answer.done():
            entry.item.answer.set_exception(self._refusal(reason))

    def _refusal(self, reason: QueueRefusal) -> Overloaded:
        self.watch.refused(reason)
        if reason is QueueRefusal.SHUTDOWN:
            return Overloaded("shutting down")
        rate = self.calls_per_minute
        queue_ms = int(len(self.queue) * 60_000 / rate) if rate else 0
        wait_ms = min(60_000, max(1_000, queue_ms, self._shut_ms()))
        return Overloaded(_REASONS[reason], wait_ms)

    def _held_ms(self) -> int:
        if self.pace is _CALM:
            return 0
        now_ms = self._now_ms()
        return max(self.pace.held_ms(now_ms), self._probed_until_ms - now_ms)

    def _shut_ms(self) -> int:
        """How long it takes, as far as upstream says, until one who comes now is not refused there."""
        held_ms = self._held_ms()
        return max(held_ms, self.pace.asked_ms(self._now_ms())) if held_ms else 0

    def _probe(self) -> None:
        """After refusals in a row one call tries upstream; the others follow its answer, or a second later."""
        if self.pace.refusals > 1:
            self._probed_until_ms = self._now_ms() + _PROBE_MS

    def _now_ms(self) -> int:
        return self.clock.monotonic_ns() // 1_000_000


_REASONS = {
    QueueRefusal.FULL: "too many calls wait for their turn upstream",
    QueueRefusal.TOO_LONG: "upstream asks to be left alone for a while",
    QueueRefusal.DEADLINE: "no turn upstream came in time",
}


def _ask_at(wait_ms: int) -> float:
    """When the bucket is asked again, by the loop's clock: others give back as well, and nobody tells."""
    return _time() + min(wait_ms / 1_000, _LOOK_SECONDS)


def _time() -> float:
    return asyncio.get_running_loop().time()
