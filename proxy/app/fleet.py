"""Several workers, and the operations listener that speaks for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Engine

from proxy.adapters.prometheus_shared import forget_process, render_shared
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.app.administration import admin_api
from proxy.app.background import in_background
from proxy.app.figures import own_figures
from proxy.app.listen import listen, runner_of, url_of
from proxy.app.pages import fleet_page
from proxy.app.supervisor import Supervisor
from proxy.settings import Settings
from proxy.web.openai import VERSION_PREFIX
from proxy.web.operations import Operations

__all__ = ["Fleet", "serving_fleet"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """Where a fleet serves."""

    supervisor: Supervisor
    base_url: str
    operations_url: str


@asynccontextmanager
async def serving_fleet(
    settings: Settings, engine: Engine, *, stop: asyncio.Event | None = None
) -> AsyncIterator[Fleet]:
    """Start all workers and wait until the first one serves; leaving the block drains them all.

    Raises `OSError` when the ports are taken, `DataUnusable` where the token of the admin API is none, `NeverReady`
    when no worker comes to serve; where `stop` is set before one does, none will.
    """
    server = settings.server
    admin = admin_api(settings, engine)
    secure = server.tls_cert_file is not None
    with own_figures(settings.data_dir) as metrics_dir:
        supervisor = Supervisor(settings, metrics_dir, forget_dead=lambda number: forget_process(metrics_dir, number))
        try:
            async with AsyncExitStack() as stack, in_background() as spawn:
                operations = Operations(
                    render_metrics=partial(render_shared, metrics_dir),
                    checks={"workers": supervisor.someone_ready, "database": SqlKeyStore(engine).revision},
                    admin=admin,
                    allowed_hosts=(server.admin_host, *server.admin_allowed_hosts),
                    page=await fleet_page(settings, engine, metrics_dir, spawn, stack),
                )
                runner = runner_of(operations.server(), shutdown_seconds=1.0)
                stack.push_async_callback(runner.cleanup)
                operations_url = await listen(runner, server.admin_host, server.admin_port)
                spawn(supervisor.run())
                if stop is not None:
                    spawn(_stop_at(stop, supervisor))
                try:
                    await supervisor.until_ready()
                    base_url = f"{url_of(server.host, supervisor.port, secure=secure)}{VERSION_PREFIX}"
                    yield Fleet(supervisor, base_url, operations_url)
                finally:
                    operations.draining = True
                    supervisor.stop()
                    await supervisor.until_ended()
        finally:
            supervisor.close()


async def _stop_at(stop: asyncio.Event, supervisor: Supervisor) -> None:
    await stop.wait()
    supervisor.stop()
