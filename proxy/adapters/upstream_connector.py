"""aiohttp's pool of connections upstream, told of two things it misses.

Where the framing of a body breaks in its middle, aiohttp 3.14 closes the connection and notes the error with it, but
not with the body: whoever reads that would wait for ever, for its silence is no longer measured either.

What upstream says behind the end of an answer, or on a connection that nobody uses, aiohttp keeps for the next request
on that connection: somebody would be given another one's answer, and so would all who come after.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler  # there is no public name for what a connection is made of
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["UpstreamConnector"]


class UpstreamConnector(aiohttp.TCPConnector):
    """A `TCPConnector` whose connections fail the body they cannot read on, and end where they are told unasked."""

    def __init__(self, *, limit: int, keepalive_timeout: float, ttl_dns_cache: int, ssl: object) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout, ttl_dns_cache=ttl_dns_cache, ssl=ssl)  # type: ignore[arg-type]  # whatever aiohttp takes
        make: type[ResponseHandler] = _Connection
        self._factory = partial(make, loop=self._loop)


class _Connection(ResponseHandler):
    _answered = False
    """The head of an answer has come, and no other was asked for since."""

    def set_response_params(self, **params: Any) -> None:
        """Expect an answer."""
        self._answered = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        if self._answered and data and (self._payload is None or self._payload.is_eof()):
            self._end()
            return
        super().data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take the head of an answer."""
        if self._answered:
            self._end()
            return
        message, _ = data
        self._answered = message.code >= _FINAL or message.code == _SWITCHING
        super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and body.exception() is None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError("the framing of the body is broken"))

    def _end(self) -> None:
        self.force_close()
        if self.transport is not None:
            self.transport.close()


_FINAL, _SWITCHING = 200, 101
