"""The operator's page, put together: where its figures come from, in one process and in several."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

import msgspec
from sqlalchemy import Engine

from proxy.adapters.clock import SystemClock
from proxy.adapters.prometheus_now import shared_now
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.app.database import peppers_of
from proxy.core.bucket import Scope, Standing
from proxy.core.overview import Now
from proxy.core.refusals import RecentRefusals, Refusal, merged
from proxy.pipeline.overview import Overviews, Peek, Sources
from proxy.pipeline.page_sessions import PageSessions
from proxy.pipeline.services import Services
from proxy.pipeline.team_account import TeamAccounts
from proxy.ports import KeyStore, Spawn
from proxy.settings import Settings
from proxy.web.pages.operator import OperatorPage
from proxy.web.pages.team_site import TeamSite

__all__ = ["fleet_page", "operator_page_of", "read_refusals", "share_refusals", "team_site_of", "write_refusals"]

_ACTOR = "page"
_SHARE_SECONDS = 1.0
_REFUSALS = "refusals-{}.json"


def operator_page_of(
    settings: Settings,
    engine: Engine,
    now: Callable[[], Now],
    refusals: Callable[[], Sequence[Refusal]],
    peek: Peek,
) -> OperatorPage | None:
    """The page; None where it is switched off."""
    if not settings.server.pages:
        return None
    clock = SystemClock()
    registry = SqlRegistry(engine, clock, peppers_of(settings), actor=_ACTOR)
    sources = Sources(
        reports=SqlUsageReports(engine),
        teams=registry.list_teams,
        budgets_spent=registry.budgets_spent,
        now=now,
        refusals=refusals,
        peek=peek,
        tiers=settings.limits.all_tiers(),
        default_tier=settings.limits.default_tier,
    )
    return OperatorPage(Overviews(sources, clock).latest)


async def fleet_page(
    settings: Settings, engine: Engine, directory: Path, spawn: Spawn, stack: AsyncExitStack
) -> OperatorPage | None:
    """The page of several workers, which keep their figures and refusals in `directory`."""
    if not settings.server.pages:
        return None
    peek = await _shared_peek(settings, spawn, stack)
    return operator_page_of(settings, engine, partial(shared_now, directory), partial(read_refusals, directory), peek)


def team_site_of(settings: Settings, engine: Engine, services: Services, store: KeyStore) -> TeamSite | None:
    """The page of teams; None where it is switched off."""
    if not settings.server.pages:
        return None
    sessions = PageSessions(services.principals, store, peppers_of(settings), services.clock)
    accounts = TeamAccounts(SqlUsageReports(engine), services.clock, services.telemetry)
    return TeamSite(services, sessions, accounts)


async def share_refusals(refusals: RecentRefusals, directory: Path, number: int) -> None:
    """Keep what a worker refused where the supervisor finds it, a second old at most. Until cancelled.

    What those refused that had this number before stays with it: that one of them died undoes no refusal.
    """
    earlier = await asyncio.to_thread(read_refusals, directory, number)
    told = 0
    while True:
        noted = refusals.noted
        if noted != told and await asyncio.to_thread(
            write_refusals, directory, number, merged((refusals.latest(), earlier))
        ):
            told = noted
        await asyncio.sleep(_SHARE_SECONDS)


def write_refusals(directory: Path, number: int, refusals: Sequence[Refusal]) -> bool:
    """Write what one worker refused; False where that cannot be, of which no request is to suffer."""
    path = directory / _REFUSALS.format(number)
    draft = path.with_suffix(".draft")
    try:
        draft.write_bytes(msgspec.json.encode(refusals))
        draft.replace(path)
    except OSError:
        return False
    return True


def read_refusals(directory: Path, number: int | None = None) -> tuple[Refusal, ...]:
    """What all workers refused, or those of one number, as one, newest first."""
    found = []
    for path in sorted(directory.glob(_REFUSALS.format("*" if number is None else number))):
        # The directory goes with the supervisor, which may be at it now; and no disk is to cost a worker its life.
        with suppress(OSError):
            found.append(msgspec.json.decode(path.read_bytes(), type=tuple[Refusal, ...]))
    return merged(found)


async def _shared_peek(settings: Settings, spawn: Spawn, stack: AsyncExitStack) -> Peek:
    """Look at the limits that the workers share, as one more client of their Redis that changes nothing."""
    if settings.redis_url is None:
        return _nothing_known
    from proxy.app.limiting import open_peek  # noqa: PLC0415 - redis-py is loaded only where there is a Redis

    return await open_peek(settings, settings.redis_url.reveal(), SystemClock(), spawn, stack)


async def _nothing_known(_: str, scopes: Sequence[Scope]) -> tuple[Standing, ...]:
    return (Standing(),) * len(scopes)
