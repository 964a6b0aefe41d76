"""One call upstream and all who listen to it: what has come so far, who has read how much, how it ended.

Nothing here waits for a slow listener. The call waits for the fastest of them, so that an answer nobody reads holds up
upstream and fills no memory; one that falls far behind the others is left behind. A call whose last listener has left
may be drained: it then waits for nobody.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from proxy.core.asked import Asked
from proxy.pipeline.exchange import Exchange, Reply
from proxy.ports import CacheAddress, CachedAnswer

__all__ = ["Flight", "Landing", "Line", "Seat", "Wish", "wake_all", "wake_one"]

_AHEAD_BYTES = 262_144
"""How far the call runs ahead of its fastest reader."""
_AT_ONCE_BYTES = 65_536
"""What one that is behind is given at once."""
Line = deque[asyncio.Future[Any]]
"""Those who wait for a leader to be admitted; each is woken with those behind it, who are its own from there on."""


class Wish(NamedTuple):
    """In what form an answer is wanted; of one answer, those who want the same form get the same bytes."""

    stream: bool
    include_usage: bool

    @classmethod
    def of(cls, asked: Asked) -> Wish:
        """The form a request asks for."""
        return cls(asked.stream, asked.stream and asked.include_usage)


class Landing(msgspec.Struct, frozen=True):
    """How a flight ended."""

    reply: Reply | None = None
    """What upstream answered, without the headers that are each listener's own; its body is None for a stream."""
    broken: bool = False
    """The stream broke off: nobody may take it for whole."""
    entry: CachedAnswer | None = None
    """The answer as it is kept, for whom wants it in another form."""
    stored: bool = False
    error: Exception | None = None
    place: TracebackType | None = None
    """Where the error was raised."""
    refused: bool = False
    """The error is the leader's own refusal: it says nothing of the others, who may ask again."""

    def check(self) -> None:
        """Raise the error, if there is one, as if it were the only time."""
        if self.error is not None:
            raise self.error.with_traceback(self.place)


class Seat:
    """One listener's place. It reads along, or, wanting another form, waits for the end."""

    __slots__ = ("at", "lost", "read_bytes", "reads", "taken_bytes")

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.at = 0
        """Pieces taken."""
        self.taken_bytes = 0
        self.read_bytes = 0
        """Of those taken, what has been passed on."""
        self.lost = False


