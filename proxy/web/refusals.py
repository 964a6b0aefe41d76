"""Answers to what never became a request, in OpenAI's shape; each ends its connection."""

from __future__ import annotations

import secrets
from itertools import chain

from aiohttp import HttpVersion10, HttpVersion11, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.http_parser import RawRequestMessage

from proxy.core.misuse import Malformed
from proxy.web.bounds import MAX_HEAD_BYTES, MAX_HEADERS
from proxy.web.errors import ErrorAnswer, error_body

__all__ = [
    "OVERLOADED",
    "BodyTimeout",
    "HeadTimeout",
    "HeadTooLarge",
    "answer_to",
    "flaw_of",
    "raw_response",
    "reason_of",
    "response_of",
    "stays_open",
]

_VERSIONS = frozenset({HttpVersion10, HttpVersion11})
_MOST_DIGITS = 18
_TOO_LARGE = ErrorAnswer(431, f"The request line and headers are larger than {MAX_HEAD_BYTES} bytes together.")
_TOO_MANY = ErrorAnswer(431, f"The request has more than {MAX_HEADERS} headers.")
_NOT_HTTP = ErrorAnswer(400, "This is not a valid HTTP/1.1 request.")
_TOO_SLOW = ErrorAnswer(408, "The head of the request did not come to its end in time.", code="request_timeout")
_UNEXPECTED = ErrorAnswer(417, "Of what a request may expect, only 100-continue is known here.")
OVERLOADED = ErrorAnswer(
    503,
    "The gateway has as many connections as it takes.",
    "service_unavailable_error",
    code="server_is_overloaded",
    headers=(("Retry-After", "1"),),
)


class HeadTooLarge(HttpProcessingError):
    """A head is over the bound before it has ended."""


class HeadTimeout(HttpProcessingError):
    """A head was begun and not ended in time."""


class BodyTimeout(web.RequestPayloadError):
    """A body stopped coming."""


def answer_to(error: BaseException | None) -> ErrorAnswer:
    """What is told of an error of the parser; nothing of what came is quoted."""
    match error:
        case HeadTimeout():
            return _TOO_SLOW
        case _:
            return {Malformed.HEAD_TOO_LARGE: _TOO_LARGE, Malformed.TOO_MANY_HEADERS: _TOO_MANY}.get(
                reason_of(error), _NOT_HTTP
            )


def reason_of(error: BaseException | None) -> Malformed:
    """What an error of the parser counts as."""
    match error:
        case HeadTooLarge() | LineTooLong():
            return Malformed.HEAD_TOO_LARGE
        case HttpProcessingError(message="Too many headers received"):
            return Malformed.TOO_MANY_HEADERS
        case _:
            return Malformed.REQUEST


def flaw_of(message: RawRequestMessage, *, is_short: bool = False) -> tuple[Malformed, ErrorAnswer] | None:
    """Why a request that the parser takes is not to be served; None for almost all.

    `is_short`: its head is known to be within the bound.
    """
    if not is_short and _head_bytes(message) > MAX_HEAD_BYTES:
        return Malformed.HEAD_TOO_LARGE, _TOO_LARGE
    if message.version not in _VERSIONS:
        return Malformed.REQUEST, _NOT_HTTP
    if message.chunked and (
        message.version == HttpVersion10 or message.headers.getall("Transfer-Encoding")[0].lower() != "chunked"
    ):
        # The parser takes it where there is no such thing, and whatever list ends in it, undoing nothing of the rest.
        return Malformed.FRAMING, _NOT_HTTP
    if len(message.headers.get(hdrs.CONTENT_LENGTH, "")) > _MOST_DIGITS:
        # Nor does it tell the largest number it can hold from no length.
        return Malformed.FRAMING, _NOT_HTTP
    expected = message.headers.get(hdrs.EXPECT)
    if expected is not None and expected.lower() != "100-continue" and message.version >= HttpVersion11:
        return Malformed.EXPECTATION, _UNEXPECTED
    return None


def _head_bytes(message: RawRequestMessage) -> int:
    # A line end and a colon with its blank for each field, method and version beside the path.
    fields = sum(map(len, chain.from_iterable(message.raw_headers))) + 4 * len(message.raw_headers)
    return fields + len(message.path) + len(message.method) + 12


def stays_open(message: RawRequestMessage) -> bool:
    """Whether what follows a request on its connection may be read as another one.

    Not where it asks to speak another protocol from then on: what a client sends then is anyone's guess.
    """
    return not message.upgrade and message.method != "CONNECT"


def response_of(answer: ErrorAnswer) -> web.Response:
    """Write an answer that ends its connection."""
    response = web.Response(status=answer.status, body=error_body(answer), content_type="application/json")
    response.headers.update(_headers(answer))
    response.force_close()
    return response


def raw_response(answer: ErrorAnswer) -> bytes:
    """Write it as bytes, for a connection that has no request."""
    body = error_body(answer)
    reason = {503: "Service Unavailable"}.get(answer.status, "")
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **_headers(answer),
    }
    lines = [f"HTTP/1.1 {answer.status} {reason}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body


def _headers(answer: ErrorAnswer) -> dict[str, str]:
    # No exchange has one to give: none was made.
    named = {
        "x-request-id": f"req_{secrets.token_hex(16)}",
        "Cache-Control": "private, no-store",
        "Connection": "close",
    }
    return named | dict(answer.headers)
