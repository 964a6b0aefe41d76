"""The head of a request as bytes; nobody who says a header can say a second one with it.

What a name or a value may hold: RFC 9110, sections 5.1, 5.5 and 5.6.2. Names of headers that frame the message are ours
to set: two opinions of where a body ends are two requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["header_lines", "is_plain_target", "request_head"]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TARGET = re.compile(r"/[!\"$-~]*")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade", "trailer", "te"})
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

_known: set[str] = set()
"""Names that were looked at: clients have few, and each request has them all."""
_MOST_KNOWN, _KNOWN_CHARACTERS = 1_024, 64


def request_head(method: str, target: str, own: str, headers: Iterable[tuple[str, str]], body_bytes: int) -> bytes:
    """Write the head of a request over HTTP/1.1 whose body has so many bytes.

    `target` is one that `is_plain_target` says yes to, `own` what `header_lines` made of our own headers. Bytes that
    are no text are left out of values. Raises `ValueError`, which quotes nothing, for what would be read as more than
    one header.
    """
    if _TOKEN.fullmatch(method) is None:
        raise ValueError("the method of a request holds what none may")
    length = f"Content-Length: {body_bytes}\r\n\r\n" if body_bytes or method not in _BODILESS else "\r\n"
    return f"{method} {target} HTTP/1.1\r\n{own}{header_lines(headers)}{length}".encode("utf-8", "ignore")


def header_lines(headers: Iterable[tuple[str, str]], *, ours: bool = False) -> str:
    """Write headers, each as a line; those that are ours to set with `ours` alone. Raises `ValueError`."""
    lines: list[str] = []
    for name, value in headers:
        if name not in _known:
            _look_at(name, ours=ours)
        # Nothing that is printable is a control character; what is not may be one, or a tab, or beyond ASCII.
        if not value.isprintable() and _FORBIDDEN.search(value) is not None:
            raise ValueError("a header holds a control character")
        lines.append(f"{name}: {value}\r\n")
    return "".join(lines)


def is_plain_target(target: str) -> bool:
    """Whether a path with its query can stand in a request line as it is."""
    return _TARGET.fullmatch(target) is not None


def _look_at(name: str, *, ours: bool) -> None:
    if _TOKEN.fullmatch(name) is None:
        raise ValueError("the name of a header holds what none may")
    if name.lower() in _OURS:
        if not ours:
            raise ValueError("a header that frames the request is not the client's to say")
        return
    if len(name) <= _KNOWN_CHARACTERS:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known.add(name)
