"""One call for all who want the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["SingleFlight"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Calls that are under way, by key. Nothing is kept of one that has ended."""

    __slots__ = ("_under_way",)

    def __init__(self) -> None:
        self._under_way: dict[K, asyncio.Future[V]] = {}

    def __len__(self) -> int:
        """Calls that are under way."""
        return len(self._under_way)

    async def join(self, key: K, call: Callable[[], Awaitable[V]]) -> V:
        """Return what `call` returns, or what the one that is under way for `key` does; its error is everyone's.

        A caller that is cancelled leaves alone: one of those who waited calls in its place.
        """
        while (under_way := self._under_way.get(key)) is not None:
            await asyncio.wait([under_way])
            if not under_way.cancelled():
                return under_way.result()
        future: asyncio.Future[V] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            value = await call()
        except asyncio.CancelledError:
            future.cancel()
            raise
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # marks it as seen: nobody may be waiting
            raise
        else:
            future.set_result(value)
            return value
        finally:
            del self._under_way[key]
