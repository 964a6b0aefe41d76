"""Records with fields that are not for showing."""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

__all__ = ["Discreet"]


class Discreet(msgspec.Struct, frozen=True):
    """A struct that keeps some of its fields out of what it shows of itself: keys, bodies, values of headers."""

    hidden: ClassVar[frozenset[str]] = frozenset()
    """Names of these fields."""

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__qualname__}({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name not in self.hidden]
