"""Where the primary is, as the sentinels see it.

Asked anew at every connection; a demoted primary ends its connections or answers READONLY, either of which leads here
(Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel").
"""

from __future__ import annotations

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.connect import ask_once
from proxy.adapters.redis.outcomes import NeverSent, RedisFailure, Why

__all__ = ["Sentinels"]

_ASK_SECONDS = 1.0


class Sentinels:
    """A `Locate`: asks one sentinel after the other until one knows."""

    def __init__(self, sentinels: tuple[Address, ...], master: str, primary: Address) -> None:
        """`primary` says how to introduce ourselves to the primary; its host and port are not used."""
        self._sentinels = sentinels
        self._master = master
        self._primary = primary

    async def __call__(self) -> Address:
        """Address of the primary now. Raises `NeverSent` when no sentinel knows."""
        reasons = []
        for sentinel in self._sentinels:
            # The next time another is asked first: this one may be cut off from the rest and see the past.
            self._sentinels = (*self._sentinels[1:], self._sentinels[0])
            try:
                reply = await ask_once(
                    sentinel, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._master, seconds=_ASK_SECONDS
                )
            except RedisFailure as failure:
                reasons.append(str(failure))
                continue
            match reply:
                case [bytes(host), bytes(port)]:
                    return self._primary.at(host.decode(), int(port))
                case _:
                    reasons.append(f"{sentinel} watches no {self._master}")
        raise NeverSent(Why.AWAY, f"no sentinel names a primary ({'; '.join(reasons)})")
