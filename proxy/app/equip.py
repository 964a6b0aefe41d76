"""The equipment of one worker: settings become adapters, adapters become what the pipeline works with."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from proxy.adapters.budget_alerts import BudgetAlerts, watch_budgets
from proxy.adapters.clock import SystemClock
from proxy.adapters.held_bodies import HeldBodies
from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.logs import RequestLog, console_line, json_line
from proxy.adapters.memory.budgets import MemoryBudgets
from proxy.adapters.memory.cache import MemoryCache
from proxy.adapters.memory.limiter import ClockSteps, MemoryLimiter
from proxy.adapters.price_file import load_prices
from proxy.adapters.prometheus import Metrics
from proxy.adapters.prometheus_streams import StreamMetrics
from proxy.adapters.spent import SpentReader
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.spend import SqlSpendLedger
from proxy.adapters.sql.told import SqlToldWarnings
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.adapters.sql.uses import latest_uses
from proxy.adapters.telemetry import Telemetry
from proxy.adapters.tokenizer import BpeTokenizer
from proxy.adapters.webhook import Webhook, open_webhook_session
from proxy.app.database import SPOOL_DIRECTORY, peppers_of
from proxy.app.pacing import Pacing
from proxy.app.upstreams import open_upstreams, show_upstreams
from proxy.core.budget import settled_after
from proxy.core.caps import BudgetReached
from proxy.core.errors import StoreAway
from proxy.core.media import MEDIA_MODELS
from proxy.core.own_headers import left_out
from proxy.core.pricing import PriceBook
from proxy.core.record import RequestRecord
from proxy.core.refusals import RecentRefusals
from proxy.core.registry import Registry
from proxy.core.retry import RetryPolicy
from proxy.pipeline.budgets_spent import BudgetsSpent
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.flights import Flights
from proxy.pipeline.principals import Principals
from proxy.pipeline.services import Policy, Services
from proxy.pipeline.team_usage import TeamUsage
from proxy.pipeline.turns import Turns
from proxy.pipeline.upstreams import Upstreams
from proxy.ports import Cache, Clock, KeyStore, Spawn
from proxy.settings import HitsCount, LedgerSync, LogFormat, OnDisconnect, Settings, UnknownModels
from proxy.web.errors import status_of

__all__ = ["Equipment", "equip"]

_UPLOADS_AT_ONCE = 4
"""Forms of the largest size that there is room for; with it, the disk has a bound."""
_LAST_NOTICES_SECONDS = 3.0
"""How long warnings that are being delivered are waited for at shutdown."""
_LAST_LINES_SECONDS = 2.0
"""How long the reader of the request log is waited for at shutdown."""
_LINES_SECONDS = 0.005
"""For which lines of the log are collected: waking the thread that writes them costs the loop more than they do."""

if TYPE_CHECKING:
    from proxy.adapters.redis.limiter import RedisLimiter


@dataclass(frozen=True, slots=True)
class Equipment:
    """What one process serves with."""

    services: Services
    ledger: SpoolLedger
    metrics: Metrics
    key_store: KeyStore
    registry: Registry
    hear_changes: Callable[[Callable[[], None]], None]
    """Have something called when keys or teams may have changed; where nobody tells, it never is."""
    chores: tuple[Callable[[], Coroutine[Any, Any, None]], ...]
    """What goes on beside the requests."""
    sample: Callable[[], None]
    """Reads the gauges that nobody sets by itself."""
    log: RequestLog
    let_go: tuple[Callable[[], None], ...]
    """Let go of all who wait for a turn, at shutdown."""
    refusals: RecentRefusals
    """What this process refused lately."""


async def equip(settings: Settings, engine: Engine, spawn: Spawn, stack: AsyncExitStack) -> Equipment:
    """Make the adapters of the settings, warm, in the order in which they need each other."""
    clock = SystemClock()
    peppers, key_store = peppers_of(settings), SqlKeyStore(engine)
    principals = Principals(key_store, peppers, clock)
    prices = load_prices(settings.price_file())
    metrics = _metrics(settings, prices, clock)
    log = _log(settings, metrics.streams, stack)
    refusals = RecentRefusals()
    telemetry = Telemetry(metrics, log, refusals)
    ledger = _ledger(settings, engine, prices, telemetry, clock)
    reader = _spent_reader(settings, engine, ledger, clock, telemetry)
    limits = await _limits(settings, clock, metrics, spawn, stack, principals.forget, reader)
    answers = await _answers(settings, clock, metrics, spawn, stack)
    pacing = _pacing(settings, limits, clock, spawn, metrics)
    turns = _turns(settings, limits, clock, spawn, metrics)
    services = Services(
        policy=_policy(settings),
        clock=clock,
        principals=principals,
        prices=prices,
        limiter=limits.limiter,
        cache=answers.cache,
        ledger=ledger,
        upstreams=await open_upstreams(settings, pacing, stack),
        telemetry=telemetry,
        catalogue=Catalogue(),
        flights=Flights(metrics.streams.draining_requests.set, metrics.streams.drain_given_up),
        spawn=spawn,
        status_of=status_of,
        hold=HeldBodies(settings.data_dir, _UPLOADS_AT_ONCE * settings.server.max_upload_bytes).hold,
        tokenizer=BpeTokenizer(telemetry),
        team_usage=TeamUsage(SqlUsageReports(engine), clock, telemetry),
        budgets_spent=BudgetsSpent(SqlRegistry(engine, clock, peppers).budgets_spent, clock, telemetry),
        budget_reached=await _budget_alerts(settings, engine, clock, metrics, spawn, stack),
        turns=turns,
    )
    sample = partial(
        _sample, metrics, ledger, answers, partial(_show_queues, metrics, turns, pacing, services), limits, ClockSteps()
    )
    metrics.prepare_models(await asyncio.to_thread(latest_uses, engine))
    _prepare_upstreams(metrics, services.upstreams)
    registry = SqlRegistry(engine, clock, peppers, actor="server")
    stack.push_async_callback(_last_notes, principals)
    note_uses: Callable[[], Coroutine[Any, Any, None]] = partial(principals.notes.run, telemetry.store_failed)
    show_budgets = watch_budgets(registry, metrics, clock, asyncio.sleep)
    chores = (ledger.run, note_uses, show_budgets, *limits.chores, *answers.chores)
    at_shutdown = (turns.close, pacing.close)
    hear = limits.hear_changes
    return Equipment(services, ledger, metrics, key_store, registry, hear, chores, sample, log, at_shutdown, refusals)


def _metrics(settings: Settings, prices: PriceBook, clock: Clock) -> Metrics:
    known_models = frozenset(prices.models()) | frozenset(settings.models.extra) | MEDIA_MODELS
    metrics = Metrics(known_models.__contains__)
    metrics.spool_quota_bytes.set(settings.ledger.quota_bytes)
    metrics.price_table_timestamp_seconds.set(prices.newest_ms(clock.now_ms()) / 1_000)
    metrics.prepare_unpriced(model for model in settings.models.extra if not prices.rows(model))
    return metrics


def _prepare_upstreams(metrics: Metrics, upstreams: Upstreams) -> None:
    metrics.prepare_upstreams(site.name for site in upstreams)
    metrics.upstreams.prepare((site.name, key.number) for site in upstreams for key in site.keys)


def _pacing(settings: Settings, limits: _Limits, clock: Clock, spawn: Spawn, metrics: Metrics) -> Pacing:
    shared = settings.redis_url is not None
    return Pacing(limits.limiter, clock, spawn, metrics.queues.upstream, limits.workers, shared=shared)


def _ledger(settings: Settings, engine: Engine, prices: PriceBook, telemetry: Telemetry, clock: Clock) -> SpoolLedger:
    return SpoolLedger(
        settings.data_dir / SPOOL_DIRECTORY,
        SqlLedgerStore(engine),
        prices,
        telemetry,
        clock,
        segment_bytes=settings.ledger.segment_bytes,
        quota_bytes=settings.ledger.quota_bytes,
        strict=settings.ledger.sync is LedgerSync.STRICT,
    )


def _spent_reader(
    settings: Settings, engine: Engine, ledger: SpoolLedger, clock: Clock, telemetry: Telemetry
) -> SpentReader:
    return SpentReader(
        SqlSpendLedger(engine),
        clock,
        telemetry.store_failed,
        settled_after_minutes=settled_after(settings.upstream.total_timeout_seconds),
        lag_ms=lambda: ledger.state().lag_ms,
    )


async def _budget_alerts(
    settings: Settings, engine: Engine, clock: Clock, metrics: Metrics, spawn: Spawn, stack: AsyncExitStack
) -> Callable[[BudgetReached], None]:
    url, secret = settings.budgets.webhook_url, settings.budgets.webhook_secret
    webhook = None
    if url is not None and secret is not None:
        session = await stack.enter_async_context(
            open_webhook_session(settings.outgoing.proxies().proxy_of(url.reveal()))
        )
        webhook = Webhook(url.reveal(), secret.reveal(), session, clock, metrics.budgets.notice_sent)
        stack.push_async_callback(webhook.close, _LAST_NOTICES_SECONDS)
    told, ledger = SqlToldWarnings(engine), SqlSpendLedger(engine)
    return BudgetAlerts(told, ledger, metrics, clock, spawn, webhook).reached


async def _last_notes(principals: Principals) -> None:
    with suppress(StoreAway):
        await principals.notes.write()


@dataclass(frozen=True, slots=True)
class _Limits:
    limiter: MemoryLimiter | RedisLimiter
    chores: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()
    hear_changes: Callable[[Callable[[], None]], None] = lambda _: None
    sample: Callable[[], None] = lambda: None
    workers: Callable[[], int] = lambda: 1
    """Processes that call upstream under the same keys."""


async def _limits(
    settings: Settings,
    clock: Clock,
    metrics: Metrics,
    spawn: Spawn,
    stack: AsyncExitStack,
    on_ended: Callable[[Sequence[str]], None],
    reader: SpentReader,
) -> _Limits:
    if settings.redis_url is None:
        limiter = MemoryLimiter(clock, MemoryBudgets(reader, clock))
        return _Limits(limiter, (limiter.budgets.run,))
    from proxy.app import changes, limiting  # noqa: PLC0415 - redis-py is loaded only where there is a Redis

    shared = await limiting.shared_limits(settings, settings.redis_url.reveal(), clock, metrics, spawn, stack, reader)
    hear_changes = partial(changes.hear, shared.route, spawn, on_ended)
    return _Limits(shared.limiter, shared.chores, hear_changes, shared.sample, shared.workers)


@dataclass(frozen=True, slots=True)
class _Answers:
    cache: Cache
    sample: Callable[[], None]
    chores: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()


async def _answers(settings: Settings, clock: Clock, metrics: Metrics, spawn: Spawn, stack: AsyncExitStack) -> _Answers:
    if settings.redis_url is not None or settings.cache_redis_url is not None:
        from proxy.app import caching  # noqa: PLC0415 - redis-py is loaded only where there is a Redis

        shared = await caching.shared_cache(settings, clock, metrics, spawn, stack)
        if shared is not None:
            return _Answers(shared.cache, shared.sample, shared.chores)
    cache = MemoryCache(clock, max_bytes=settings.cache.max_bytes)
    return _Answers(cache, lambda: metrics.cache_bytes.set(cache.size_bytes))


def _sample(
    metrics: Metrics,
    ledger: SpoolLedger,
    answers: _Answers,
    show_queues: Callable[[], None],
    limits: _Limits,
    counted: ClockSteps,
) -> None:
    limits.sample()
    steps = limits.limiter.clock_steps
    metrics.count_clock_steps("limiter", steps.back - counted.back, steps.ahead - counted.ahead)
    counted.back, counted.ahead = steps.back, steps.ahead
    state = ledger.state()
    metrics.spool_bytes.set(state.spool_bytes)
    metrics.spool_lag_seconds.set(state.lag_ms / 1_000)
    answers.sample()
    metrics.prepare_more()
    show_queues()


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
        cache_fill_wait_ms=int(settings.cache.fill_wait_seconds * 1_000),
        allow_unknown_models=settings.models.unknown is UnknownModels.ALLOW,
        extra_models=frozenset(settings.models.extra),
        aliases=settings.models.aliases,
        max_json_depth=settings.server.max_json_depth,
        max_upload_bytes=settings.server.max_upload_bytes,
        headers_left_out=left_out(settings.headers.off),
        ask_for_stream_usage=settings.streams.ask_for_usage,
        max_draining=settings.streams.max_draining if settings.streams.on_disconnect is OnDisconnect.DRAIN else 0,
        keep_alive_seconds=settings.streams.keep_alive_seconds,
        unpriced=settings.prices.unpriced,
    )


def _turns(settings: Settings, limits: _Limits, clock: Clock, spawn: Spawn, metrics: Metrics) -> Turns:
    queue = settings.queue
    return Turns(
        limits.limiter,
        clock,
        spawn,
        metrics.queues.limits,
        max_waiting=queue.max_waiting,
        longest_wait_ms=int(queue.longest_wait_seconds * 1_000),
    )


def _show_queues(metrics: Metrics, turns: Turns, pacing: Pacing, services: Services) -> None:
    metrics.queues.show(len(turns), pacing.waiting)
    show_upstreams(services.upstreams, metrics, services.clock)


def _log(settings: Settings, streams: StreamMetrics, stack: AsyncExitStack) -> RequestLog:
    call_soon = partial(asyncio.get_running_loop().call_later, _LINES_SECONDS)
    log = RequestLog(_line_form(settings), call_soon, on_dropped=streams.log_lines_dropped_total.inc)
    stack.push_async_callback(asyncio.to_thread, log.close, _LAST_LINES_SECONDS)
    return log


def _line_form(settings: Settings) -> Callable[[RequestRecord], bytes]:
    form = settings.log.format
    console = form is LogFormat.CONSOLE or (form is LogFormat.AUTO and sys.stdout.isatty())
    return console_line if console else json_line
