"""One worker: its equipment, its two listeners, its start and its stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from sqlalchemy import Engine

from proxy.adapters.clock import SystemClock
from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.logs import RequestLog, console_line, json_line
from proxy.adapters.memory.cache import MemoryCache
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.adapters.pacer import Pacer
from proxy.adapters.price_file import load_prices
from proxy.adapters.prometheus import CONTENT_TYPE, Metrics
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.telemetry import Telemetry
from proxy.app import demo as demonstration
from proxy.core.errors import StoreAway
from proxy.core.keys import Peppers
from proxy.core.record import RequestRecord
from proxy.core.retry import RetryPolicy
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.principals import Principals
from proxy.pipeline.services import Policy, Services
from proxy.ports import Upstream
from proxy.settings import HitsCount, LedgerSync, LogFormat, Settings, UnknownModels
from proxy.simulator.behaviour import Behaviour
from proxy.simulator.running import start as start_simulator
from proxy.web.errors import status_of
from proxy.web.openai import VERSION_PREFIX, OpenAIRoutes
from proxy.web.operations import Operations

__all__ = ["Worker", "run", "serving"]

_SPOOL_DIRECTORY = "spool"
_LOOK_FOR_CHANGES_SECONDS = 0.25
"""A quarter of the second within which a revocation is promised to work on one machine."""
_LAG_EVERY_SECONDS = 0.5
_MAX_HEADER_BYTES = 64 * 1024
"""What OpenAI takes of headers in all."""
_IDLE_CONNECTION_SECONDS = 75.0
_log = logging.getLogger(__name__)


async def run(settings: Settings, engine: Engine, *, demo: bool) -> int:
    """Serve until SIGTERM or SIGINT, then drain; return the exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with serving(settings, engine, demo=demo) as worker:
            if demo:
                base_url, operations_url = worker.base_url, worker.operations_url
                await demonstration.welcome(settings, engine, worker.peppers, base_url, operations_url)
            await stop.wait()
    except OSError as error:
        _log.error("cannot listen: %s", error)
        return 1
    return 0


@asynccontextmanager
async def serving(settings: Settings, engine: Engine, *, demo: bool = False) -> AsyncIterator[Worker]:
    """Open both listeners of one worker; leaving the block drains it. Raises `OSError` when it cannot listen."""
    server = settings.server
    async with AsyncExitStack() as stack:
        worker = await _equip(settings, engine, stack, demo=demo)
        # Closed in the opposite order: the last events are in the ledger before metrics and health go dark.
        operations = _runner(worker.operations.application(), shutdown_seconds=1.0)
        stack.push_async_callback(operations.cleanup)
        stack.push_async_callback(worker.ledger.close)
        public = _runner(
            OpenAIRoutes(worker.services, max_body_bytes=server.max_body_bytes).application(),
            shutdown_seconds=server.drain_seconds,
        )
        stack.push_async_callback(public.cleanup)
        worker.operations_url = await _listen(operations, server.admin_host, server.admin_port)
        worker.base_url = f"{await _listen(public, server.host, server.port)}{VERSION_PREFIX}"
        async with asyncio.TaskGroup() as background:
            tasks = [background.create_task(work) for work in worker.background()]
            _log.info("serving %s, operations on %s", worker.base_url, worker.operations_url)
            try:
                yield worker
                await worker.drain(public, server.ready_grace_seconds)
            finally:
                for task in tasks:
                    task.cancel()


@dataclass(slots=True)
class Worker:
    """What one process serves with, and where."""

    engine: Engine
    peppers: Peppers
    services: Services
    ledger: SpoolLedger
    metrics: Metrics
    key_store: SqlKeyStore
    operations: Operations
    base_url: str = ""
    """What an SDK takes as its base URL."""
    operations_url: str = ""

    def background(self) -> tuple[Coroutine[Any, Any, None], ...]:
        """What goes on beside the requests, for as long as they do."""
        return self.ledger.run(), self._follow_changes(), self._measure_lag()

    async def drain(self, public: web.AppRunner, grace_seconds: float) -> None:
        """Say not ready, give load balancers time to notice, then stop accepting and finish what is in flight."""
        self.operations.draining = True
        _log.info("draining")
        await asyncio.sleep(grace_seconds)
        await public.cleanup()
        _log.info("drained")

    async def _follow_changes(self) -> None:
        """Notice changes of keys and teams, whichever process made them."""
        seen: int | None = None
        registry = SqlRegistry(self.engine, self.services.clock, self.peppers, actor="server")
        while True:
            try:
                revision = await self.key_store.revision()
                if revision != seen:
                    seen = revision
                    self.services.principals.invalidate()
                    teams = await asyncio.to_thread(registry.list_teams)
                    self.metrics.prepare(team.name for team in teams)
            except StoreAway as error:
                self.services.telemetry.store_failed(error.store, error.operation)
            await asyncio.sleep(_LOOK_FOR_CHANGES_SECONDS)

    async def _measure_lag(self) -> None:
        clock = self.services.clock
        while True:
            due_ns = clock.monotonic_ns() + int(_LAG_EVERY_SECONDS * 1e9)
            await asyncio.sleep(_LAG_EVERY_SECONDS)
            self.metrics.event_loop_lag_seconds.set(max(0, clock.monotonic_ns() - due_ns) / 1e9)