class Flight:
    """Is the `ports.Downstream` of the call, and everybody's source of its answer.

    `room_bytes`: as much is held for who comes late. Past it nobody can join, and pieces all have read are dropped.
    """

    def __init__(
        self, leader: Exchange, address: CacheAddress | None, room_bytes: int, line: Line | None = None
    ) -> None:
        self.leader = leader
        """Whose request goes upstream, and whose account is charged."""
        self.address = address
        """Where others find it; None: nowhere."""
        self.wish = Wish.of(leader.asked)
        self.departed = False
        """The leader was admitted, and the call is somebody's business beside the leader's."""
        self.landing: Landing | None = None
        self.head: tuple[int, tuple[tuple[str, str], ...]] | None = None
        self.full = False
        """More has come than is held: too late to join."""
        self.broken = False
        self.draining = False
        """Its last listener has left, and it went on; others may have come since."""
        self.deadline: asyncio.TimerHandle | None = None
        """Of its draining."""
        self._room_bytes = room_bytes
        self._pieces: list[bytes] = []
        self._dropped = 0
        self._held_bytes = 0
        self._written_bytes = 0
        self._most_read_bytes = 0
        self._seats: set[Seat] = set()
        self._waiting = 0
        self._listening: dict[asyncio.Future[None], None] = {}
        """Those who wait for news."""
        self._read: asyncio.Event | None = None
        """Somebody has read, or left; made when the call first waits for it."""
        self._task: asyncio.Task[Any] | None = None
        self.waits = False
        """Its leader waits for limits to have room."""
        self.line: Line = deque() if line is None else line
        """Who waits for its departure."""

    @property
    def held_bytes(self) -> int:
        """What it holds in memory."""
        return self._held_bytes

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._seats)

    # What listeners do.

    def join(self, wish: Wish) -> Seat:
        """Take a seat; the answer is heard from its beginning."""
        seat = Seat(reads=wish == self.wish)
        self._seats.add(seat)
        self._waiting += not seat.reads
        self._note_read()
        return seat

    def leave(self, seat: Seat) -> None:
        """Give the seat up."""
        if seat in self._seats:
            self._seats.discard(seat)
            self._waiting -= not seat.reads
            self._most_read_bytes = max(each.read_bytes for each in self._seats) if self._seats else 0
            self._note_read()

    def is_read_up(self, seat: Seat) -> bool:
        """Whether one has passed on all that has come."""
        return seat.at == self._dropped + len(self._pieces) and seat.read_bytes == seat.taken_bytes

    def take(self, seat: Seat) -> bytes:
        """Take what has come since, or a good part of it; nothing, when nothing has. What was taken before is read.

        Raises `ConnectionResetError` for one that was left behind.
        """
        if seat.lost:
            raise ConnectionResetError("too far behind the others")
        if seat.read_bytes != seat.taken_bytes:
            seat.read_bytes = seat.taken_bytes
            if seat.read_bytes > self._most_read_bytes:
                self._most_read_bytes = seat.read_bytes
                self._note_read()
        first, size = seat.at - self._dropped, 0
        end = first
        while end < len(self._pieces) and size < _AT_ONCE_BYTES:
            size += len(self._pieces[end])
            end += 1
        if end == first:
            return b""
        seat.at += end - first
        seat.taken_bytes += size
        return self._pieces[first] if end == first + 1 else b"".join(self._pieces[first:end])

    async def news(self) -> None:
        """Wait until something has happened since the caller last looked, which was in this turn of the loop."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._listening[waiter] = None
        try:
            await waiter
        finally:
            self._listening.pop(waiter, None)

    # What the call does; `ports.Downstream`.

    async def receive(self) -> bytes:
        """Return the request that goes upstream."""
        return self.leader.asked.raw

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Tell the head of a streamed answer."""
        self.head = (status, tuple(headers))
        self._tell()

    async def write(self, data: bytes) -> None:
        """Tell the next piece; waits while even the fastest reader is far behind."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        self._written_bytes += len(data)
        if self._written_bytes > self._room_bytes:
            self.full = True
            self._drop()
        self._tell()
        while not (self._waiting or self.draining) and self._written_bytes - self._most_read_bytes > _AHEAD_BYTES:
            self._read = self._read or asyncio.Event()
            self._read.clear()
            await self._read.wait()

    async def close(self) -> None:
        """End as complete: told by the landing, once nothing can go wrong any more."""

    def abort(self) -> None:
        """End as broken."""
        self.broken = True

    # What becomes of it.

    def hold(self) -> None:
        """Tell those in line that the leader waits itself: they may not be ready to."""
        self.waits = True
        wake_all(self.line)

    def depart(self) -> None:
        """Let others in."""
        self.departed = True
        wake_all(self.line)

    def take_off(self) -> bool:
        """Note the task that makes the call; False when all have left before it could begin."""
        self._task = asyncio.current_task()
        return self.landing is None

    def land(self, landing: Landing) -> None:
        """Tell how it ended; the first word on it holds."""
        if self.deadline is not None:
            self.deadline.cancel()
        if self.landing is None:
            self.landing = landing
            self._tell()

    def drain(self) -> None:
        """Go on with nobody to read it, and wait for no reader from here on."""
        self.draining = True
        self._note_read()

    def stop(self) -> None:
        """Have the call end where it is."""
        if self._task is not None:
            self._task.cancel()

    def _note_read(self) -> None:
        if self._read is not None:
            self._read.set()

    def _tell(self) -> None:
        listening, self._listening = self._listening, {}
        for waiter in listening:
            if not waiter.done():
                waiter.set_result(None)

    def _drop(self) -> None:
        """Drop what all have read, and of the rest, oldest first, what is more than may be held."""
        readers = [seat for seat in self._seats if seat.reads and not seat.lost]
        end = self._dropped + len(self._pieces)
        slowest = min((seat.at for seat in readers), default=end)
        # The call waits for the fastest: it is never left behind. While it waits for nobody, the newest piece is held.
        last = end - 1 if self._waiting or not readers else max(seat.at for seat in readers)
        bound = max(self._room_bytes, 2 * _AHEAD_BYTES)
        count = 0
        while count < len(self._pieces):
            at = self._dropped + count
            if at >= slowest and (self._held_bytes <= bound or at >= last):
                break
            self._held_bytes -= len(self._pieces[count])
            count += 1
        del self._pieces[:count]
        self._dropped += count
        for seat in readers:
            seat.lost = seat.at < self._dropped


def wake_one(line: Line) -> None:
    """Wake the first who waits still, and give it those behind."""
    while line:
        waiter = line.popleft()
        if not waiter.done():
            waiter.set_result(line)
            return


def wake_all(line: Line) -> None:
    """Wake all who wait, each with nobody behind."""
    while line:
        waiter = line.popleft()
        if not waiter.done():
            waiter.set_result(deque())
