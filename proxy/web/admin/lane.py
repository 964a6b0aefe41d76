"""Threads of the admin API's own: a few at a time, so that it takes none from the requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Generic, TypeVar

from proxy.core.errors import Overloaded

__all__ = ["Lane"]

T = TypeVar("T")


class Lane(Generic[T]):
    """Runs calls on threads, `at_once` of them; `waiting` others may wait.

    What has begun goes on to its end, whether or not its caller waits for it. The end of the process is not held up:
    a transaction that it cuts short is none.
    """

    def __init__(self, at_once: int, waiting: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._room = waiting

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns, or raises. Raises `Overloaded`."""
        if self._places.locked() and self._room == 0:
            raise Overloaded("too many requests to the admin API at once")
        self._room -= 1
        try:
            await self._places.acquire()
        finally:
            self._room += 1
        done: Future[T] = Future()
        done.add_done_callback(partial(self._leave, asyncio.get_running_loop()))
        threading.Thread(target=_carry_out, args=(call, done), name="admin", daemon=True).start()
        return await asyncio.wrap_future(done)

    def _leave(self, loop: asyncio.AbstractEventLoop, _: object) -> None:
        # A loop that is closed has nobody left who waits.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._places.release)


def _carry_out(call: Callable[[], T], done: Future[T]) -> None:
    done.set_running_or_notify_cancel()
    try:
        value = call()
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        done.set_exception(error)
    else:
        done.set_result(value)
