"""Published messages of one channel, over a connection of its own that is kept up in the background.

Messages published while it was away are gone: `on_subscribed` is where a listener looks for what it may have missed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

from proxy.adapters.redis.connect import Unowned, ask, connect
from proxy.adapters.redis.multiplexer import Locate
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.wire import Bounds, Wire
from proxy.ports import Spawn

__all__ = ["Subscription", "subscribe"]

_FIRST_PAUSE_SECONDS = 0.05
_MAX_PAUSE_SECONDS = 2.0
_PING_SECONDS = 10.0
"""How long a silent connection is believed to be alive."""
_BOUNDS = Bounds(deadline_seconds=2.0, silence_seconds=2.0)


class Subscription:
    """One channel, from `subscribe` to `close`."""

    def __init__(
        self,
        locate: Locate,
        channel: str,
        on_message: Callable[[bytes], None],
        on_subscribed: Callable[[], None],
        jitter: Callable[[], float],
    ) -> None:
        self._locate = locate
        self._channel = channel
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._jitter = jitter
        self._task: asyncio.Task[object] | None = None
        self._closed = False

    async def run(self) -> None:
        """Listen until closed."""
        self._task = asyncio.current_task()
        pause = _FIRST_PAUSE_SECONDS
        while not self._closed:
            began = asyncio.get_running_loop().time()
            with suppress(RedisFailure):
                await self._listen()
            lasted = asyncio.get_running_loop().time() - began
            pause = _FIRST_PAUSE_SECONDS if lasted > _MAX_PAUSE_SECONDS else min(pause * 2, _MAX_PAUSE_SECONDS)
            await asyncio.sleep(pause * (1 + self._jitter()) / 2)

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()

        def heard(message: bytes) -> None:
            # In a turn of its own: what a listener raises is no fault of the connection.
            loop.call_soon(self._on_message, message)

        wire = await connect(await self._locate(), lambda: Wire(Unowned(), _BOUNDS, loop, heard))
        try:
            await ask(wire, "SUBSCRIBE", self._channel)
            self._on_subscribed()
            while not wire.is_lost:
                try:
                    async with asyncio.timeout(_PING_SECONDS):
                        await wire.gone.wait()
                except TimeoutError:
                    await ask(wire, "PING")
        finally:
            wire.abort()
            await wire.gone.wait()


def subscribe(
    locate: Locate,
    channel: str,
    on_message: Callable[[bytes], None],
    spawn: Spawn,
    *,
    on_subscribed: Callable[[], None] = lambda: None,
    jitter: Callable[[], float] = random.random,
) -> Subscription:
    """Call `on_message` with the body of every message of a channel, for as long as it is not closed.

    `locate` names a server at each connection (`RedisRoute.locate`); `on_subscribed` is called after each, the first
    included.
    """
    subscription = Subscription(locate, channel, on_message, on_subscribed, jitter)
    spawn(subscription.run())
    return subscription
