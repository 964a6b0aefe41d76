"""HTML, made of elements rather than of text: whatever is not markup already is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["Child", "Html", "el", "join"]

_VOID = frozenset({"br", "hr", "img", "input", "link", "meta"})


class Html(str):
    """Markup. Made by `el` alone, or of what this project wrote itself."""

    __slots__ = ()


Child = Html | str | int | None
"""What an element holds; text is escaped, None is nothing."""


def join(children: Iterable[Child]) -> Html:
    """Put things one behind the other."""
    return Html("".join(_written(child) for child in children))


def el(tag: str, *children: Child, **attributes: str | int | bool | None) -> Html:
    """An element. `class_` is `class`, `aria_label` is `aria-label`; False and None are attributes it does not have."""
    opened = "".join([tag, *(_attribute(name, value) for name, value in attributes.items())])
    return Html(f"<{opened}>") if tag in _VOID else Html(f"<{opened}>{join(children)}</{tag}>")


def _written(child: Child) -> str:
    if child is None:
        return ""
    return child if isinstance(child, Html) else escape(str(child))


def _attribute(name: str, value: str | int | bool | None) -> str:  # noqa: FBT001 - as HTML has them
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
