"""aiohttp's protocol of one connection, at less cost for each request; with `connection.py`, what leans on its insides.

aiohttp gives every request a task of its own, builds the head of every answer header by header, and has its parser look
again for bytes it has not got. Here requests are handled in the task of their connection and whole answers are written
at once (`answer.py`); what is no request is left to aiohttp, and so is every answer that is not one of those.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.http_writer import StreamWriter
from aiohttp.web_protocol import PayloadAccessError

from proxy.web.answer import Answer

__all__ = ["AnyAnswer", "Protocol", "Streamed"]

_LINGER_SECONDS = 10.0
"""How long the rest of a body is taken, once its request is answered: as long as aiohttp takes it."""
_JOINED_BYTES = 65_536
"""A body that is no larger goes out in one piece with its head; copying more costs more than another write."""
_UNAWAITED_BYTES = 65_536
"""How much of a stream is written before its client is seen to take it: as much as aiohttp writes."""
_TOO_LATE = PayloadAccessError()

AnyAnswer: TypeAlias = "web.StreamResponse | Answer | Streamed"


class Protocol(web.RequestHandler):
    """Handles one request after the other; whoever inherits from it says how they are made and answered."""

    __slots__ = ()

    @abstractmethod
    def request_of(
        self, message: RawRequestMessage, payload: StreamReader, writer: AbstractStreamWriter
    ) -> web.BaseRequest:
        """Make the request that a message of the parser is. Raises `ValueError` where its target names no host."""

    @abstractmethod
    def refuse_all(self) -> None:
        """Put the answer to what is no request in the place of all that has come, and hear no more."""

    @abstractmethod
    def is_last(self, request: web.BaseRequest) -> bool:
        """Whether the client is to be told that no other answer follows, whatever it asked for."""

    async def start(self) -> None:
        """Handle what comes, until the connection is to be closed."""
        while not self._force_close:
            if not self._messages:
                try:
                    self._waiter = self._loop.create_future()
                    await self._waiter
                finally:
                    self._waiter = None
            if not isinstance(self._messages[0][0], RawRequestMessage):
                # It tells the client what was wrong, and closes.
                await super().start()
                return
            if not await self._handle_first():
                break
            self._wait_for_another()
            if self._messages:
                # One client's many, answered without waiting for anything, are not served before all others.
                await asyncio.sleep(0)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _handle_first(self) -> bool:
        """Handle the first of what has come; whether another may follow it."""
        message, payload = self._messages.popleft()
        self._taken_first()
        # Who handles it is gone from here when the connection is lost, which may be before it is begun.
        handler, owner = self._request_handler, self._manager
        if handler is None or owner is None or not isinstance(message, RawRequestMessage):
            return False
        owner.requests_count += 1
        try:
            request = self.request_of(message, payload, StreamWriter(self, self._loop))
        except ValueError:
            self.refuse_all()
            return True
        try:
            answer, is_gone = await self._handle_request(request, None, handler)
            if is_gone:
                return False
            self._keepalive = bool(answer.keep_alive)
            if not payload.is_eof():
                await self._linger(payload)
            payload.set_exception(_TOO_LATE)
        except ConnectionError:
            return False
        except asyncio.CancelledError:
            self.force_close()
            raise
        except Exception as error:  # noqa: BLE001 - an answer that cannot be written ends its connection alone
            self.log_exception("an answer could not be written", exc_info=error)
            self.force_close()
        return self._keepalive and not self._close and not self._force_close

    async def _handle_request(  # type: ignore[override]  # of what is returned `keep_alive` alone is asked
        self,
        request: web.BaseRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[AnyAnswer]],
    ) -> tuple[AnyAnswer, bool]:
        """Have a request answered, and whatever its handler lets through; True: its client has left."""
        self._request_in_progress = True
        self._current_request = request
        try:
            try:
                answer = await request_handler(request)
            except web.HTTPException as error:
                answer = error
            except Exception as error:  # noqa: BLE001 - it is told of, and logged, by `handle_error`
                answer = self.handle_error(request, 500, error)
            finally:
                self._current_request = None
            return await self.finish_response(request, answer, start_time)
        finally:
            self._request_in_progress = False
            # Who waits at shutdown may have given up in this very turn of the loop; aiohttp takes that for a fault.
            waiter = self._handler_waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def _taken_first(self) -> None:
        if self._parser is not None:
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()

    def _wait_for_another(self) -> None:
        """Let aiohttp close the connection where it takes too long; its timer looks at the time again when it fires."""
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._keepalive_handle is None:
            self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)

    async def _linger(self, payload: StreamReader) -> None:
        """Take the rest of a body for a while: to close on what still comes would take the answer from its client."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                while not payload.is_eof() and not self._force_close:
                    await payload.readany()
        if not payload.is_eof() and not self._force_close:
            self.close()

    def closes_after(self, request: web.BaseRequest) -> bool:
        """Whether the answer to a request is the last one, because of us or because of its client."""
        return request._message.should_close or self.is_last(request)  # noqa: SLF001 - the request does not say

    async def finish_response(  # type: ignore[override]  # of what is returned `keep_alive` alone is asked
        self, request: web.BaseRequest, resp: AnyAnswer, start_time: float | None
    ) -> tuple[AnyAnswer, bool]:
        """Write an answer, or the end of one; True: its client has left."""
        try:
            if isinstance(resp, Answer):
                closes = self.closes_after(request)
                head = resp.head(request._message, closes=closes)  # noqa: SLF001 - it says more than the request does
                if head is None:
                    return await super().finish_response(request, resp.for_aiohttp(), start_time)
                resp.keep_alive = not closes
                self._write_whole(head, resp.body, request.writer)
                if self._paused:
                    await self._drain_helper()
            elif isinstance(resp, Streamed):
                await resp.write_eof()
            else:
                return await super().finish_response(request, resp, start_time)
        except ConnectionError:
            return resp, True
        return resp, False

    def _write_whole(self, head: bytes, body: bytes, writer: AbstractStreamWriter) -> None:
        wire = self.transport
        if wire is None or wire.is_closing():
            raise ConnectionResetError("the client has left")
        writer.output_size += len(head) + len(body)
        if len(body) <= _JOINED_BYTES:
            wire.write(head + body)
        else:
            wire.write(head)
            wire.write(body)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's signature
        """Read on, if anything was kept from it: a body that is read to its end asks for it all the same, and twice."""
        # Where requests wait, the parser may have stopped before another.
        if self._reading_paused or self._messages:
            super().resume_reading(resume_parser)


