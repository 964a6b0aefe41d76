"""Where the primary is, as the sentinels see it.

Asked anew at every connection. A primary that dies ends its connections; one that is replaced while it lives goes on
taking writes for seconds, which nobody will see again, so a switch is listened for (Redis documentation, "Guidelines
for Redis clients with support for Redis Sentinel").
"""

from __future__ import annotations

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.connect import ask_once
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import NeverSent, RedisFailure, Why
from proxy.adapters.redis.single import OnePrimary
from proxy.adapters.redis.subscriber import Subscription, subscribe
from proxy.ports import Spawn

__all__ = ["SentinelPrimary", "Sentinels"]

_ASK_SECONDS = 1.0


class Sentinels:
    """A `Locate`: asks one sentinel after the other until one knows."""

    def __init__(self, sentinels: tuple[Address, ...], master: str, primary: Address) -> None:
        """`primary` says how to introduce ourselves to the primary; its host and port are not used."""
        self._sentinels = sentinels
        self.master = master
        self._primary = primary

    async def __call__(self) -> Address:
        """Address of the primary now. Raises `NeverSent` when no sentinel knows."""
        reasons = []
        order = (await self.another(), *self._sentinels[:-1])
        for sentinel in order:
            try:
                reply = await ask_once(
                    sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.master, seconds=_ASK_SECONDS
                )
            except NeverSent as failure:
                reasons.append(failure.where)
                continue
            except RedisFailure as failure:
                reasons.append(f"{sentinel}: {str(failure) or type(failure).__name__}")
                continue
            match reply:
                case [bytes(host), bytes(port)]:
                    return self._primary.at(host.decode(), int(port))
                case _:
                    reasons.append(f"{sentinel} watches no {self.master}")
        raise NeverSent(Why.AWAY, f"no sentinel names a primary ({'; '.join(reasons)})")

    async def another(self) -> Address:
        """The sentinels in turn: the last one may be cut off from the rest and see the past."""
        self._sentinels = (*self._sentinels[1:], self._sentinels[0])
        return self._sentinels[-1]


class SentinelPrimary(OnePrimary):
    """Keeps the promises of `RedisRoute` with one multiplexer, which moves when the sentinels say so."""

    def __init__(self, sentinels: Sentinels, spawn: Spawn, options: MultiplexerOptions | None = None) -> None:
        super().__init__(sentinels, spawn, options, primary_only=True)
        self._sentinels = sentinels
        self._spawn = spawn
        self._switches: Subscription | None = None

    async def open(self) -> None:
        """Connect to the primary, and listen for switches."""
        if self._switches is None:
            self._switches = subscribe(
                self._sentinels.another,
                "+switch-master",
                self._switched,
                self._spawn,
                on_subscribed=lambda: self._spawn(self._compare()),
            )
        await super().open()

    async def close(self) -> None:
        """Hang up."""
        if self._switches is not None:
            await self._switches.close()
        await super().close()

    def _switched(self, message: bytes) -> None:
        # "<name> <old host> <old port> <new host> <new port>"
        if message.split(b" ", 1)[0].decode(errors="replace") == self._sentinels.master:
            self._multiplexer.leave()

    async def _compare(self) -> None:
        """Move if the switch came while nobody listened."""
        held = self._multiplexer.address
        try:
            named = await self._sentinels()
        except RedisFailure:
            return
        if held is not None and held == self._multiplexer.address and held != named:
            self._multiplexer.leave()
