"""Where in a JSON text each value stands; the parser does not tell."""

from __future__ import annotations

import json
import re
from bisect import bisect_right

__all__ = ["json_lines"]

Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t\n\r]*")
_scanner = json.JSONDecoder()


def json_lines(text: str) -> tuple[dict[Path, int], list[Path]]:
    """The line (from 1) of every member and element of a valid text, and the members whose name is there twice."""
    finder = _Finder(text)
    finder.value(0, ())
    return finder.lines, finder.twice


class _Finder:
    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self.twice: list[Path] = []
        self._text = text
        self._breaks = [match.start() for match in re.finditer("\n", text)]

    def value(self, at: int, path: Path) -> int:
        """Go through the value that begins at or after `at`; returns where it ends."""
        at = self._skip(at)
        opening = self._text[at]
        if opening not in "{[":
            return _scanner.raw_decode(self._text, at)[1]
        at = self._skip(at + 1)
        index = 0
        while self._text[at] not in "}]":
            inner: Path = (*path, index)
            line = bisect_right(self._breaks, at) + 1
            if opening == "{":
                name, at = _scanner.raw_decode(self._text, at)
                inner = (*path, name)
                if inner in self.lines:
                    self.twice.append(inner)
                at = self._skip(at) + 1
            self.lines[inner] = line
            at = self._skip(self.value(at, inner))
            at = self._skip(at + 1) if self._text[at] == "," else at
            index += 1
        return at + 1

    def _skip(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        return match.end() if match else at