async def _equip(settings: Settings, engine: Engine, stack: AsyncExitStack, *, demo: bool) -> Worker:
    """Make the adapters of the settings, warm, in the order in which they need each other."""
    clock = SystemClock()
    peppers = load_or_create_pepper(settings.data_dir)
    key_store = SqlKeyStore(engine)
    prices = load_prices(settings.prices.file)
    known_models = frozenset(prices.models()) | frozenset(settings.models.extra)
    metrics = Metrics(known_models.__contains__)
    telemetry = Telemetry(metrics, RequestLog(_line_form(settings), asyncio.get_running_loop().call_soon))
    cache = MemoryCache(clock, max_bytes=settings.cache.max_bytes)
    ledger = SpoolLedger(
        settings.data_dir / _SPOOL_DIRECTORY,
        SqlLedgerStore(engine),
        prices,
        telemetry,
        clock,
        segment_bytes=settings.ledger.segment_bytes,
        quota_bytes=settings.ledger.quota_bytes,
        strict=settings.ledger.sync is LedgerSync.STRICT,
    )
    metrics.cache_bytes.set_function(lambda: cache.size_bytes)
    metrics.spool_bytes.set_function(lambda: ledger.state().spool_bytes)
    metrics.spool_lag_seconds.set_function(lambda: ledger.state().lag_ms / 1_000)
    services = Services(
        policy=_policy(settings),
        clock=clock,
        principals=Principals(key_store, peppers, clock),
        prices=prices,
        limiter=MemoryLimiter(clock),
        cache=cache,
        ledger=ledger,
        upstream=await _upstream(settings, metrics, stack, simulated=demo and demonstration.needs_simulator(settings)),
        telemetry=telemetry,
        catalogue=Catalogue(),
        status_of=status_of,
    )
    operations = Operations(
        render_metrics=metrics.render,
        metrics_content_type=CONTENT_TYPE,
        checks={"database": key_store.revision},
    )
    return Worker(engine, peppers, services, ledger, metrics, key_store, operations)


def _policy(settings: Settings) -> Policy:
    limits, upstream = settings.limits, settings.upstream
    return Policy(
        tiers=limits.all_tiers(),
        default_tier=limits.default_tier,
        retry=RetryPolicy(
            max_attempts=upstream.max_attempts,
            first_backoff_ms=upstream.first_backoff_ms,
            max_backoff_ms=upstream.max_backoff_ms,
            total_deadline_ms=int(upstream.total_timeout_seconds * 1_000),
        ),
        default_output_reservation_tokens=limits.default_output_reservation_tokens,
        hits_cost_requests=1 if limits.hits_count is HitsCount.REQUESTS else 0,
        cache_enabled=settings.cache.enabled,
        cache_ttl_ms=settings.cache.ttl_seconds * 1_000,
        cache_entry_max_bytes=settings.cache.entry_max_bytes,
        allow_unknown_models=settings.models.unknown is UnknownModels.ALLOW,
        extra_models=frozenset(settings.models.extra),
        max_json_depth=settings.server.max_json_depth,
    )


async def _upstream(settings: Settings, metrics: Metrics, stack: AsyncExitStack, *, simulated: bool) -> Upstream:
    upstream = settings.upstream
    session = await stack.enter_async_context(
        open_session(
            max_connections=upstream.max_connections,
            connect_seconds=upstream.connect_timeout_seconds,
            idle_seconds=upstream.read_timeout_seconds,
        )
    )
    if simulated:
        simulator = await stack.enter_async_context(await start_simulator(Behaviour(ttft_ms=200, chunk_ms=20)))
        return OpenAIUpstream("simulated", simulator.base_url, "simulated", session)
    pacer = None
    if upstream.requests_per_minute is not None:
        pacer = Pacer(
            upstream.requests_per_minute,
            max_waiting=upstream.pacing_queue,
            deadline_seconds=upstream.pacing_deadline_seconds,
        )
        metrics.queued_requests.set_function(lambda: pacer.waiting)
    key = upstream.api_key.reveal() if upstream.api_key is not None else None
    return OpenAIUpstream(upstream.name, upstream.base_url, key, session, pacer)


def _line_form(settings: Settings) -> Callable[[RequestRecord], str]:
    form = settings.log.format
    console = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and sys.stdout.isatty())
    return console_line if console else json_line


def _runner(application: web.Application, *, shutdown_seconds: float) -> web.AppRunner:
    return web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        # A client that leaves cancels its exchange: settlement is written first, then upstream is let go.
        handler_cancellation=True,
        keepalive_timeout=_IDLE_CONNECTION_SECONDS,
        max_field_size=_MAX_HEADER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
        shutdown_timeout=shutdown_seconds,
    )


async def _listen(runner: web.AppRunner, host: str, port: int) -> str:
    """Open a listener; return the URL it answers on, its port chosen when it was 0."""
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    bound_port = runner.addresses[0][1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - shown, not bound
    return f"http://{shown}:{bound_port}"
