"""What one client may take of us: sizes, patience and connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from proxy.core.misuse import Cut, Malformed

__all__ = ["MAX_HEADERS", "MAX_HEAD_BYTES", "Bounds", "Unheard", "Watcher"]

MAX_HEAD_BYTES = 64 * 1024
"""Of a request line and its headers, line ends included: what OpenAI takes of headers in all."""
MAX_HEADERS = 128


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a connection is waited for, in each of its states, and how many of them there may be."""

    header_timeout_seconds: float = 30.0
    """From the first byte of a head to its last."""
    body_timeout_seconds: float = 60.0
    """Longest silence within a body."""
    write_timeout_seconds: float = 60.0
    """Longest time in which a client takes nothing of an answer."""
    idle_timeout_seconds: float = 75.0
    """Longest silence between two requests."""
    max_connections: int = 10_000


class Watcher(Protocol):
    """Is told of misuse, once for each."""

    def malformed(self, reason: Malformed) -> None:
        """Something was refused that never became a request."""

    def cut(self, reason: Cut) -> None:
        """A connection was ended that its client would have kept."""


class Unheard:
    """A watcher that keeps nothing."""

    def malformed(self, reason: Malformed) -> None:
        """Forget it."""

    def cut(self, reason: Cut) -> None:
        """Forget it."""
