"""Content codings of request bodies, undone within a bound.

The server undoes none itself: which ones it would know depends on what is installed beside it, and it works on the
event loop. Sources: RFC 9110, 8.4.1; RFC 8878 and RFC 9659 for zstd, whose window is at most 8 MiB here as there.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, Protocol

from proxy.core.errors import BodyTooLarge, InvalidRequest

__all__ = ["check_coding", "inflate"]

_ZSTD = "zstd"
_ZSTD_WINDOW_LOG = 23
_AT_ONCE_BYTES = 65_536
_MOST_MEMBERS = 64
"""Streams one after the other in one body; each costs a decompressor, however little is in it."""
_IDENTITY = frozenset({"", "identity"})


class _Inflater(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def check_coding(coding: str) -> bool:
    """Whether there is anything to undo. Raises `InvalidRequest` for a coding that cannot be undone here."""
    name = coding.strip().lower()
    if name in _IDENTITY:
        return False
    if name not in _CODINGS:
        known = ", ".join(_CODINGS)
        raise InvalidRequest(
            f"The request body's content encoding {coding[:64]!r} cannot be read here: send one of {known}, or none.",
            code="unsupported_content_encoding",
        )
    if name == _ZSTD and _zstd() is None:
        raise InvalidRequest(
            "The request body's content encoding 'zstd' cannot be read here: this gateway was installed without it "
            "(pip install 'tollgate[server]'). Send gzip, or no content encoding.",
            code="unsupported_content_encoding",
        )
    return True


def inflate(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Undo a coding that `check_coding` has passed; takes its time, so not on the event loop.

    Raises `BodyTooLarge` as soon as there are more than `max_bytes`, and `InvalidRequest` for what is broken.
    """
    name = coding.strip().lower()
    make = _CODINGS[name]
    pieces: list[bytes] = []
    left, members, inflater = max_bytes, 0, None
    view = memoryview(body)
    at = 0
    try:
        while at < len(body):
            if inflater is None:
                members += 1
                if members > _MOST_MEMBERS:
                    raise InvalidRequest(f"The request body has more than {_MOST_MEMBERS} compressed streams in it.")
                inflater = make(body[at])
            block = bytes(view[at : at + _AT_ONCE_BYTES])
            piece = inflater.decompress(block, left + 1)
            left -= len(piece)
            if left < 0:
                raise BodyTooLarge(max_bytes)
            pieces.append(piece)
            at += len(block)
            if inflater.eof:
                at -= len(inflater.unused_data)
                inflater = None
    except _errors():
        raise _broken(name) from None
    if inflater is not None or not members:
        raise _broken(name)
    return b"".join(pieces)


def _broken(name: str) -> InvalidRequest:
    return InvalidRequest(f"The request body could not be read: it is not {name}, or not all of it.")


def _zstd() -> ModuleType | None:
    """The one of the standard library, or the one of the extra `server`."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - the base install may do without it
        else:
            from backports import zstd  # noqa: PLC0415 - the same
    except ImportError:
        return None
    module: ModuleType = zstd
    return module


def _errors() -> tuple[type[Exception], ...]:
    zstd = _zstd()
    return (zlib.error,) if zstd is None else (zlib.error, zstd.ZstdError)


def _zstd_inflater(_: int) -> _Inflater:
    zstd: Any = _zstd()
    options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    inflater: _Inflater = zstd.ZstdDecompressor(options=options)
    return inflater


def _deflate_inflater(first: int) -> _Inflater:
    # The coding is zlib's format; clients that send bare deflate in its name are as old as the name.
    return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_CODINGS: Mapping[str, Callable[[int], _Inflater]] = {
    "gzip": lambda _: zlib.decompressobj(16 + zlib.MAX_WBITS),
    "deflate": _deflate_inflater,
    _ZSTD: _zstd_inflater,
}
