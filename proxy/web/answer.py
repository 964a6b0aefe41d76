"""Answers: their heads are made in one go, from what answers with the same headers have in common."""

from __future__ import annotations

import re
from http import HTTPStatus

from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import RawRequestMessage

__all__ = ["Answer", "Headers", "head_of"]

Headers = tuple[tuple[str, str], ...]

_UNSAFE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""What no line of a head may have in it (RFC 9110, 5.5): it could end it, and begin another."""
_TO_AIOHTTP = frozenset({"connection", "content-length", "date", "server", "transfer-encoding"})
"""Where an answer brings one of these itself, it is a rare one, and aiohttp has rules for it."""
_WITHOUT_BODY = frozenset({204, 205, 304})
_BODILESS_METHODS = frozenset({"HEAD", "CONNECT"})
_PHRASES = {status.value: status.phrase for status in HTTPStatus}
_JSON = "application/json"
_UNKNOWN = "application/octet-stream"
_MOST_SHAPES = 256


class _Shape:
    """What is alike in the heads of all answers that have one status, and the same names in the same order."""

    __slots__ = ("_parts", "_places")

    def __init__(self, status: int, names: tuple[str, ...], left_out: frozenset[str], *, whole: bool) -> None:
        """Raises `ValueError` for names that must not be written."""
        # Of several by one name the last counts, in the place of the first.
        places = {name.lower(): place for place, name in enumerate(names) if name.lower() not in left_out}
        lines = [names[place] for place in places.values()]
        if _UNSAFE.search("".join(lines)):
            raise ValueError("a header's name has characters that would end its line")
        self._places = None if len(lines) == len(names) else tuple(places.values())
        kind = "" if "content-type" in places else f"Content-Type: {_JSON if whole else _UNKNOWN}\r\n"
        lines += [f"{kind}Content-Length", "Date"] if whole else [f"{kind}Transfer-Encoding: chunked\r\nDate"]
        lines[0] = f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n{lines[0]}"
        parts = [f"{lines[0]}: ", ""]
        for line in lines[1:]:
            parts += (f"\r\n{line}: ", "")
        self._parts = parts

    def filled(self, values: tuple[str, ...], length: int | None, *, closes: bool) -> bytes:
        """Write the head of one of them. Raises `ValueError` for a value that would end its line."""
        parts = self._parts.copy()
        kept = list(values) if self._places is None else [values[place] for place in self._places]
        text = "".join(kept)
        # The first is a matter of a moment, and almost always true.
        if not (text.isascii() and text.isprintable()) and _UNSAFE.search(text):
            raise ValueError("a header's value has characters that would end its line")
        if length is not None:
            kept.append(str(length))
        kept.append(rfc822_formatted_time())
        parts[1::2] = kept
        parts.append("\r\nConnection: close\r\n\r\n" if closes else "\r\n\r\n")
        # What was no UTF-8 when it came is left out, as aiohttp does it.
        return "".join(parts).encode(errors="ignore")


_Look = tuple[int, tuple[str, ...], frozenset[str], bool]
_shapes: dict[_Look, _Shape | None] = {}
"""None: it is for aiohttp to write."""


def head_of(
    message: RawRequestMessage,
    status: int,
    headers: Headers,
    left_out: frozenset[str],
    *,
    length: int | None,
    closes: bool,
) -> bytes | None:
    """The head of what answers `message`; None: it is for aiohttp to write.

    `length`: of the body in bytes; None: it comes in chunks. Raises `ValueError` for what no head may have in it.
    """
    if message.version is not HttpVersion11 or message.method in _BODILESS_METHODS or not headers:
        return None
    names, values = zip(*headers, strict=True)
    look = (status, names, left_out, length is not None)
    try:
        shape = _shapes[look]
    except KeyError:
        shape = _learn(look)
    return None if shape is None else shape.filled(values, length, closes=closes)


def _learn(look: _Look) -> _Shape | None:
    status, names, left_out, whole = look
    is_plain = status >= 200 and status not in _WITHOUT_BODY and _TO_AIOHTTP.isdisjoint(map(str.lower, names))
    shape = _Shape(status, names, left_out, whole=whole) if is_plain else None
    if len(_shapes) >= _MOST_SHAPES:
        _shapes.clear()
    _shapes[look] = shape
    return shape


class Answer:
    """A whole answer: of several headers by one name the last counts, in JSON where they do not say what it is."""

    __slots__ = ("_headers", "_left_out", "body", "keep_alive", "status")

    def __init__(self, status: int, headers: Headers, body: bytes, left_out: frozenset[str] = frozenset()) -> None:
        """`left_out`: headers that no answer has, by their names in lower case."""
        self.status = status
        self.body = body
        self._headers = headers
        self._left_out = left_out
        self.keep_alive: bool | None = None
        """Whether another may follow; None while that is not known."""

    def head(self, message: RawRequestMessage, *, closes: bool) -> bytes | None:
        """The head, as it answers `message`; None: `for_aiohttp` is to be written instead.

        `closes`: the client is told that no other answer follows. Raises `ValueError` for what no head may have in it.
        """
        return head_of(message, self.status, self._headers, self._left_out, length=len(self.body), closes=closes)

    def for_aiohttp(self) -> web.Response:
        """The same, for aiohttp to write."""
        response = web.Response(status=self.status, body=self.body)
        for name, value in self._headers:
            if name.lower() not in self._left_out:
                response.headers[name] = value
        response.headers.setdefault("Content-Type", _JSON)
        return response
