"""A `ports.Spawn` for tests that says at the end what was left running or had failed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Tasks"]


class Tasks:
    """Call it to spawn; `finished` at the end of the test."""

    def __init__(self) -> None:
        self._all: set[asyncio.Task[None]] = set()

    def __call__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._all.add(asyncio.get_running_loop().create_task(coroutine))

    def running(self) -> int:
        """How many are not done."""
        return sum(not task.done() for task in self._all)

    async def finished(self, seconds: float = 40.0) -> None:
        """Every task ends by itself and without an error; what does not is cancelled and reported."""
        if not self._all:
            return
        _, running = await asyncio.wait(self._all, timeout=seconds)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for task in self._all - running:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        assert not running, f"still running: {[task.get_coro() for task in running]}"
