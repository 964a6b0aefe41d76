"""The upstreams of one worker: settings become what `pipeline/upstreams.py` works with."""

from __future__ import annotations

from contextlib import AsyncExitStack

import aiohttp

from proxy.adapters.azure import AzureUpstream
from proxy.adapters.certificates import client_context
from proxy.adapters.openai import CompatibleUpstream, OpenAIUpstream, open_session
from proxy.adapters.pacer import PacerOptions
from proxy.adapters.prometheus import Metrics
from proxy.app.pacing import Pacing
from proxy.core.breaker import Breaker
from proxy.core.retry_budget import RetryBudget
from proxy.core.routing import Candidate
from proxy.pipeline.upstreams import Site, SiteKey, Upstreams, breaker_policy
from proxy.ports import Clock
from proxy.settings import NamedUpstreamSettings, Settings, UpstreamKind

__all__ = ["ADAPTERS", "named_upstreams", "open_upstreams", "session_for", "show_upstreams"]

ADAPTERS = {
    UpstreamKind.OPENAI: OpenAIUpstream,
    UpstreamKind.AZURE: AzureUpstream,
    UpstreamKind.COMPATIBLE: CompatibleUpstream,
}


def named_upstreams(settings: Settings) -> dict[str, NamedUpstreamSettings]:
    """All upstreams there are, by name: `[upstreams]`, or `[upstream]` as the only one of them."""
    if settings.upstreams:
        return settings.upstreams
    only = settings.upstream
    return {
        only.name: NamedUpstreamSettings(
            base_url=only.base_url,
            api_keys=() if only.api_key is None else (only.api_key,),
            requests_per_minute=only.requests_per_minute,
            tokens_per_minute=only.tokens_per_minute,
        )
    }


async def open_upstreams(settings: Settings, pacing: Pacing, stack: AsyncExitStack) -> Upstreams:
    """Make the upstreams of the settings, each with connections of its own."""
    return Upstreams(
        [await _site(name, each, settings, pacing, stack) for name, each in named_upstreams(settings).items()]
    )


def session_for(upstream: NamedUpstreamSettings, settings: Settings) -> aiohttp.ClientSession:
    """Open the connections of one of them. Raises `CertificateUnusable` for `upstream.ca_file`."""
    every = settings.upstream
    return open_session(
        max_connections=upstream.max_connections or every.max_connections,
        connect_seconds=upstream.connect_timeout_seconds or every.connect_timeout_seconds,
        idle_seconds=upstream.read_timeout_seconds or every.read_timeout_seconds,
        tls=None if every.ca_file is None else client_context(every.ca_file),
        proxy=settings.outgoing.proxies().proxy_of(upstream.base_url),
    )


async def _site(
    name: str, upstream: NamedUpstreamSettings, settings: Settings, pacing: Pacing, stack: AsyncExitStack
) -> Site:
    every = settings.upstream
    session = await stack.enter_async_context(session_for(upstream, settings))
    options = PacerOptions(upstream.requests_per_minute, every.pacing_queue, every.pacing_deadline_seconds)
    keys = []
    for number, key in enumerate(upstream.api_keys or (None,), 1):
        # The name of a key is that of its bucket, which other processes share.
        key_name = name if len(upstream.api_keys) < 2 else f"{name}#{number}"
        pacer = pacing.pacer(key_name, options, upstream.tokens_per_minute)
        secret = key.reveal() if key is not None else None
        call = ADAPTERS[upstream.kind](
            name, upstream.base_url, secret, session, pacer, api_version=upstream.api_version
        )
        keys.append(SiteKey(number, call))
    identity = keys[0].call.identity
    return Site(
        Candidate(name, identity, upstream.weight, upstream.priority, upstream.models),
        tuple(keys),
        _asks_for_usage(upstream, settings),
        Breaker(breaker_policy(every.breaker_failures, int(every.breaker_rest_seconds * 1_000))),
        RetryBudget(every.retry_budget_percent, every.retry_budget_floor),
    )


def _asks_for_usage(upstream: NamedUpstreamSettings, settings: Settings) -> bool:
    if upstream.ask_for_usage is not None:
        return upstream.ask_for_usage
    return settings.streams.ask_for_usage and upstream.kind is not UpstreamKind.COMPATIBLE


def show_upstreams(upstreams: Upstreams, metrics: Metrics, clock: Clock) -> None:
    """Show how each of them is."""
    now_ms = clock.monotonic_ns() // 1_000_000
    for site in upstreams:
        metrics.upstreams.show(site.name, site.breaker.state, site.breaker.openings, site.resting(now_ms))
