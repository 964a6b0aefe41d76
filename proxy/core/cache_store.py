"""Where answers are kept, as the servers that keep them say of themselves."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CacheServer", "CacheStore"]


@dataclass(frozen=True, slots=True)
class CacheServer:
    """A Redis that keeps answers, and perhaps more than that."""

    address: str
    used_bytes: int
    max_bytes: int
    """0: without bound."""
    policy: str
    """What it throws away when memory is short, in the server's words."""
    evicted_keys: int
    """Thrown away since it was started."""


@dataclass(frozen=True, slots=True)
class CacheStore:
    """Where answers are kept."""

    in_redis: bool
    """Or in each worker, which alone knows how much that is."""
    max_bytes: int
    """What each worker keeps in process, at most."""
    servers: tuple[CacheServer, ...] | None = ()
    """None: Redis did not answer."""
