"""Small PNG files of noise, each following from a digest alone."""

from __future__ import annotations

import hashlib
import struct
import zlib

__all__ = ["picture"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIDE = 32
_GREY, _BITS = 0, 8


def picture(digest: bytes, side: int = _SIDE) -> bytes:
    """A grey PNG of `side` by `side` pixels; some hundred bytes longer than that, for noise does not compress."""
    noise = hashlib.shake_256(digest).digest(side * side)
    rows = b"".join(b"\0" + noise[at : at + side] for at in range(0, len(noise), side))
    head = struct.pack(">IIBBBBB", side, side, _BITS, _GREY, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