class Streamed:
    """An answer whose body goes out in chunks, as it comes. It is begun when it is made."""

    __slots__ = ("_connection", "_ended", "_unawaited_bytes", "_writer", "keep_alive", "status")

    def __init__(
        self, connection: Protocol, writer: AbstractStreamWriter, status: int, head: bytes, *, keep_alive: bool
    ) -> None:
        """Write its head. Raises `ConnectionResetError` where the client has left, as the others do."""
        self._connection = connection
        self._writer = writer
        self._unawaited_bytes = 0
        self._ended = False
        self.status = status
        self.keep_alive = keep_alive
        self._write(head)

    async def write(self, data: bytes) -> None:
        """Send a chunk, waiting now and then while the client does not read."""
        # Nothing would be the end.
        if not data:
            return
        self._write(b"%x\r\n%b\r\n" % (len(data), data))
        if self._unawaited_bytes > _UNAWAITED_BYTES:
            await self._taken()

    async def write_eof(self) -> None:
        """End it as complete, once."""
        if not self._ended:
            self._write(b"0\r\n\r\n")
            self._ended = True
            await self._taken()

    def _write(self, data: bytes) -> None:
        wire = self._connection.transport
        if wire is None or wire.is_closing():
            raise ConnectionResetError("the client has left")
        self._unawaited_bytes += len(data)
        self._writer.output_size += len(data)
        wire.write(data)

    async def _taken(self) -> None:
        self._unawaited_bytes = 0
        if self._connection.writing_paused:
            await self._connection._drain_helper()  # noqa: SLF001 - aiohttp's way to wait for it
