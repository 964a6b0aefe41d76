"""Changes of keys and teams, told to every worker over Redis; who misses the message sees it in the database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.route import RedisRoute
from proxy.adapters.redis.subscriber import subscribe
from proxy.adapters.redis.topology import route_for
from proxy.app.background import in_background
from proxy.ports import Spawn

__all__ = ["CHANNEL", "announce", "hear"]

CHANNEL = "tollgate:changes"
_CHANGED = "changed"
_PATIENCE_SECONDS = 2.0


def announce(redis_url: str, ended: Sequence[str] = ()) -> bool:
    """Tell every worker that keys or teams have changed; False when Redis did not take the message in time.

    `ended`: ids of keys that are not to be trusted any more, even by a worker that cannot ask the database. Nothing
    else hangs on it: workers look at the database four times a second, and trust what they know for ten.
    """
    with suppress(TimeoutError, RedisFailure):
        asyncio.run(_publish(redis_url, " ".join((_CHANGED, *ended)).encode()))
        return True
    return False


def hear(
    route: RedisRoute, spawn: Spawn, on_ended: Callable[[Sequence[str]], None], on_change: Callable[[], None]
) -> None:
    """Call `on_change` at every announcement, and whenever one may have been missed; `on_ended` with the keys named."""

    def told(message: bytes) -> None:
        on_ended(message.decode("ascii", "replace").split()[1:])
        on_change()

    subscribe(route.locate, CHANNEL, told, spawn, on_subscribed=on_change)


async def _publish(redis_url: str, message: bytes) -> None:
    async with asyncio.timeout(_PATIENCE_SECONDS), in_background() as spawn:
        route = route_for(redis_url, spawn, MultiplexerOptions.for_one_look(_PATIENCE_SECONDS))
        try:
            await route.open()
            await route.execute(CHANNEL, "PUBLISH", CHANNEL, message)
        finally:
            await route.close()
