"""A server of aiohttp in a thread of its own, for tests that are no coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

__all__ = ["served_apart"]


@contextmanager
def served_apart(make: Callable[[], web.Server[web.BaseRequest]]) -> Iterator[str]:
    """Serve on a free port within the block, which is given the base URL; `make` is called in the server's loop."""
    base_url = ""
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        nonlocal base_url
        runner = web.ServerRunner(make(), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await asyncio.to_thread(ended.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(60)
        yield base_url
    finally:
        ended.set()
        thread.join()
