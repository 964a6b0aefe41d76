"""One primary: at an address that stays, or wherever somebody says it is."""

from __future__ import annotations

from dataclasses import replace

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.multiplexer import Locate, Multiplexer, MultiplexerOptions, OnFailure
from proxy.adapters.redis.outcomes import Reply
from proxy.adapters.redis.route import Facts, facts_of
from proxy.adapters.redis.wire import Argument
from proxy.ports import Spawn

__all__ = ["OnePrimary", "stays_at"]


def stays_at(address: Address) -> Locate:
    """Answer with the same address always; a name is looked up anew at every connection."""

    async def locate() -> Address:
        return address

    return locate


class OnePrimary:
    """Keeps the promises of `RedisRoute` with one multiplexer."""

    def __init__(
        self, locate: Locate, spawn: Spawn, options: MultiplexerOptions | None = None, *, primary_only: bool = False
    ) -> None:
        options = replace(options or MultiplexerOptions(), primary_only=primary_only)
        self._multiplexer = Multiplexer(locate, spawn, options)
        self._locate = locate

    def route(self, key: str) -> Multiplexer:  # noqa: ARG002 - it holds every key
        """The one there is."""
        return self._multiplexer

    async def execute(self, key: str, *args: Argument) -> Reply:  # noqa: ARG002 - it holds every key
        """Send a command and wait for its reply."""
        return await self._multiplexer.call(*args)

    def post(self, key: str, *args: Argument, on_failure: OnFailure | None = None) -> bool:  # noqa: ARG002 - as above
        """Queue a command whose reply nobody waits for."""
        return self._multiplexer.post(*args, on_failure=on_failure)

    def primaries(self) -> tuple[Multiplexer, ...]:
        """The one there is."""
        return (self._multiplexer,)

    async def facts(self) -> tuple[Facts, ...]:
        """What it says of itself."""
        return (await facts_of(self._multiplexer),)

    async def locate(self) -> Address:
        """Where it is now."""
        return await self._locate()

    async def open(self) -> None:
        """Connect."""
        await self._multiplexer.open()

    async def close(self) -> None:
        """Hang up."""
        await self._multiplexer.close()
