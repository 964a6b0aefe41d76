"""`--demo`: a key to try it with, and an upstream when there is no OpenAI key."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from sqlalchemy import Engine

from proxy.adapters.clock import SystemClock
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.keys import Peppers
from proxy.core.registry import TeamExists
from proxy.settings import DEFAULT_UPSTREAM_URL, Settings

__all__ = ["TEAM", "needs_simulator", "welcome"]

TEAM = "demo"
_MODEL = "gpt-4o-mini"


def needs_simulator(settings: Settings) -> bool:
    """Whether there is no upstream a request could be sent to."""
    return settings.upstream.base_url == DEFAULT_UPSTREAM_URL and settings.upstream.api_key is None


async def welcome(settings: Settings, engine: Engine, peppers: Peppers, base_url: str, operations_url: str) -> None:
    """Issue a key for the team `demo` and print what to paste."""
    key = await asyncio.to_thread(_issue_key, settings, engine, peppers)
    where = "a simulated OpenAI upstream (OPENAI_API_KEY is not set)"
    upstream = where if needs_simulator(settings) else settings.upstream.base_url
    request = f'{{"model": "{_MODEL}", "messages": [{{"role": "user", "content": "Say hello."}}]}}'
    curl = (
        f"curl {base_url}/chat/completions -H 'Authorization: Bearer {key}' "
        f"-H 'Content-Type: application/json' -d '{request}'"
    )
    lines = (
        "",
        f"Tollgate forwards to {upstream}.",
        "",
        f"  base URL  {base_url}",
        f"  key       {key}",
        f"  metrics   {operations_url}/metrics",
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


def _issue_key(settings: Settings, engine: Engine, peppers: Peppers) -> str:
    registry = SqlRegistry(engine, SystemClock(), peppers, actor="demo")
    # A second start: the team, its keys and its ledger are as they were left.
    with contextlib.suppress(TeamExists):
        registry.add_team(TEAM, settings.limits.default_tier)
    return registry.issue_key(TEAM, label="demo").key
