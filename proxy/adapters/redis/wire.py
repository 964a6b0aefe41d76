"""One connection, as a FIFO: request i takes slot i, reply i goes to slot i, whatever became of who asked.

Commands are packed as they come and written once per turn of the loop; replies are cut by hiredis. No task, no lock,
and one timer for the oldest command in flight instead of one for each.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, cast

from hiredis import ProtocolError, Reader, pack_command

from proxy.adapters.redis.outcomes import ConnectionLost, ErrorReply, NeverSent, RedisFailure, TimedOut, Why

__all__ = ["Argument", "Bounds", "Owner", "Slot", "Wire"]

Argument = bytes | str | int


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much may wait on one connection, and for how long."""

    deadline_seconds: float = 0.1
    """From the write of a command to its answer."""
    silence_seconds: float = 1.0
    """Nothing at all read for so long, with an answer due: the connection is dropped."""
    max_in_flight: int = 4_096
    max_queued_bytes: int = 8 * 2**20
    """Written and not yet taken by the kernel."""


class Slot(Protocol):
    """Where a reply goes: a future, or anything that behaves as one."""

    def done(self) -> bool:
        """Whether nobody waits any more."""
        ...

    def set_result(self, result: Any, /) -> None:
        """Take the reply."""
        ...

    def set_exception(self, exception: RedisFailure, /) -> None:
        """Take the failure."""
        ...


class Owner(Protocol):
    """Who hears what happens on a wire. Called from the event loop, must not raise."""

    def answered(self, wire: Wire) -> None:
        """At least one answer came within its deadline."""
        ...

    def refused(self, wire: Wire, reply: ErrorReply) -> None:
        """An answer is an error."""
        ...

    def overdue(self, wire: Wire, commands: int) -> None:
        """So many commands passed their deadline."""
        ...

    def lost(self, wire: Wire) -> None:
        """The connection is gone and every slot has been told."""
        ...


_NEVER = float("inf")
_SLACK_SECONDS = 0.000_1
"""A timer may come early by the clock's grain; what is due so soon counts as due."""
_MORE = object()
"""What the reader says when no reply is complete."""


