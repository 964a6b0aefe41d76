"""A string that does not show itself."""

from __future__ import annotations

__all__ = ["Secret"]


class Secret:
    """Wraps a key, or a URL that may carry a password, so that only `reveal` gives it out.

    `repr`, `str` and formatting show `***`. Two secrets are equal when what they hold is.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The string itself, for the one place that sends it."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return self._value == other._value if isinstance(other, Secret) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Secret('***')"

    def __str__(self) -> str:
        return "***"
