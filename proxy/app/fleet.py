"""Several workers, and the operations listener that speaks for all of them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy import Engine

from proxy.adapters.prometheus import CONTENT_TYPE, forget_process, render_shared
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.app.listen import listen, runner_of, url_of
from proxy.app.supervisor import Supervisor
from proxy.settings import Settings
from proxy.web.openai import VERSION_PREFIX
from proxy.web.operations import Operations

__all__ = ["Fleet", "serving_fleet"]

_METRICS_DIRECTORY = "metrics"


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where a fleet serves."""

    supervisor: Supervisor
    base_url: str
    operations_url: str


@asynccontextmanager
async def serving_fleet(settings: Settings, engine: Engine) -> AsyncIterator[Fleet]:
    """Start all workers and wait until the first one serves; leaving the block drains them all.

    Raises `OSError` when the ports are taken.
    """
    server = settings.server
    metrics_dir = settings.data_dir / _METRICS_DIRECTORY
    # What an earlier run counted there was its own; the ledger is what lasts.
    shutil.rmtree(metrics_dir, ignore_errors=True)
    metrics_dir.mkdir(mode=0o700)
    supervisor = Supervisor(settings, metrics_dir, forget_dead=lambda number: forget_process(metrics_dir, number))
    operations = Operations(
        render_metrics=lambda: render_shared(metrics_dir),
        metrics_content_type=CONTENT_TYPE,
        checks={"workers": supervisor.someone_ready, "database": SqlKeyStore(engine).revision},
    )
    runner = runner_of(operations.application(), shutdown_seconds=1.0)
    try:
        operations_url = await listen(runner, server.admin_host, server.admin_port)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(supervisor.run())
            try:
                await supervisor.until_ready()
                base_url = f"{url_of(server.host, supervisor.port)}{VERSION_PREFIX}"
                yield Fleet(supervisor, base_url, operations_url)
            finally:
                operations.draining = True
                supervisor.stop()
                await asyncio.shield(running)
    finally:
        await runner.cleanup()
