"""`tollgate serve`: one worker, or several under a supervisor, until the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack

from sqlalchemy import Engine

from proxy.app.demo import simulated, welcome
from proxy.app.fleet import Fleet, serving_fleet
from proxy.app.steady import keep_loop_steady
from proxy.app.supervisor import NeverReady
from proxy.app.systemd import READY, STOPPING, tell_systemd
from proxy.app.worker import Worker, serving
from proxy.settings import Settings

__all__ = ["run"]

_log = logging.getLogger(__name__)


async def run(settings: Settings, engine: Engine, *, demo: bool) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        if demo:
            settings = await simulated(settings, stack)
        server: Worker | Fleet
        try:
            if settings.server.workers > 1:
                server = await stack.enter_async_context(serving_fleet(settings, engine, stop=stop))
            else:
                server = await stack.enter_async_context(serving(settings, engine))
        except OSError as error:
            _log.error("cannot listen: %s", error)
            return 1
        except NeverReady as error:
            if stop.is_set():
                return 0
            _log.error("%s", error)
            return 1
        _log.info("operations on %s", server.operations_url)
        if demo:
            await welcome(settings, engine, server.base_url, server.operations_url)
        keep_loop_steady()
        tell_systemd(READY)
        await stop.wait()
        tell_systemd(STOPPING)
    return 0
