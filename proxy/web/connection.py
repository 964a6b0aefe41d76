"""One connection of a listener: aiohttp's, bounded in what it holds and in how long it is waited for."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo  # how its parser's own errors take their turn behind earlier requests

from proxy.core.misuse import Cut, Malformed
from proxy.web.bounds import MAX_HEAD_BYTES, MAX_HEADERS, Bounds
from proxy.web.errors import fault
from proxy.web.protocol import Protocol
from proxy.web.refusals import BodyTimeout, HeadTimeout, HeadTooLarge, answer_to, reason_of, response_of, stays_open

if TYPE_CHECKING:
    from proxy.web.server import OpenAIServer

__all__ = ["Connection"]

_LINGER_SECONDS = 2.0
"""How long a client that was refused is listened to: closing on what it still sends would take the answer from it."""
_FRAMING_BYTES = 256 * 1024
_FRAMING_RATIO = 8
"""Most bytes of framing in a body, beside so many for each of its own: chunks of one byte take five."""
_SHORT_READ_BYTES = MAX_HEAD_BYTES // 4
_END_BYTES = 16
_END_WITHOUT_TRAILERS = re.compile(rb"\n0+\r\n\r\n\Z")
_log = logging.getLogger(__name__)

Payload = StreamReader


class Connection(Protocol):
    """The protocol of one connection. `look` is to be called now and then, for it keeps no timers of its own."""

    __slots__ = (
        "_body_bytes",
        "_bounds",
        "_deaf",
        "_end",
        "_head_bytes",
        "_head_since",
        "_holds_back",
        "_in_chunks",
        "_owner",
        "_payload",
        "_read_at",
        "_taken",
        "_taken_at",
        "_wire",
        "heads_are_short",
        "leaving",
    )

    def __init__(self, owner: OpenAIServer, bounds: Bounds) -> None:
        super().__init__(
            owner,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # documented as the way to turn it off
            keepalive_timeout=bounds.idle_timeout_seconds,
            # Which codings aiohttp undoes depends on what is installed, and it does so on the loop: see `inflate.py`.
            auto_decompress=False,
            max_field_size=MAX_HEAD_BYTES,
            max_line_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEADERS,
        )
        self._owner = owner
        self._bounds = bounds
        self._wire: asyncio.Transport | None = None
        self._payload: Payload = EMPTY_PAYLOAD
        """The body of the latest request that has come."""
        self._body_bytes = 0
        """What has come of it, framing included."""
        self._in_chunks = False
        """It comes in chunks, and is not known to have ended without trailers."""
        self._end = b""
        """The last bytes of what has come, of a body in chunks."""
        self._head_since: float | None = None
        self._head_bytes = 0
        self._read_at = 0.0
        self._holds_back = False
        """Its client sends the body once it is asked to."""
        self._taken = 0
        self._taken_at = 0.0
        self._deaf = False
        """Whatever still comes is not looked at."""
        self.leaving = False
        """The answer that is being made is the last one."""
        self.heads_are_short = True
        """None of its heads so far can have been near the bound: each came in one short read, or in two of them."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to watch it."""
        super().connection_made(transport)
        # aiohttp forgets it as soon as it has asked it to close, which may be long before it does.
        self._wire = self.transport
        self._read_at = self._loop.time()
        self._owner.watch(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of everything."""
        self._owner.unwatch(self)
        super().connection_lost(exc)
        self._wire = None
        self._payload = EMPTY_PAYLOAD

    def data_received(self, data: bytes) -> None:
        """Feed the parser, and count what it does not."""
        if self._deaf:
            return
        known, in_body = self._request_count, not self._payload.is_eof()
        if self._force_close and in_body and self._current_request is not None:
            self._hear_out(data)
        else:
            super().data_received(data)
        size = len(data)
        if size:
            self._read_at = self._loop.time()
        if size > _SHORT_READ_BYTES or self._buffer_paused or self._reading_paused:
            # What is not read on at once may be a head, and grow with the next read.
            self.heads_are_short = False
        came = self._request_count - known
        if came:
            self._head_since, self._head_bytes = None, 0
            if came > 1 or self._in_chunks:
                self._on_messages(came)
            self._on_message(in_body=in_body)
        elif size and in_body:
            self._on_body(size)
        elif size:
            self._on_head(size)
        if self._in_chunks:
            self._look_for_trailers(data)

    def _hear_out(self, data: bytes) -> None:
        """Take more of the body that a request waits for at shutdown: aiohttp takes nothing any more by then."""
        self._force_close = False
        try:
            super().data_received(data)
        finally:
            self._force_close = True

    def _on_messages(self, count: int) -> None:
        """Serve nothing that came together with the end of a body in chunks: see `_look_for_trailers`."""
        earlier = islice(reversed(self._messages), 1, count)
        if self._in_chunks or any(isinstance(each, RawRequestMessage) and each.chunked for each, _ in earlier):
            self.leaving = True

    def _look_for_trailers(self, data: bytes) -> None:
        """Let a body that ends in trailers be the last: aiohttp's parser takes one of them for the next one's header.

        Where others share the connection, that would give their request a key of somebody else's.
        """
        self._end = (self._end + data[-_END_BYTES:])[-_END_BYTES:]
        if self._payload.is_eof():
            self._in_chunks = False
            if self._buffer_paused or _END_WITHOUT_TRAILERS.search(self._end) is None:
                self.leaving = True

    def _on_message(self, *, in_body: bool) -> None:
        message, payload = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._payload, self._body_bytes = payload, 0
            self._in_chunks, self._end = message.chunked, b""
            self._holds_back = hdrs.EXPECT in message.headers and message.version >= HttpVersion11
            return
        self._deaf = True
        # What comes in one read with the end of a body does not break it.
        in_body = in_body and not self._payload.is_eof()
        self._owner.watcher.malformed(Malformed.FRAMING if in_body else reason_of(message.exc))
        if in_body:
            self._end_body(web.RequestPayloadError("the framing is broken"))

    def asked_for_body(self) -> None:
        """Note that it is the client's turn."""
        self._holds_back = False
        self._read_at = self._loop.time()

    def _on_body(self, size: int) -> None:
        self._holds_back = False
        self._body_bytes += size
        if self._body_bytes - _FRAMING_RATIO * self._payload.total_bytes > _FRAMING_BYTES:
            self._deaf = True
            self._owner.watcher.malformed(Malformed.FRAMING)
            self._end_body(web.RequestPayloadError("there is more framing than body"))

    def _on_head(self, size: int) -> None:
        self.heads_are_short = False
        if self._head_since is None:
            self._head_since = self._read_at
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._owner.watcher.malformed(Malformed.HEAD_TOO_LARGE)
            self._refuse(HeadTooLarge())

    def _end_body(self, error: web.RequestPayloadError) -> None:
        """Whoever reads the body would wait for the rest forever."""
        self.leaving = True
        if self._payload.exception() is None:
            self._payload.set_exception(error)

    def _refuse(self, error: HttpProcessingError) -> None:
        """Answer what is no request, in its turn, and hear no more."""
        self._deaf = True
        self._head_since = None
        self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def refuse_all(self) -> None:
        """Put the answer to what is no request in the place of all that has come, and hear no more."""
        self._messages.clear()
        self._owner.watcher.malformed(Malformed.REQUEST)
        self._refuse(HttpProcessingError())

    def look(self, now: float) -> None:
        """End it where its client has kept us waiting for too long. `now` is the loop's time in seconds."""
        wire, bounds = self._wire, self._bounds
        if wire is None:
            return
        unsent = wire.get_write_buffer_size()
        # Of an answer that goes on what is not taken gets more: that alone does not tell a client who reads.
        written = 0 if self._current_request is None else self._current_request.writer.output_size
        if not unsent or written - unsent != self._taken:
            self._taken, self._taken_at = written - unsent, now
        elif now - self._taken_at >= bounds.write_timeout_seconds:
            self._owner.watcher.cut(Cut.WRITE_TIMEOUT)
            wire.abort()
            return
        if self._reading_paused or self._buffer_paused or self._holds_back:
            # It is we who do not read.
            self._read_at = now
        if self._head_since is not None:
            if now - self._head_since >= bounds.header_timeout_seconds:
                self._owner.watcher.cut(Cut.HEAD_TIMEOUT)
                self._refuse(HeadTimeout())
        elif not self._deaf and not self._payload.is_eof() and now - self._read_at >= bounds.body_timeout_seconds:
            self._deaf = True
            self._owner.watcher.cut(Cut.BODY_TIMEOUT)
            self._end_body(BodyTimeout())

    def cancel_request(self) -> None:
        """Cancel the request that is being served."""
        if self._task_handler is not None:
            self._task_handler.cancel()

    def close(self) -> None:
        """Close after the answer that is being made; a body that is still coming for it comes to its end."""
        if self._current_request is not None and not self._payload.is_eof():
            self.leaving = True
        else:
            super().close()

    def request_of(
        self, message: RawRequestMessage, payload: StreamReader, writer: AbstractStreamWriter
    ) -> web.BaseRequest:
        """Make the request that a message of the parser is. Raises `ValueError` where its target names no host."""
        return self._owner.request_of(message, payload, self, writer)

    def is_last(self, request: web.BaseRequest) -> bool:
        """Whether the client is to be told that no other answer follows, whatever it asked for."""
        return (
            self.leaving
            or self._close
            or self._force_close
            or self._owner.draining
            or not stays_open(request._message)  # noqa: SLF001 - the request does not say
            # What is left of the body would be taken for the next request by whoever thinks it was not wanted.
            or not request.content.is_eof()
        )

    def log_exception(self, *args: Any, exc_info: BaseException | None = None, **_: Any) -> None:  # noqa: ARG002 - its words are not ours
        """Note what ended a connection between two requests; a body that could not be read to its end is no fault."""
        if not isinstance(exc_info, web.RequestPayloadError | HttpProcessingError):
            fault(exc_info)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it quotes what came, keys included
    ) -> web.StreamResponse:
        """Answer what never became a request, and what a handler let through. Always closes the connection."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun; there is no room for another")
        if status >= 500:
            return response_of(fault(exc))
        _log.debug("a client sent what is not HTTP: %s", type(exc).__name__)
        return response_of(answer_to(exc))

    def _make_error_handler(self, err_info: _ErrInfo) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        refuse = super()._make_error_handler(err_info)

        async def refuse_and_linger(request: web.BaseRequest) -> web.StreamResponse:
            response = await refuse(request)
            await response.prepare(request)
            await response.write_eof()
            if self._wire is not None and self._wire.can_write_eof():
                self._wire.write_eof()
            # Cancelled when the client leaves.
            await asyncio.sleep(_LINGER_SECONDS)
            return response

        return refuse_and_linger
