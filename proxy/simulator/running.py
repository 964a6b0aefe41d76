"""A simulated upstream that listens, inside the caller's event loop."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from aiohttp import web

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.clock import Time
from proxy.simulator.server import STATS, make_app
from proxy.simulator.stats import Stats

__all__ = ["RunningSimulator", "start"]

_HEADER_BYTES = 64 * 1024
_SHUTDOWN_SECONDS = 0.2


class RunningSimulator:
    """A listening simulator; an async context manager that stops it."""

    def __init__(self, runner: web.AppRunner, host: str, port: int) -> None:
        self._runner = runner
        self.port = port
        """The port it listens on, also where it was asked for a free one."""
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
        """What an SDK takes as its base URL."""

    @property
    def stats(self) -> Stats:
        """Its counts."""
        return self._runner.app[STATS]

    async def stop(self) -> None:
        """Stop listening and break off what is still being answered. Idempotent."""
        await self._runner.cleanup()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


async def start(
    behaviour: Behaviour | None = None, host: str = "127.0.0.1", port: int = 0, *, time: Time | None = None
) -> RunningSimulator:
    """Listen on `host` and `port` (0: a free one). Raises `OSError` when that is taken."""
    runner = web.AppRunner(
        make_app(behaviour or Behaviour(), time=time),
        access_log=None,
        handler_cancellation=True,
        max_field_size=_HEADER_BYTES,
        max_line_size=_HEADER_BYTES,
        shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    try:
        await site.start()
    except OSError:
        await runner.cleanup()
        raise
    return RunningSimulator(runner, host, int(runner.addresses[0][1]))
