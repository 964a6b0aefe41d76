"""Usage, the ledger, the cache, and the audit log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.csv_text import csv_line
from proxy.core.price_table import day_ms
from proxy.core.registry import Axis, BadValue, TeamUnknown, UsageRow
from proxy.core.views.audit import AuditView, audit_view
from proxy.core.views.cache import CacheStoreView, store_view
from proxy.core.views.ledger import FindingsView, findings_view
from proxy.core.views.usage import CacheUsageView, UsageView, cache_usage_view, usage_cells, usage_header, usage_view
from proxy.web.admin import examples
from proxy.web.admin.desk import Desk
from proxy.web.admin.operation import (
    ModelName,
    Moment,
    Nothing,
    Operation,
    PageSize,
    Strict,
    TeamName,
    moment_ms,
    or_none,
)

__all__ = ["MAX_ROWS", "OPERATIONS"]

MAX_ROWS = 50_000
"""Of a usage report: what fits in memory a few times over."""
_DEFAULT_DAYS = 30

Day = Annotated[date, Meta(description="A day (UTC).", examples=["2026-11-01"])]
Since = Annotated[Day, Meta(description="From this day (UTC) on; absent: the last 30.")] | UnsetType


class UsageQuery(Strict, frozen=True, kw_only=True):
    by: Annotated[list[Axis], Meta(max_length=len(Axis), description="With commas between them; each once.")] = (
        msgspec.field(default_factory=lambda: [Axis.TEAM])
    )
    since: Since = UNSET
    until: Annotated[Day, Meta(description="Up to the day (UTC) before this one.")] | UnsetType = UNSET
    team: TeamName | UnsetType = UNSET


class UsageReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was used and what it cost, in whole days (UTC)."""

    data: list[UsageView]


class CacheQuery(Strict, frozen=True, kw_only=True):
    team: TeamName | UnsetType = UNSET
    since: Since = UNSET


class CacheReport(msgspec.Struct, frozen=True, kw_only=True):
    """What cached answers saved, by team and model, and the store that keeps them."""

    usage: list[CacheUsageView]
    store: CacheStoreView


class Purge(Strict, frozen=True, kw_only=True):
    """Whose answers are forgotten."""

    team: TeamName
    model: Annotated[ModelName | None, Meta(description="Those of this model alone.")] = None


class Purged(msgspec.Struct, frozen=True, kw_only=True):
    """Whose answers are forgotten, within ten seconds and usually within one."""

    team: str
    model: str | None
    purged: bool


class AuditQuery(Strict, frozen=True, kw_only=True):
    since: Moment | UnsetType = UNSET
    until: Annotated[Moment, Meta(description="Up to this moment, not included.")] | UnsetType = UNSET
    team: TeamName | UnsetType = UNSET
    limit: PageSize = 100
    cursor: Annotated[str, Meta(pattern="^([0-9]{1,18})?$", description="`next_cursor` of the page before.")] = ""


class AuditPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some lines of the audit log, the oldest first."""

    data: list[AuditView]
    next_cursor: str | None


def report_usage(desk: Desk, params: UsageQuery, _: Nothing) -> UsageReport:
    return UsageReport(data=[usage_view(params.by, row) for row in _rows(desk, params)])


def report_usage_csv(desk: Desk, params: UsageQuery, _: Nothing) -> str:
    return "".join(map(csv_line, _table(desk, params)))


def verify_ledger(desk: Desk, _: Nothing, __: Nothing) -> FindingsView:
    with desk.books() as books:
        return findings_view(books.verify())


def rebuild_ledger(desk: Desk, _: Nothing, __: Nothing) -> FindingsView:
    with desk.books() as books:
        rows = books.rebuild()
        return findings_view(books.verify(), rows)


def report_cache(desk: Desk, params: CacheQuery, _: Nothing) -> CacheReport:
    query = UsageQuery(by=[Axis.TEAM, Axis.MODEL], since=params.since, team=params.team)
    rows = _rows(desk, query)
    return CacheReport(usage=[cache_usage_view(row) for row in rows], store=store_view(desk.look_at_cache()))


def purge_cache(desk: Desk, _: Nothing, body: Purge) -> Purged:
    if body.model is not None:
        desk.require_own_name("model", body.model)
    with desk.registry() as registry:
        registry.purge_cache(body.team, body.model)
    return Purged(team=body.team, model=body.model, purged=True)


def list_audit(desk: Desk, params: AuditQuery, _: Nothing) -> AuditPage:
    since_ms, until_ms = moment_ms(params.since), moment_ms(params.until)
    if since_ms is not None and until_ms is not None and until_ms < since_ms:
        raise BadValue("until", "is before since")
    after = int(params.cursor) if params.cursor else None
    with desk.registry() as registry:
        found = registry.list_audit(since_ms, until_ms, or_none(params.team), after=after, limit=params.limit + 1)
    page = found[: params.limit]
    more = str(page[-1].serial) if len(found) > len(page) else None
    return AuditPage(data=[audit_view(entry) for entry in page], next_cursor=more)


def _table(desk: Desk, params: UsageQuery) -> Iterator[tuple[str | int, ...]]:
    yield usage_header(params.by)
    yield from map(usage_cells, _rows(desk, params))


def _rows(desk: Desk, params: UsageQuery) -> list[UsageRow]:
    if len(set(params.by)) < len(params.by):
        raise BadValue("by", "each axis once")
    today = date.fromordinal(date(1970, 1, 1).toordinal() + desk.clock.now_ms() // 86_400_000)
    since = today - timedelta(days=_DEFAULT_DAYS) if isinstance(params.since, UnsetType) else params.since
    until_ms = None if isinstance(params.until, UnsetType) else day_ms(params.until)
    if until_ms is not None and until_ms < day_ms(since):
        raise BadValue("until", "is before since")
    team = or_none(params.team)
    rows = list(islice(desk.reports.each_usage(params.by, day_ms(since), until_ms, team), MAX_ROWS + 1))
    if len(rows) > MAX_ROWS:
        raise BadValue("by", f"makes more than {MAX_ROWS:,} rows: ask for fewer axes, days, or one team")
    if team is not None and not rows:
        # Nothing used and a name that was mistyped look alike: only one of them is an answer.
        with desk.registry() as registry:
            registry.get_team(team)
    return rows


OPERATIONS = (
    Operation(
        name="reportUsage",
        method="GET",
        path="/usage",
        summary="Show what was used and what it cost, out of the ledger, in whole days (UTC).",
        command="usage",
        handle=report_usage,
        params=UsageQuery,
        result=UsageReport,
        example=UsageReport(data=[examples.USAGE]),
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="reportUsageCsv",
        method="GET",
        path="/usage.csv",
        summary="The same as comma-separated values; a text that a spreadsheet would run gets a quote in front.",
        command="usage",
        handle=report_usage_csv,
        params=UsageQuery,
        result=str,
        example=examples.USAGE_CSV,
        raises=(TeamUnknown, BadValue),
        media_type="text/csv",
    ),
    Operation(
        name="verifyLedger",
        method="GET",
        path="/ledger/verification",
        summary="Prove that the account ties out. Takes as long as there are events.",
        command="ledger verify",
        handle=verify_ledger,
        result=FindingsView,
        example=examples.FINDINGS,
        is_long=True,
    ),
    Operation(
        name="rebuildLedger",
        method="POST",
        path="/ledger/rebuild",
        summary="Make the daily totals anew from the events, then verify.",
        command="ledger verify",
        handle=rebuild_ledger,
        result=FindingsView,
        example=examples.FINDINGS,
        is_long=True,
    ),
    Operation(
        name="reportCache",
        method="GET",
        path="/cache",
        summary="Show what cached answers saved, and the store that keeps them.",
        command="cache stats",
        handle=report_cache,
        params=CacheQuery,
        result=CacheReport,
        example=CacheReport(usage=[examples.CACHE_USAGE], store=examples.CACHE_STORE),
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="purgeCache",
        method="POST",
        path="/cache/purge",
        summary="Forget the answers kept for a team, or those of one of its models.",
        command="cache purge",
        handle=purge_cache,
        body=Purge,
        example_body={"team": "growth", "model": "gpt-5-mini"},
        result=Purged,
        example=Purged(team="growth", model="gpt-5-mini", purged=True),
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="listAudit",
        method="GET",
        path="/audit",
        summary="Show who changed what, and when.",
        command="audit",
        handle=list_audit,
        params=AuditQuery,
        result=AuditPage,
        example=AuditPage(data=[examples.AUDIT], next_cursor="17"),
        raises=(TeamUnknown, BadValue),
    ),
)
