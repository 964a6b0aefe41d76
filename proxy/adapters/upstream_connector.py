"""aiohttp's pool of connections upstream, spoken to without a session of its client, and told of what it misses.

A session makes a request and a response of many parts for each call, which costs more than the rest of a call. Of
aiohttp, the pool stays (keep-alive, limits, TLS, proxies, names, addresses tried in parallel) and so does the parser.

Where the framing of a body breaks in its middle, aiohttp 3.14 closes the connection and notes the error with it, but
not with the body: whoever reads that would wait for ever, for its silence is no longer measured either.

Where a connection breaks in a body that goes to its end, aiohttp takes what has come for the whole of it.

What upstream says behind the end of an answer, or on a connection that nobody uses, aiohttp keeps for the next request
on that connection: somebody would be given another one's answer, and so would all who come after.

All that is used here and is not in aiohttp's documentation is as it is in 3.14, to which the dependency is held:
`BaseConnector.connect` and `_get`, what they ask of a `ClientRequest` (`connection_key`, `proxy`, `is_ssl`, `headers`),
the factory and `_create_proxy_connection` of a `TCPConnector`, `Connection`, and of `client_proto.ResponseHandler`:
`set_response_params`, `read`, `start_timeout`, `data_received`, `feed_data`, `set_exception`, `_reschedule_timeout`,
`_drop_timeout`, `_on_read_timeout`, `_read_timeout`, `_read_timeout_handle`, `_reading_paused`, `_payload`, `_loop`.
The tests of this module say so where it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler  # there is no public name for what a connection is made of
from aiohttp.connector import Connection  # nor for the right to use one
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

__all__ = ["FINAL", "LONGEST_LINE_BYTES", "READ_AHEAD_BYTES", "Destination", "Received", "UpstreamConnector"]

LONGEST_LINE_BYTES = 65_536
"""Of the head of an answer."""
FINAL = 200
"""The first status of an answer; another protocol is never asked for."""
READ_AHEAD_BYTES = 2**18
"""Of a body that nobody takes: twice as many, and the connection is read no further."""


class Destination(aiohttp.ClientRequest):
    """Where calls go: all that a pool asks about the requests it has connections for, found out once."""

    def __init__(self, url: URL, proxy: URL | None, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__("GET", url, loop=loop, proxy=proxy, proxy_headers={} if proxy else None)
        self._key = super().connection_key

    @property
    def connection_key(self) -> Any:
        """What tells its connections from others."""
        return self._key

    @property
    def host_header(self) -> str:
        """What its servers are called in the head of a request."""
        return self.headers["Host"]


class Received:
    """An answer whose head has come. What came with it holds no connection; the rest does until its end."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(self, connection: Connection, message: Any, content: aiohttp.StreamReader) -> None:
        self._connection: Connection | None = connection
        self.status: int = message.code
        self.headers: Mapping[str, str] = message.headers
        """Case-insensitive."""
        self.content = content
        content.on_eof(self.release)

    def release(self) -> None:
        """Give the connection back. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        protocol = connection.protocol
        if isinstance(protocol, _Connection) and protocol.is_writing:
            connection.close()  # what it is still to take is no part of the next request
        else:
            connection.release()

    def close(self) -> None:
        """Cut the connection, unless all has come. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            if self.content.exception() is None:
                self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))


class UpstreamConnector(aiohttp.TCPConnector):
    """A `TCPConnector` that makes calls itself.

    Its connections fail the body they cannot read on, and end where they are told unasked.
    """

    def __init__(
        self,
        *,
        limit: int,
        keepalive_timeout: float,
        ttl_dns_cache: int,
        ssl: object,
        proxy: str | None,
        timeout: aiohttp.ClientTimeout,
    ) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout, ttl_dns_cache=ttl_dns_cache, ssl=ssl)  # type: ignore[arg-type]  # whatever aiohttp takes
        make: type[ResponseHandler] = _Connection
        self._factory = partial(make, loop=self._loop)
        self._proxy = URL(proxy) if proxy is not None else None
        self._timeout = timeout
        self._expected: dict[str, Any] = {
            "read_until_eof": True,
            "read_timeout": timeout.sock_read,
            "read_bufsize": READ_AHEAD_BYTES,
            "max_line_size": LONGEST_LINE_BYTES,
            "max_field_size": LONGEST_LINE_BYTES,
        }

    def destination(self, url: str) -> Destination | None:
        """Where calls below a URL go, None where `call` cannot reach it.

        That is what takes more than a path in the request line, as a proxy that is not asked for a tunnel does.
        """
        try:
            place = URL(url, encoded=True)
            if place.scheme not in _SCHEMES or not place.raw_host or place.user or place.query_string or place.fragment:
                return None
            if self._proxy is not None and place.scheme != "https":
                return None
            return Destination(place, self._proxy, self._loop)
        except ValueError:
            return None

    async def call(
        self, to: Destination, head: bytes, body: bytes, *, is_head: bool, is_idempotent: bool, decompress: bool
    ) -> Received:
        """Send a request; returns at the head of the answer. Raises `ClientError`, `TimeoutError`, `OSError`.

        One that `is_idempotent` is sent once more where the connection ends without an answer, as that of one which has
        been idle for long may.
        """
        while True:
            # `connect` looks there, too, and prepares to ask a proxy for a tunnel that there is.
            connection = await self._get(to.connection_key, []) or await self._new(to)
            try:
                protocol = connection.protocol
                protocol.set_response_params(skip_payload=is_head, auto_decompress=decompress, **self._expected)  # type: ignore[union-attr]  # none was released yet
                protocol.send(head, body)  # type: ignore[union-attr]  # by `_factory`
                message, content = await protocol.read()  # type: ignore[union-attr]
                while _goes_on(message.code):
                    message, content = await protocol.read()  # type: ignore[union-attr]
                if message.code < FINAL:
                    raise aiohttp.ClientPayloadError("upstream answers with what is no answer")
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                connection.close()
                if not is_idempotent:
                    raise
                is_idempotent = False
            except HttpProcessingError as error:
                connection.close()
                raise aiohttp.ClientPayloadError("the head of the answer cannot be read") from error
            except BaseException:
                connection.close()
                raise
            else:
                return Received(connection, message, content)

    async def _create_proxy_connection(self, req: aiohttp.ClientRequest, traces: list[Any], timeout: Any) -> Any:  # noqa: ASYNC109 - aiohttp's signature
        """Connect through a proxy, as fast as without one: for its word about a tunnel aiohttp waits without end."""
        async with asyncio.timeout(timeout.sock_connect):
            return await super()._create_proxy_connection(req, traces, timeout)

    async def _new(self, to: Destination) -> Connection:
        try:
            return await self.connect(to, [], self._timeout)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError("no connection in time") from error


