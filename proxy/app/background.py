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
    """Give the means to start work that goes on beside the block; at its end what still runs is cancelled.

    What the block raises comes out as it is, not in a group with what its work raised meanwhile.
    """
    tasks: set[asyncio.Task[None]] = set()
    raised: Exception | None = None
    async with asyncio.TaskGroup() as group:

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = group.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        try:
            yield spawn
        except Exception as error:  # noqa: BLE001 - raised again below, whatever it is
            raised = error
        finally:
            for task in tasks:
                task.cancel()
    if raised is not None:
        raise raised
