"""From a key to the primary that holds it, whatever stands behind the URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.multiplexer import Multiplexer, OnFailure
from proxy.adapters.redis.outcomes import Reply
from proxy.adapters.redis.wire import Argument

__all__ = ["Facts", "RedisRoute", "facts_of"]


class RedisRoute(Protocol):
    """One deployment of Redis. To be opened before and closed after."""

    def route(self, key: str) -> Multiplexer:
        """The multiplexer of the primary that holds `key`. Raises `NeverSent` when none is known."""
        ...

    async def execute(self, key: str, *args: Argument) -> Reply:
        """Send a command to where `key` is and wait for its reply. Raises `RedisFailure`.

        Follows one redirection: a server that redirects has carried nothing out.
        """
        ...

    def post(self, key: str, *args: Argument, on_failure: OnFailure | None = None) -> bool:
        """Queue a command whose reply nobody waits for; follows one redirection; False when not even queued.

        `on_failure` is told when it was queued and failed.
        """
        ...

    def primaries(self) -> tuple[Multiplexer, ...]:
        """Every primary known now."""
        ...

    async def locate(self) -> Address:
        """A server on which a message published anywhere can be heard. Raises `RedisFailure`."""
        ...

    async def facts(self) -> tuple[Facts, ...]:
        """What each primary says of itself. Raises `RedisFailure`."""
        ...

    async def open(self) -> None:
        """Connect. Raises what the first attempt ends in, and goes on trying in the background all the same."""
        ...

    async def close(self) -> None:
        """Wait shortly for what is in flight and hang up. Idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What a server says of itself; an empty string where it says nothing."""

    address: str
    server: str
    """`redis` or `valkey`."""
    version: str
    role: str
    """`master` or `slave`, in the server's words."""
    maxmemory_policy: str
    maxmemory_bytes: int
    """0: without bound."""
    is_cluster: bool
    used_memory_bytes: int = 0
    evicted_keys: int = 0
    """Thrown away for want of memory since the server was started."""

    @property
    def evicts(self) -> bool:
        """Whether it throws keys away when memory is short."""
        return self.maxmemory_policy not in {"", "noeviction"}


async def facts_of(multiplexer: Multiplexer) -> Facts:
    """Ask one server. Raises `RedisFailure`."""
    text = cast("bytes", await multiplexer.execute("INFO")).decode("utf-8", "replace")
    said = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Facts(
        str(multiplexer.address),
        said.get("server_name", "redis"),
        said.get("valkey_version") or said.get("redis_version", ""),
        said.get("role", ""),
        said.get("maxmemory_policy", ""),
        int(said.get("maxmemory", 0)),
        said.get("cluster_enabled") == "1",
        int(said.get("used_memory", 0)),
        int(said.get("evicted_keys", 0)),
    )
