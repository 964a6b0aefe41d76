"""The task group of what outlives a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from proxy.ports import Spawn

__all__ = ["in_background"]


@asynccontextmanager
async def in_background() -> AsyncIterator[Spawn]:
    """Give the means to start work that goes on beside the block; at its end what still runs is cancelled."""
    tasks: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = group.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            yield spawn
        finally:
            for task in tasks:
                task.cancel()
