"""Members of a JSON object that passes in pieces, found without holding it.

An image in base64 is megabytes of string in which nothing can stand that ends it: it is skipped by searching.
"""

from __future__ import annotations

import re
from collections.abc import Collection

__all__ = ["MemberScanner"]

_IN_STRING = re.compile(rb'["\\]')
_OUTSIDE = re.compile(rb'["{}\[\],:]')
_BLANK = b" \t\n\r"
_MAX_NAME_BYTES = 64


class MemberScanner:
    """Keeps the values of some members of the outermost object, as they are written; the last of several."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_key", "_max_value_bytes", "_names", "_reads_key", "_sink",
                 "broken", "ended", "values")  # fmt: skip

    def __init__(self, names: Collection[str], max_value_bytes: int = 65_536) -> None:
        self._names = {name.encode() for name in names}
        self._max_value_bytes = max_value_bytes
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._reads_key = False
        """The next string in the outermost object is the name of a member."""
        self._key = b""
        self._sink: bytearray | None = None
        """Takes what comes: the name of a member, or the value of one that is asked for."""
        self.values: dict[str, bytes] = {}
        """By name; one that is longer than may be held is left out."""
        self.ended = False
        """The object has been closed."""
        self.broken = False
        """It is no object."""

    def feed(self, data: bytes) -> None:
        """Read on."""
        at = 0
        while at < len(data) and not self.broken:
            at = self._string(data, at) if self._in_string else self._outside(data, at)

    def _string(self, data: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            self._take(data, at, at + 1)
            return at + 1
        found = _IN_STRING.search(data, at)
        if found is None:
            self._take(data, at, len(data))
            return len(data)
        end = found.end()
        if found[0] == b"\\":
            self._escaped = True
            self._take(data, at, end)
            return end
        self._in_string = False
        if self._reads_key and self._depth == 1:
            self._take(data, at, end - 1)
            self._key, self._sink = bytes(self._sink or b""), None
        else:
            self._take(data, at, end)
        return end

    def _outside(self, data: bytes, at: int) -> int:
        found = _OUTSIDE.search(data, at)
        end = len(data) if found is None else found.start()
        if self._depth == 0 and data[at:end].strip(_BLANK):
            self.broken = True
            return len(data)
        self._take(data, at, end)
        if found is None:
            return end
        sign = found[0]
        if self._depth == 0 and (sign != b"{" or self.ended):
            self.broken = True
        elif self._depth == 1 and sign in b",}:":
            self._member(sign)
        else:
            self._deeper(sign)
        return end + 1

    def _member(self, sign: bytes) -> None:
        """A sign that stands between the members of the outermost object, or ends it."""
        if sign == b":":
            if self._reads_key:
                self._reads_key = False
                self._sink = bytearray() if self._key in self._names else None
            return
        if self._sink is not None and not self._reads_key:
            self.values[self._key.decode()] = bytes(self._sink).strip(_BLANK)
        self._sink, self._key, self._reads_key = None, b"", True
        if sign == b"}":
            self._depth, self.ended = 0, True

    def _deeper(self, sign: bytes) -> None:
        if sign == b'"':
            self._in_string = True
            if self._reads_key and self._depth == 1:
                self._sink = bytearray()
                return
        elif sign in b"{[":
            if self._depth == 0:
                self._depth, self._reads_key = 1, True
                return
            self._depth += 1
        elif sign in b"}]":
            self._depth -= 1
        self._take(sign, 0, 1)

    def _take(self, data: bytes, start: int, end: int) -> None:
        sink = self._sink
        if sink is None or start == end:
            return
        reading_name = self._reads_key and self._depth == 1
        if len(sink) + end - start > (_MAX_NAME_BYTES if reading_name else self._max_value_bytes):
            # Nothing that is asked for is as long as that.
            self._sink, self._key = (bytearray(b"\0") if reading_name else None), b""
            return
        sink += data[start:end]
