"""Room for request bodies that are held in memory, shared by all requests of a worker."""

from __future__ import annotations

from proxy.core.errors import Overloaded

__all__ = ["BodyRoom"]


class BodyRoom:
    """Counts bytes. What every client may send by itself could be more together than there is memory."""

    __slots__ = ("held_bytes", "max_bytes")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0

    def take(self, size: int) -> None:
        """Make room for more bytes of a body. Raises `Overloaded` where there is none; nothing is taken then."""
        if self.held_bytes + size > self.max_bytes:
            raise Overloaded("it holds as much of requests as it may")
        self.held_bytes += size

    def give_back(self, size: int) -> None:
        """Say that they are held no more."""
        self.held_bytes -= size
