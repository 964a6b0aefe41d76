"""One worker: its listeners, its background work, its start and its stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.prometheus import Metrics
from proxy.adapters.prometheus_now import figures_of
from proxy.app.administration import admin_api
from proxy.app.background import in_background
from proxy.app.equip import Equipment, equip
from proxy.app.listen import AnyRunner, bounds_of, certificate_of, follow_certificate, listen, runner_of
from proxy.app.pages import operator_page_of, share_refusals, team_site_of
from proxy.core.errors import StoreAway
from proxy.pipeline.drain import give_up_all
from proxy.pipeline.services import Services
from proxy.ports import ChangesSeen
from proxy.settings import ServerSettings, Settings
from proxy.web.admin.api import AdminApi
from proxy.web.openai import VERSION_PREFIX, OpenAIRoutes
from proxy.web.operations import Operations
from proxy.web.pages.operator import OperatorPage
from proxy.web.server import OpenAIServer

__all__ = ["Seat", "Worker", "serving"]

_LOOK_FOR_CHANGES_SECONDS = 0.25
"""A quarter of the second within which a revocation is promised to work on one machine."""
_LAG_EVERY_SECONDS = 0.5
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seat:
    """A place among several workers: stable over restarts, never held by two live processes."""

    number: int
    port: int
    """Of the public listener, shared by all."""
    metrics_dir: Path
    settings: Settings


@asynccontextmanager
async def serving(settings: Settings, engine: Engine, *, seat: Seat | None = None) -> AsyncIterator[Worker]:
    """Open the listeners of one worker; leaving the block drains it.

    A worker with a `seat` leaves the operations listener to its supervisor. Raises `OSError` when it cannot listen,
    `DataUnusable` for the file of the admin API's token.
    """
    server = settings.server
    async with AsyncExitStack() as stack:
        spawn = await stack.enter_async_context(in_background())
        admin = admin_api(settings, engine) if seat is None else None
        hosts = (server.admin_host, *server.admin_allowed_hosts)
        equipment = await equip(settings, engine, spawn, stack)
        page = _page(settings, engine, equipment) if seat is None else None
        worker = Worker(engine, equipment, admin, hosts, page)
        # Closed in the opposite order: the last events are in the ledger before metrics and health go dark.
        if seat is None:
            operations = runner_of(worker.operations.server(), shutdown_seconds=1.0)
            stack.push_async_callback(operations.cleanup)
            worker.operations_url = await listen(operations, server.admin_host, server.admin_port)
        stack.push_async_callback(worker.ledger.close)
        stack.push_async_callback(worker.close_tokenizer)
        sizes = {"max_body_bytes": server.max_body_bytes, "max_held_bytes": server.max_held_bytes}
        site = team_site_of(settings, engine, worker.services, equipment.key_store)
        routes = OpenAIRoutes(worker.services, **sizes, site=site)
        worker.listener = listener = routes.server(bounds_of(server), worker.metrics.http)
        public = runner_of(listener, shutdown_seconds=server.drain_seconds)
        stack.push_async_callback(public.cleanup)
        port = server.port if seat is None else seat.port
        certificate = certificate_of(server)
        tls = None if certificate is None else certificate.context
        worker.base_url = f"{await listen(public, server.host, port, shared=seat is not None, tls=tls)}{VERSION_PREFIX}"
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(work) for work in worker.background(seat)]
            if certificate is not None:
                tasks.append(background.create_task(follow_certificate(certificate)))
            _log.info("serving %s", worker.base_url)
            try:
                yield worker
                await worker.drain(public, listener, server)
            finally:
                for task in tasks:
                    task.cancel()


class Worker:
    """What one process serves with, and where."""

    def __init__(
        self,
        engine: Engine,
        equipment: Equipment,
        admin: AdminApi | None,
        allowed_hosts: Sequence[str] = (),
        page: OperatorPage | None = None,
    ) -> None:
        self.engine = engine
        self.equipment = equipment
        self.operations = Operations(
            render_metrics=equipment.metrics.render,
            checks={"database": equipment.key_store.revision},
            admin=admin,
            allowed_hosts=allowed_hosts,
            page=page,
        )
        self.base_url = ""
        """What an SDK takes as its base URL."""
        self.operations_url = ""
        self.listener: OpenAIServer | None = None

    @property
    def services(self) -> Services:
        """What the pipeline works with."""
        return self.equipment.services

    async def close_tokenizer(self) -> None:
        """Let every event that waits for its tokens be written."""
        if self.services.tokenizer is not None:
            await self.services.tokenizer.close()

    @property
    def ledger(self) -> SpoolLedger:
        """The ledger of this worker."""
        return self.equipment.ledger

    @property
    def metrics(self) -> Metrics:
        """What this worker counts."""
        return self.equipment.metrics

    def background(self, seat: Seat | None = None) -> tuple[Coroutine[Any, Any, None], ...]:
        """What goes on beside the requests, for as long as they do."""
        own = (*(chore() for chore in self.equipment.chores), self._follow_changes(), self._watch_loop())
        if seat is None or not seat.settings.server.pages:
            return own
        return *own, share_refusals(self.equipment.refusals, seat.metrics_dir, seat.number)

    async def drain(self, public: AnyRunner, listener: OpenAIServer, server: ServerSettings) -> None:
        """Say not ready, give load balancers time to notice, then stop accepting and finish what is in flight.

        What is not finished in time is cut here, as our doing: aiohttp would wait as long once more, and not say whose.
        """
        self.operations.draining = True
        listener.draining = True
        _log.info("draining")
        await asyncio.sleep(server.ready_grace_seconds)
        for let_go in self.equipment.let_go:
            let_go()
        deadline = asyncio.get_running_loop().call_later(server.drain_seconds, self._cut, listener)
        await public.cleanup()
        await self.services.flights.drained()
        deadline.cancel()
        _log.info("drained")

    def _cut(self, listener: OpenAIServer) -> None:
        self.services.shutdown.over = True
        listener.cancel_requests()
        give_up_all(self.services)

    async def _follow_changes(self) -> None:
        """Notice changes of keys and teams, whichever process made them: told over Redis, or seen in the database."""
        equipment = self.equipment
        seen: ChangesSeen | None = None
        told = asyncio.Event()
        equipment.hear_changes(told.set)
        while True:
            told.clear()
            looked_ns = equipment.services.clock.monotonic_ns()
            try:
                changes = await equipment.key_store.changes(seen)
                if changes != seen:
                    equipment.services.principals.invalidate(changes.ended, changes.changed)
                    equipment.metrics.prepare(changes.teams)
                    seen = changes
                equipment.services.principals.confirm(looked_ns // 1_000_000)
            except StoreAway as error:
                equipment.services.telemetry.store_failed(error.store, error.operation)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_FOR_CHANGES_SECONDS):
                    await told.wait()

    async def _watch_loop(self) -> None:
        """Measure how late the loop comes round, and sample the gauges while at it."""
        clock, metrics = self.equipment.services.clock, self.equipment.metrics
        while True:
            self.equipment.sample()
            if self.listener is not None:
                metrics.http.open_connections.set(self.listener.open_connections)
            due_ns = clock.monotonic_ns() + int(_LAG_EVERY_SECONDS * 1e9)
            await asyncio.sleep(_LAG_EVERY_SECONDS)
            metrics.event_loop_lag_seconds.set(max(0, clock.monotonic_ns() - due_ns) / 1e9)


def _page(settings: Settings, engine: Engine, equipment: Equipment) -> OperatorPage | None:
    now = partial(figures_of, equipment.metrics.registry)
    return operator_page_of(settings, engine, now, equipment.refusals.latest, equipment.services.limiter.peek)
