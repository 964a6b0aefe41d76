"""Comments in a stream that is silent: some machines on the way to a client cut what says nothing for a while.

Every client passes over a comment (WHATWG HTML, section 9.2.6). One stands between two events and nowhere else, is
kept nowhere, and is no first byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from proxy.core.answer import AnswerStream
from proxy.ports import Downstream, Spawn

__all__ = ["COMMENT", "KeepAlive", "is_between_events"]

COMMENT = b": keep-alive\n\n"
_NOT_WORTH_WAITING_SECONDS = 0.001


def is_between_events(stream: AnswerStream) -> bool:
    """Whether more is to come of a stream, and all that has come of it is whole events."""
    return not (stream.done or stream.errored or stream.passed_in_half)


class KeepAlive:
    """A `ports.Downstream` that sends a comment when nothing else was sent for `every_seconds`.

    `may_speak` says whether the client has whole events, and not the last one yet. There is one timer for a stream,
    which is not touched by what is written: it looks at the time when it goes off.
    """

    __slots__ = (
        "_client",
        "_ended",
        "_every_seconds",
        "_loop",
        "_may_speak",
        "_spawn",
        "_timer",
        "_writes",
        "_written_at",
    )

    def __init__(self, client: Downstream, every_seconds: float, may_speak: Callable[[], bool], spawn: Spawn) -> None:
        self._client = client
        self._every_seconds = every_seconds
        self._may_speak = may_speak
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._written_at = 0.0
        self._writes = 0
        """Under way."""
        self._ended = False

    async def receive(self) -> bytes:
        """Read the request's body."""
        return await self._client.receive()

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send the head; from here on silence is measured."""
        await self._client.open(status, headers)
        self._written_at = self._loop.time()
        self._wait(self._every_seconds)

    async def write(self, data: bytes) -> None:
        """Send bytes; while the client does not read it is sent no comment either."""
        self._writes += 1
        await self._client.write(data)
        self._writes -= 1
        self._written_at = self._loop.time()

    async def close(self) -> None:
        """End the answer as complete."""
        self.end()
        await self._client.close()

    def abort(self) -> None:
        """Break the connection."""
        self.end()
        self._client.abort()

    def end(self) -> None:
        """Say nothing more."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self, seconds: float) -> None:
        self._timer = self._loop.call_later(seconds, self._look)

    def _look(self) -> None:
        left_seconds = self._written_at + self._every_seconds - self._loop.time()
        if left_seconds > _NOT_WORTH_WAITING_SECONDS and not self._writes:
            self._wait(left_seconds)
            return
        if self._is_silent():
            self._spawn(self._speak())
        self._wait(self._every_seconds)

    def _is_silent(self) -> bool:
        return not (self._ended or self._writes) and self._may_speak()

    async def _speak(self) -> None:
        # Something may have been written before this had its turn; from here to the wire nothing waits.
        if not self._is_silent():
            return
        try:
            await self.write(COMMENT)
        except Exception:  # noqa: BLE001 - no comment is worth the process, and whoever writes the answer finds out
            self.end()
