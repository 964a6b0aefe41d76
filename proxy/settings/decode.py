"""From what a file, the environment or the command line says to typed values, noting everything that is wrong."""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from proxy.settings.names import KeyPath
from proxy.settings.problem import nearest
from proxy.settings.secret import Secret

__all__ = ["Finding", "decode_table", "decode_value", "table_type"]

Tree = dict[str, typing.Any]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with the value at a path."""

    path: KeyPath
    message: str
    suggestion: str | None = None


def decode_table(table: object, kind: type[msgspec.Struct], path: KeyPath, base: Path, found: list[Finding]) -> Tree:
    """Typed values of one table of the file and of the tables within; what is wrong goes to `found` and is left out."""
    if not isinstance(table, dict):
        found.append(Finding(path, f"expected a table, got {_kind_of(table)}"))
        return {}
    fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
    tree: Tree = {}
    for name, value in table.items():
        here = (*path, name)
        if name not in fields:
            found.append(Finding(here, "unknown key", nearest(name, fields)))
        elif (inner := table_type(fields[name])) is not None:
            tree[name] = decode_table(value, inner, here, base, found)
        else:
            before = len(found)
            decoded = _decode_nested(value, fields[name], here, base, found)
            if len(found) == before:
                tree[name] = decoded
    return tree


def _decode_nested(value: object, kind: object, path: KeyPath, base: Path, found: list[Finding]) -> object:
    """A value that may hold tables: a table of named things, a list of tables, or neither."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        name_type, inner = arguments
        for name in value:
            decode_value(name, name_type, (*path, name), base, found)
        return {name: _decode_nested(each, inner, (*path, name), base, found) for name, each in value.items()}
    if typing.get_origin(kind) is tuple and isinstance(value, list) and table_type(arguments[0]) is not None:
        return tuple(_decode_nested(each, arguments[0], (*path, at), base, found) for at, each in enumerate(value))
    if (table := table_type(kind)) is not None:
        return table(**decode_table(value, table, path, base, found))
    return decode_value(value, kind, path, base, found)


def decode_value(
    value: object, kind: object, path: KeyPath, base: Path, found: list[Finding], *, strict: bool = True
) -> object:
    """One typed value, or None and a finding. Not `strict`: the value is a string of the environment."""
    if not strict and isinstance(value, str) and typing.get_origin(kind) is tuple:
        value = [each.strip() for each in value.split(",") if each.strip()]
    try:
        return msgspec.convert(value, kind, strict=strict, dec_hook=_hook(base))
    except msgspec.ValidationError as error:
        choices = _choices(kind)
        if choices:
            found.append(Finding(path, f"must be one of {', '.join(choices)}", nearest(str(value), choices)))
        else:
            found.append(Finding(path, _plain(str(error))))
    return None


def _hook(base: Path) -> Callable[[type, object], object]:
    """Makes the two types msgspec does not know."""

    def make(kind: type, value: object) -> object:
        if not isinstance(value, str):
            raise TypeError(f"expected str, got {_kind_of(value)}")
        if not value:
            raise ValueError("must not be empty")
        return Secret(value) if kind is Secret else base / Path(value).expanduser()

    return make


def table_type(kind: object) -> type[msgspec.Struct] | None:
    """`kind` when it is a table, None when it is a plain value."""
    return kind if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _choices(kind: object) -> list[str]:
    return [str(member) for member in kind] if isinstance(kind, type) and issubclass(kind, enum.StrEnum) else []


def _kind_of(value: object) -> str:
    return {dict: "a table", list: "a list", types.NoneType: "nothing"}.get(type(value), type(value).__name__)


def _plain(message: str) -> str:
    """A message of msgspec in our style; a trailing location is relative to the value, so it goes."""
    if "matching regex" in message:
        return "a name is 1 to 64 letters, digits, '_', '.' and '-', and begins with a letter or digit"
    message = message.partition(" - at ")[0].replace("`", "")
    for theirs, ours in _IN_TOML:
        message = message.replace(theirs, ours)
    return message[:1].lower() + message[1:]


_IN_TOML = ((" | null", ""), ("object", "a table"), ("array", "a list"))
"""What JSON's words are in a settings file."""
