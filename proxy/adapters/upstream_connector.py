"""aiohttp's pool of connections upstream, told of one fault it forgets to tell on.

Where the framing of a body breaks in its middle, aiohttp 3.14 closes the connection and notes the error with it, but
not with the body: whoever reads that would wait for ever, for its silence is no longer measured either.
"""

from __future__ import annotations

from functools import partial

import aiohttp
from aiohttp.client_proto import ResponseHandler  # there is no public name for what a connection is made of
from aiohttp.http_exceptions import HttpProcessingError

__all__ = ["UpstreamConnector"]


class UpstreamConnector(aiohttp.TCPConnector):
    """A `TCPConnector` whose connections fail the body they cannot read on."""

    def __init__(self, *, limit: int, keepalive_timeout: float, ttl_dns_cache: int, ssl: object) -> None:
        super().__init__(limit=limit, keepalive_timeout=keepalive_timeout, ttl_dns_cache=ttl_dns_cache, ssl=ssl)  # type: ignore[arg-type]  # whatever aiohttp takes
        make: type[ResponseHandler] = _Connection
        self._factory = partial(make, loop=self._loop)


class _Connection(ResponseHandler):
    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        body = self._payload
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and body is not None and body.exception() is None and not body.is_eof():
            body.set_exception(aiohttp.ClientPayloadError("the framing of the body is broken"))
