"""Lua scripts: kept as package data, called by their digest, loaded where a server does not know them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files

from proxy.adapters.redis.multiplexer import Multiplexer, OnFailure
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent, RedisFailure, Reply
from proxy.adapters.redis.route import RedisRoute
from proxy.adapters.redis.wire import Argument
from proxy.core.share import Away

__all__ = ["Script", "Scripts", "packaged_script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A text and the digest that servers know it by."""

    name: str
    text: str = field(repr=False)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()
        object.__setattr__(self, "digest", digest)


def packaged_script(name: str, package: str = "proxy.adapters.redis") -> Script:
    """Read `lua/<name>.lua` of a package."""
    return Script(name, files(package).joinpath("lua", f"{name}.lua").read_text("utf-8"))


class Scripts:
    """Runs scripts on a route. All keys of one call hash to one slot; the first decides where it goes."""

    def __init__(self, route: RedisRoute) -> None:
        self._route = route

    async def load(self, scripts: Iterable[Script]) -> None:
        """Make every primary know the scripts: saves the first callers a round trip. Raises `RedisFailure`."""
        for script in scripts:
            for primary in self._route.primaries():
                await primary.execute("SCRIPT", "LOAD", script.text)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """Call a script. Raises `RedisFailure`.

        A server that does not know it has carried nothing out; it is given the text, once, in the same breath as the
        call (EVAL), so that a redirection between the two cannot come.
        """
        try:
            return await self._route.execute(keys[0], "EVALSHA", script.digest, len(keys), *keys, *args)
        except ErrorReply as reply:
            if reply.code != "NOSCRIPT":
                raise
        return await self._route.execute(keys[0], "EVAL", script.text, len(keys), *keys, *args)

    def away(self, key: str) -> Away | None:
        """The latest absence of the server that holds `key`, as long as it matters; None where nobody knows of one."""
        try:
            return self._route.route(key).away
        except NeverSent:
            return None

    def knock(self, key: str, on_failure: OnFailure) -> None:
        """See whether the server that holds `key` answers; `away` tells."""
        with suppress(NeverSent):
            _knock(self._route.route(key), on_failure)

    def knock_at_all(self, on_failure: OnFailure) -> bool:
        """See which servers answer; returns whether one was away a moment ago."""
        primaries = self._route.primaries()
        for primary in primaries:
            _knock(primary, on_failure)
        return any(primary.away is not None for primary in primaries)

    def reaches(self, key: str) -> bool:
        """Whether a call for `key` would be written now."""
        try:
            return self._route.route(key).is_up
        except NeverSent:
            return False

    def post(
        self, script: Script, keys: Sequence[str], args: Sequence[Argument], on_failure: OnFailure | None = None
    ) -> bool:
        """Call a script whose answer nobody waits for; False when it was not even queued."""

        def failed(failure: RedisFailure) -> None:
            if not isinstance(failure, ErrorReply) or failure.code != "NOSCRIPT":
                if on_failure is not None:
                    on_failure(failure)
                return
            queued = self._route.post(keys[0], "EVAL", script.text, len(keys), *keys, *args, on_failure=on_failure)
            if not queued and on_failure is not None:
                on_failure(failure)

        return self._route.post(keys[0], "EVALSHA", script.digest, len(keys), *keys, *args, on_failure=failed)

    def remove(self, key: str, member: bytes) -> None:
        """Take a member out of a sorted set; whether it was there, and whether this arrives, is no matter."""
        self._route.post(key, "ZREM", key, member)


def _knock(primary: Multiplexer, on_failure: OnFailure) -> None:
    if primary.is_up:
        primary.post("PING", on_failure=on_failure)