class Wire(asyncio.Protocol):
    """The protocol of one connection; of no use after it is lost."""

    def __init__(
        self,
        owner: Owner,
        bounds: Bounds,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[bytes], None] | None = None,
    ) -> None:
        """`on_message`: takes published messages, which are no reply to anything; for subscribers."""
        self._owner = owner
        self._bounds = bounds
        self._loop = loop
        self._on_message = on_message
        self.deadline_seconds = bounds.deadline_seconds
        """Changed by `hold_to` only."""
        self._reader = Reader(replyError=ErrorReply.of, notEnoughData=_MORE)
        self._transport: asyncio.Transport | None = None
        self._slots: deque[Slot] = deque()
        self._unwritten: list[bytes] = []
        self._unwritten_bytes = 0
        self._paused = False
        self._retired = False
        # Slots are numbered from the first ever; what was written in one turn is a batch (end number, time).
        self._answered = 0
        self._expired = 0
        self._batches: deque[tuple[int, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._look_at = _NEVER
        self.heard_at = 0.0
        self.is_lost = False
        self.gone = asyncio.Event()

    def __len__(self) -> int:
        """Commands in flight."""
        return len(self._slots)

    # What the owner does

    def send(self, slot: Slot, args: tuple[Argument, ...]) -> None:
        """Queue a command for the end of this turn; at a bound raises `NeverSent` and leaves the slot alone."""
        if self._retired or self.is_lost:
            raise NeverSent(Why.AWAY)
        if self._paused or len(self._slots) >= self._bounds.max_in_flight:
            raise NeverSent(Why.FULL)
        packed = cast("bytes", pack_command(args))  # type: ignore[arg-type]  # its stub forgets the ellipsis
        if self._unwritten_bytes + len(packed) > self._bounds.max_queued_bytes:
            raise NeverSent(Why.FULL)
        if not self._unwritten:
            self._loop.call_soon(self._flush)
        self._unwritten.append(packed)
        self._unwritten_bytes += len(packed)
        self._slots.append(slot)

    def hold_to(self, deadline_seconds: float) -> None:
        """Hold every command, those in flight included, to another deadline."""
        self.deadline_seconds = deadline_seconds
        self._look()

    def retire(self) -> None:
        """Take nothing new, and close when the last answer has come."""
        self._retired = True
        self._close_if_idle()

    def abort(self) -> None:
        """Close at once."""
        self._retired = True
        if self._transport is not None:
            self._transport.abort()

    # What the loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=self._bounds.max_queued_bytes)

    def pause_writing(self) -> None:
        """Refuse from now on: the kernel takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False

    def data_received(self, data: bytes) -> None:
        """Hand out what is complete, in order."""
        self.heard_at = self._loop.time()
        slots = self._slots
        gets = self._reader.gets
        timely = False
        try:
            self._reader.feed(data)
            while (reply := gets()) is not _MORE:
                if self._on_message is not None and type(reply) is list and reply[0] == b"message":
                    self._on_message(reply[2])
                    continue
                slot = slots.popleft()
                self._answered += 1
                if type(reply) is ErrorReply:
                    if not slot.done():
                        slot.set_exception(reply)
                    self._owner.refused(self, reply)
                elif not slot.done():
                    slot.set_result(reply)
                    timely = True
        except (ProtocolError, IndexError):
            # Bytes that are no reply, or a reply to nothing: whose answer is whose can no longer be known.
            self.abort()
            return
        if timely:
            self._owner.answered(self)
        if self._retired:
            self._close_if_idle()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell every slot, and leave nothing behind."""
        self.is_lost = True
        self._look_again(_NEVER)
        written = len(self._slots) - len(self._unwritten)
        for index, slot in enumerate(self._slots):
            if not slot.done():
                slot.set_exception(ConnectionLost() if index < written else NeverSent(Why.AWAY))
        self._slots.clear()
        self._batches.clear()
        self._unwritten.clear()
        self._transport = None
        self.gone.set()
        self._owner.lost(self)

    # Its own turns

    def _flush(self) -> None:
        if not self._unwritten or self._transport is None:
            return
        self._transport.write(b"".join(self._unwritten))
        self._unwritten.clear()
        self._unwritten_bytes = 0
        now = self._loop.time()
        self._batches.append((self._answered + len(self._slots), now))
        if now + self.deadline_seconds < self._look_at:
            self._look_again(now + self.deadline_seconds)

    def _look_again(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at = at
        self._timer = None if at == _NEVER else self._loop.call_at(at, self._look)

    def _look(self) -> None:
        """Fail what is overdue, drop a connection that is silent, and look again when the next falls due."""
        now = self._loop.time() + _SLACK_SECONDS
        while self._batches and self._batches[0][0] <= self._answered:
            self._batches.popleft()
        if not self._batches:
            self._look_again(_NEVER)
            return
        silence_seconds = max(self._bounds.silence_seconds, self.deadline_seconds)
        silent_at = max(self._batches[0][1], self.heard_at) + silence_seconds
        due_at = self._expire(now)
        if silent_at <= now:
            self.abort()
        else:
            self._look_again(min(due_at, silent_at))

    def _expire(self, now: float) -> float:
        """Fail every slot whose deadline is over; returns when the next one falls due."""
        end, due_at = self._expired, _NEVER
        for batch_end, written_at in self._batches:
            if written_at + self.deadline_seconds > now:
                due_at = written_at + self.deadline_seconds
                break
            end = batch_end
        start = max(self._expired, self._answered)
        failed = 0
        for slot in islice(self._slots, start - self._answered, max(start, end) - self._answered):
            if not slot.done():
                slot.set_exception(TimedOut())
                failed += 1
        self._expired = end
        if failed:
            self._owner.overdue(self, failed)
        return due_at

    def _close_if_idle(self) -> None:
        if not self._slots and self._transport is not None:
            self._transport.close()