def _goes_on(status: int) -> bool:
    """Whether a head announces another one. The parser takes any three digits for a status."""
    return _CONTINUE <= status < FINAL and status != _SWITCHING


class _Connection(ResponseHandler):
    is_writing = False
    """More of a request is to be sent than the connection takes at once."""
    _left: bytes | memoryview = b""
    """Of its body, what was not yet handed over."""
    _answered = False
    """The head of an answer has come, and no other was asked for since."""
    _asked = False
    """All of a request has been taken."""
    _silent_until: float | None = None
    """By the loop's clock; None: nothing is waited for."""

    def set_response_params(self, **params: Any) -> None:
        """Expect an answer."""
        self._answered = self._asked = False
        super().set_response_params(**params)

    def start_timeout(self) -> None:
        """Measure silence from here on: upstream has been asked."""
        self._asked = True
        super().start_timeout()

    def send(self, head: bytes, body: bytes) -> None:
        """Send a request. How long upstream is silent is measured from when it has taken all."""
        transport = self.transport
        if transport is None or transport.is_closing():
            raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")
        if len(body) <= _PIECE_BYTES:
            transport.write(head + body)
        else:
            transport.write(head)
            self._left = memoryview(body)
        self.is_writing = True
        self._write_on(transport)

    def _write_on(self, transport: asyncio.Transport) -> None:
        # In pieces: TLS takes whatever it is given at once, and does not say that the system takes no more.
        while self._left and not self.writing_paused:
            piece, self._left = self._left[:_PIECE_BYTES], self._left[_PIECE_BYTES:]
            transport.write(piece)
        if self.is_writing and not self.writing_paused:
            self.is_writing = False
            self.start_timeout()

    def resume_writing(self) -> None:
        """Go on: what was handed over is with the system, or nearly."""
        super().resume_writing()
        if self.is_writing and self.transport is not None and not self.transport.is_closing():
            self._write_on(self.transport)

    def resume_reading(self, resume_parser: bool = True) -> None:  # noqa: FBT001, FBT002 - aiohttp's own
        """Read on, where it was not: aiohttp asks for it with each piece of a body that is taken."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def data_received(self, data: bytes) -> None:
        """Take what upstream says, unless it was not asked for."""
        if self._answered and data and (self._payload is None or self._payload.is_eof()):
            self._end()
            return
        super().data_received(data)
        # aiohttp measures no silence behind a head that announces another one.
        if data and self._asked and not self._answered:
            self._reschedule_timeout()

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of an answer."""
        if self._answered:
            self._end()
            return
        message, _ = data
        self._answered = not _goes_on(message.code)
        if message.code < FINAL and self._answered:
            self.force_close()
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """Fail, and with it the body whose framing is broken."""
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and body.exception() is None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError("the framing of the body is broken"))

    def close(self) -> None:
        """End now: a connection that takes nothing would not end before it has taken all."""
        if self.transport is not None and self.transport.get_write_buffer_size():
            self.transport.abort()
        super().close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End. A body whose end is that of its connection has not come whole where that broke."""
        self._left = b""
        body = self._payload
        if exc is not None and body is not None and not body.is_eof() and body.exception() is None:
            body.set_exception(aiohttp.ClientPayloadError("the connection broke before the end of the body"))
        if self._read_timeout_handle is not None:
            self._read_timeout_handle.cancel()
            self._read_timeout_handle = None
        super().connection_lost(exc)

    def _reschedule_timeout(self) -> None:
        """Wait for upstream's next word: one timer is looked at when it is up, rather than set anew at each."""
        seconds = self._read_timeout
        if not seconds:
            self._silent_until = None
            return
        self._silent_until = self._loop.time() + seconds
        if self._read_timeout_handle is None:
            self._read_timeout_handle = self._loop.call_at(self._silent_until, self._look)

    def _drop_timeout(self) -> None:
        self._silent_until = None

    def _look(self) -> None:
        self._read_timeout_handle = None
        until = self._silent_until
        if until is None or self.transport is None:
            return
        if until - self._loop.time() > _SOON_SECONDS:
            self._read_timeout_handle = self._loop.call_at(until, self._look)
        else:
            self._silent_until = None
            self._on_read_timeout()

    def _end(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()


_SCHEMES = frozenset({"http", "https"})
_CONTINUE, _SWITCHING = 100, 101
_PIECE_BYTES = 65_536
"""To copy so much costs less than to write twice."""
_SOON_SECONDS = 0.001
"""Clocks of loops are no finer."""
