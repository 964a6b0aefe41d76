"""The client's side of an exchange, on aiohttp."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress

from aiohttp import ClientConnectionError, HttpVersion11, StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from proxy.core.errors import BodyTimedOut, BodyTooLarge, InvalidRequest
from proxy.web.answer import head_of
from proxy.web.connection import Connection
from proxy.web.inflate import check_coding, inflate
from proxy.web.protocol import Streamed
from proxy.web.refusals import BodyTimeout
from proxy.web.room import BodyRoom

__all__ = ["AiohttpDownstream", "Incoming"]

_UNDECODABLE = re.compile("[\ud800-\udfff]")
"""What stands for bytes that are not UTF-8."""
_NOT_SENT_ON = frozenset({"authorization", "api-key"})


class AiohttpDownstream:
    """Keeps the promises of `ports.Downstream` for one request."""

    __slots__ = (
        "_closing",
        "_held_bytes",
        "_id_headers",
        "_left_out",
        "_max_body_bytes",
        "_request",
        "_response",
        "_room",
    )

    def __init__(
        self,
        request: web.BaseRequest,
        id_headers: Sequence[tuple[str, str]],
        max_body_bytes: int,
        left_out: frozenset[str] = frozenset(),
        room: BodyRoom | None = None,
    ) -> None:
        """`left_out`: headers that no answer has, by their names in lower case. `room`: for a body that is held."""
        self._request = request
        self._id_headers = id_headers
        self._left_out = left_out
        self._max_body_bytes = max_body_bytes
        self._response: web.StreamResponse | Streamed | None = None
        self._room = room
        self._held_bytes = 0
        self._closing = False

    @property
    def response(self) -> web.StreamResponse | Streamed | None:
        """The streamed response, once it is open."""
        return self._response

    async def receive(self) -> bytes:
        """Read the body, bounded. A length that is already too large is not read at all."""
        request = self._request
        headers = request.headers
        _check_headers(request)
        if (request.content_length or 0) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        coding = ",".join(headers.getall(hdrs.CONTENT_ENCODING)) if hdrs.CONTENT_ENCODING in headers else ""
        packed = check_coding(coding)
        if hdrs.EXPECT in headers:
            await _go_ahead(request)
        content = request.content
        body = self._taken(content.read_nowait()) if _is_all_here(content) else await self._whole(content)
        if packed:
            body = await asyncio.to_thread(inflate, body, coding, self._max_body_bytes)
            self._hold(len(body))
        return body

    async def _whole(self, content: StreamReader) -> bytes:
        pieces: list[bytes] = []
        left = self._max_body_bytes
        while True:
            with _broken_bodies():
                piece = await content.readany()
            if not piece:
                return b"".join(pieces)
            left -= len(piece)
            if left < 0:
                raise BodyTooLarge(self._max_body_bytes)
            self._hold(len(piece))
            pieces.append(piece)

    def _taken(self, body: bytes) -> bytes:
        if len(body) > self._max_body_bytes:
            raise BodyTooLarge(self._max_body_bytes)
        self._hold(len(body))
        return body

    def _hold(self, size: int) -> None:
        if self._room is not None:
            self._room.take(size)
            self._held_bytes += size

    def release(self) -> None:
        """Say that what was received is held no more."""
        if self._room is not None:
            self._room.give_back(self._held_bytes)
            self._held_bytes = 0

    def stream(self, max_bytes: int) -> Incoming:
        """The body as it comes."""
        _check_headers(self._request)
        if (self._request.content_length or 0) > max_bytes:
            raise BodyTooLarge(max_bytes)
        return Incoming(self._request, max_bytes)

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send the head; the body is chunked and every write goes out at once."""
        request, left_out = self._request, self._left_out
        told = (*headers, *self._id_headers)
        connection = request.protocol
        if isinstance(connection, Connection):
            closes = connection.closes_after(request)
            message = request._message  # noqa: SLF001 - it says more than the request does
            head = head_of(message, status, told, left_out, length=None, closes=closes)
            if head is not None:
                self._response = Streamed(connection, request.writer, status, head, keep_alive=not closes)
                return
        response = web.StreamResponse(status=status)
        for name, value in told:
            if name.lower() not in left_out:
                response.headers[name] = value
        self._response = response
        await response.prepare(request)

    async def write(self, data: bytes) -> None:
        """Send bytes, waiting while the client does not read."""
        await self._opened.write(data)

    async def close(self) -> None:
        """End the answer as complete."""
        self._closing = True
        await self._opened.write_eof()

    async def break_off(self, last: bytes) -> None:
        """Abort an answer that has begun, with `last` behind what was sent; nothing is waited for."""
        if last and not self._closing:
            with suppress(TimeoutError, ConnectionResetError):
                async with asyncio.timeout(0):
                    await self.write(last)
        self.abort()

    def abort(self) -> None:
        """Close the connection without the final chunk, once what was written has gone out."""
        transport = self._request.transport
        if transport is not None:
            transport.close()

    @property
    def _opened(self) -> web.StreamResponse | Streamed:
        if self._response is None:
            raise RuntimeError("the answer has not been opened")
        return self._response


class Incoming:
    """Keeps the promises of `ports.Body` for what a client is sending."""

    __slots__ = ("_begun", "_max_bytes", "_request")

    def __init__(self, request: web.BaseRequest, max_bytes: int) -> None:
        self._request = request
        self._max_bytes = max_bytes
        self._begun = False

    @property
    def length(self) -> int | None:
        """As the client told it; 0 for a request without a body."""
        request = self._request
        return request.content_length if request.can_read_body or request.content_length else 0

    @property
    def replayable(self) -> bool:
        """Whether nothing was read yet."""
        return not self._begun

    async def chunks(self) -> AsyncIterator[bytes]:
        """What has come, whenever something has: the server stops reading while nobody takes it."""
        if self._begun:
            raise RuntimeError("the body was read before")
        self._begun = True
        await _go_ahead(self._request)
        left = self._max_bytes
        content = self._request.content
        while True:
            with _broken_bodies():
                chunk = await content.readany()
            if not chunk:
                return
            left -= len(chunk)
            if left < 0:
                raise BodyTooLarge(self._max_bytes)
            yield chunk


def _is_all_here(content: StreamReader) -> bool:
    return content.is_eof() and content.exception() is None


def _check_headers(request: web.BaseRequest) -> None:
    headers = request.headers
    if "".join(headers.values()).isascii():
        return
    for name, value in headers.items():
        # The client upstream would cut such a value short.
        if not value.isascii() and _UNDECODABLE.search(value) and name.lower() not in _NOT_SENT_ON:
            raise InvalidRequest(f"The value of the header {name[:64]} is not UTF-8.")


async def _go_ahead(request: web.BaseRequest) -> None:
    """Ask for a body that its client will send once it is asked to."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # an answer has not begun with it
        if isinstance(request.protocol, Connection):
            request.protocol.asked_for_body()


@contextmanager
def _broken_bodies() -> Iterator[None]:
    """Say what became of a body that did not come whole."""
    try:
        yield
    except BodyTimeout:
        raise BodyTimedOut from None
    except (web.RequestPayloadError, HttpProcessingError):
        raise InvalidRequest("The request body could not be read: its encoding or framing is broken.") from None
    except ClientConnectionError as error:
        raise ConnectionResetError("client left while sending") from error
