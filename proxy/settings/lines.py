"""On which line of a TOML document a key stands; `tomllib` does not tell."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterator

from proxy.settings.names import KeyPath

__all__ = ["key_lines"]


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every key and table of a valid document.

    Reads it statement by statement: a statement goes on for as long as `tomllib` takes it for unfinished.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    found: dict[KeyPath, int] = {}
    heads: Counter[KeyPath] = Counter()
    table: KeyPath = ()
    at = 0
    while at < len(lines):
        first, head = at, lines[at].lstrip()
        at += 1
        if not head or head.startswith("#"):
            continue
        while (statement := _parsed(lines[first:at])) is None and at < len(lines):
            at += 1
        if head.startswith("["):
            table = _table_path(_spine(statement or {}), heads, is_list=head.startswith("[["))
            found.setdefault(table, first + 1)
        else:
            _place(statement or {}, lines[first:at], first + 1, table, found)
    return found


def _parsed(lines: list[str]) -> dict[str, object] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return None


def _spine(head: dict[str, object]) -> list[str]:
    """Keys of a table head, from the outside in."""
    keys: list[str] = []
    inner: object = head
    while isinstance(inner, dict) and inner:
        key, inner = next(iter(inner.items()))
        keys.append(key)
    return keys


def _table_path(keys: list[str], heads: Counter[KeyPath], *, is_list: bool) -> KeyPath:
    """Where a head leads: through the latest element of every list of tables on the way."""
    path: KeyPath = ()
    for depth, key in enumerate(keys, 1):
        path = (*path, key)
        if is_list and depth == len(keys):
            heads[path] += 1
        if heads[path]:
            path = (*path, heads[path] - 1)
    return path


def _place(
    statement: dict[str, object], lines: list[str], first_line: int, table: KeyPath, found: dict[KeyPath, int]
) -> None:
    """Note the line of each key a statement sets, inner keys of a value over several lines included."""
    seen: Counter[str] = Counter()
    for path in _paths(statement, ()):
        key = str(path[-1])
        places = [
            number
            for number, line in enumerate(lines, first_line)
            if not line.lstrip().startswith("#")
            for _ in re.finditer(rf"(?<![\w-])[\"']?{re.escape(key)}[\"']?\s*[=.]", line)
        ]
        found[*table, *path] = places[seen[key]] if seen[key] < len(places) else first_line
        seen[key] += 1


def _paths(value: object, path: KeyPath) -> Iterator[KeyPath]:
    """Paths of every key within a value, in the order they were written."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _paths(inner, (*path, index))
