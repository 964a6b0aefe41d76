"""`--demo`: a key to try it with, and an upstream when there is no OpenAI key."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from contextlib import AsyncExitStack

from msgspec.structs import replace
from sqlalchemy import Engine

from proxy.adapters.clock import SystemClock
from proxy.adapters.sql.registry import SqlRegistry
from proxy.app.administration import admin_token_path
from proxy.app.database import peppers_of
from proxy.core.registry import TeamExists
from proxy.settings import DEFAULT_UPSTREAM_URL, Secret, Settings
from proxy.web.openai import VERSION_PREFIX
from proxy.web.pages.team import TEAM_BASE

__all__ = ["TEAM", "simulated", "welcome"]

TEAM = "demo"
_MODEL = "gpt-4o-mini"
_KEY_LIVES_MS = 30 * 86_400_000


_SIMULATED = "simulated"


async def simulated(settings: Settings, stack: AsyncExitStack) -> Settings:
    """Settings that stand before a simulated OpenAI, started here, when there is no key for the real one."""
    upstream = settings.upstream
    if settings.upstreams or upstream.base_url != DEFAULT_UPSTREAM_URL or upstream.api_key is not None:
        return settings
    from proxy.simulator.behaviour import Behaviour  # noqa: PLC0415 - what serves does without a simulated upstream
    from proxy.simulator.running import start as start_simulator  # noqa: PLC0415 - as above

    simulator = await stack.enter_async_context(await start_simulator(Behaviour(ttft_ms=200, chunk_ms=20)))
    stand_in = replace(upstream, name=_SIMULATED, base_url=simulator.base_url, api_key=Secret(_SIMULATED))
    return replace(settings, upstream=stand_in)


async def welcome(settings: Settings, engine: Engine, base_url: str, operations_url: str) -> None:
    """Issue a key for the team `demo` and print what to paste."""
    key = await asyncio.to_thread(_issue_key, settings, engine)
    upstream = settings.upstream.base_url
    if settings.upstreams:
        upstream = ", ".join(f"{name} ({each.base_url})" for name, each in settings.upstreams.items())
    elif settings.upstream.name == _SIMULATED:
        upstream = "a simulated OpenAI upstream (OPENAI_API_KEY is not set)"
    request = f'{{"model": "{_MODEL}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    curl = (
        f"curl {base_url}/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{request}'"
    )
    pages: tuple[str, ...] = ()
    if settings.server.pages:
        pages = (
            f"  page      {operations_url}/",
            f"            {base_url.removesuffix(VERSION_PREFIX)}{TEAM_BASE} is the team's, opened with its key",
        )
    lines = (
        "",
        f"Tollgate forwards to {upstream}.",
        "",
        f"  base URL  {base_url}",
        f"  key       {key}",
        *pages,
        f"  metrics   {operations_url}/metrics",
        f"  admin     {operations_url}/admin/v1, with the token in {_place_of_token(settings)}",
        "",
        "Try it:",
        "",
        f"  {curl}",
        "",
        "",
    )
    # The one place where a key is printed: it was made for this and nobody else has seen it.
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


def _place_of_token(settings: Settings) -> str:
    return "TOLLGATE_ADMIN_TOKEN" if settings.server.admin_token is not None else str(admin_token_path(settings))


def _issue_key(settings: Settings, engine: Engine) -> str:
    registry = SqlRegistry(engine, SystemClock(), peppers_of(settings), actor="demo")
    # A second start: the team, its keys and its ledger are as they were left.
    with contextlib.suppress(TeamExists):
        registry.add_team(TEAM, settings.limits.default_tier)
    # Every start makes one; none is to outlive the trying out by much.
    expires_at_ms = SystemClock().now_ms() + _KEY_LIVES_MS
    return registry.issue_key(TEAM, label="demo", expires_at_ms=expires_at_ms).key
