"""The HTTP server of the public listener: aiohttp's, without a router, and with its own errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from proxy.web.errors import ErrorAnswer, error_body, fault

__all__ = ["OpenAIServer"]

_MAX_HEADER_BYTES = 64 * 1024
"""What OpenAI takes of headers in all."""
_IDLE_CONNECTION_SECONDS = 75.0
_log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class OpenAIServer(web.Server):
    """Speaks HTTP for `handler`, which is cancelled when its client leaves. Bodies over `max_body_bytes` raise."""

    def __init__(self, handler: Handler, *, max_body_bytes: int) -> None:
        # A client that leaves cancels its exchange: settlement is written first, then upstream is let go.
        super().__init__(handler, request_factory=self._request, handler_cancellation=True)
        self._max_body_bytes = max_body_bytes

    def __call__(self) -> web.RequestHandler:
        """Make the protocol of a new connection."""
        return _Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # documented as the way to turn it off
            keepalive_timeout=_IDLE_CONNECTION_SECONDS,
            # Which codings aiohttp undoes depends on what is installed, and it does so on the loop: see `inflate.py`.
            auto_decompress=False,
            max_field_size=_MAX_HEADER_BYTES,
            max_line_size=_MAX_HEADER_BYTES,
        )

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=self._max_body_bytes)


class _Connection(web.RequestHandler):
    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Feed the parser; where a body's framing breaks, its reader fails too: it would wait for the rest forever."""
        super().data_received(data)
        if (
            self._current_request is not None
            and self._messages
            and not isinstance(self._messages[-1][0], RawRequestMessage)
        ):
            self._current_request.content.set_exception(web.RequestPayloadError("the framing is broken"))

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
        if status < 500:
            _log.debug("a client sent what is not HTTP: %s", type(exc).__name__)
            answer = _not_http(exc)
        else:
            answer = fault(exc)
        response = web.Response(status=answer.status, body=error_body(answer), content_type="application/json")
        response.force_close()
        return response


def _not_http(error: BaseException | None) -> ErrorAnswer:
    match error:
        case LineTooLong():
            return ErrorAnswer(431, f"The request line or a header is longer than {_MAX_HEADER_BYTES} bytes.")
        case ContentEncodingError():
            return ErrorAnswer(400, "The request body's content encoding cannot be read here.")
        case HttpProcessingError(message="Too many headers received"):
            return ErrorAnswer(431, "The request has too many headers.")
        case _:
            return ErrorAnswer(400, "This is not a valid HTTP/1.1 request.")
