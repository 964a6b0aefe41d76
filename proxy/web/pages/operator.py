"""The operator's page: money first, then limits and budgets, refusals, upstreams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.core.overview import Overview, TeamNow, UpstreamNow
from proxy.core.refusals import Refusal
from proxy.pipeline.exchange import Reply
from proxy.web.pages.assets import ASSETS
from proxy.web.pages.figures import (
    BUDGET_HEADER,
    budget_rows,
    clock_time,
    count,
    gauge,
    moment,
    number_cell,
    percent,
    table,
)
from proxy.web.pages.html import Child, Html, el, join
from proxy.web.pages.layout import PAGE_HEADERS, asset_reply, page, section
from proxy.web.pages.money import chart_of_days, lines, tiles

__all__ = ["OPERATOR_BASE", "OperatorPage", "operator_page"]

OPERATOR_BASE = "/page"
"""Where its files are."""
_NO_LIMIT = el("span", "no limit", class_="quiet")
_LEVELS = ("called", "being tried out", "resting after failures")
_LIMITS = {
    "requests": "requests a minute",
    "tokens": "tokens a minute",
    "parallel": "requests under way",
    "budget": "budget",
}
_OWNERS = {"team": "of the team", "key": "of its key", "model": "of the team for the model"}
_NO_LEDGER = "The ledger does not answer; figures come back when it does."
_NO_TEAMS = "There is no team yet: tollgate teams add NAME makes one."


class OperatorPage:
    """Serves the page and its files on the operations listener."""

    def __init__(self, latest: Callable[[], Awaitable[Overview]]) -> None:
        self._latest = latest

    def serves(self, path: str) -> bool:
        """Whether the page or one of its files is at a path."""
        base, _, name = path.rpartition("/")
        return path == "/" or (base == OPERATOR_BASE and name in ASSETS)

    async def answer(self, path: str) -> Reply:
        """What is at a path that it serves."""
        if path == "/":
            return Reply(200, PAGE_HEADERS, operator_page(await self._latest()))
        return asset_reply(path.rpartition("/")[2])


def operator_page(overview: Overview) -> bytes:
    """Write the page."""
    parts = (_money(overview), _teams(overview), _refusals(overview.refusals, overview.at_ms), _upstreams(overview))
    return page("Tollgate", OPERATOR_BASE, _header(overview), join(parts), live=True)


def _header(overview: Overview) -> Html:
    now = overview.now
    degraded = el("strong", f"away: {', '.join(now.degraded)}", class_="badge") if now.degraded else None
    facts: tuple[Child, ...] = (
        el("span", "as of ", clock_time(overview.at_ms), " UTC"),
        el("span", f"ledger {now.spool_lag_seconds:.1f} s behind"),
        el("span", f"{count(now.in_flight)} in flight"),
        el("span", f"{count(now.queued)} waiting"),
        degraded,
        el("span", f"version {overview.version}"),
    )
    return join(
        (
            el("h1", "Tollgate"),
            el("p", *facts, id="state", class_="facts", data_live=True),
            el("button", "Pause", id="pause", type="button", hidden=True, aria_pressed="false"),
            el("p", id="trouble", role="status"),
            el("noscript", el("a", "Look again", href="/")),
        )
    )


def _money(overview: Overview) -> Html:
    account = overview.account
    if account is None:
        return section("money", "Spent", el("p", _NO_LEDGER, class_="empty"))
    nothing = "Nothing was used this month."
    return join(
        (
            section("money", "Spent", tiles(account)),
            chart_of_days(account, "days"),
            section("teams", "By team", lines("Teams this month, dearest first", "Team", account.teams, nothing)),
            section("models", "By model", lines("Models this month, dearest first", "Model", account.models, nothing)),
        )
    )


def _teams(overview: Overview) -> Html:
    teams = overview.teams
    if teams is None:
        return section("limits", "Limits and budgets", el("p", "The database does not answer.", class_="empty"))
    more = f"{count(overview.more_teams)} more teams are not shown." if overview.more_teams else None
    budgets = [row for team in teams for row in budget_rows(team.name, team.budgets)]
    header = ("Team", "Tier", "Requests a minute", "Tokens a minute", ">At one time")
    return section(
        "limits",
        "Limits and budgets",
        table("Limits of teams, used at this moment", header, [_limits(team) for team in teams], _NO_TEAMS),
        table("Budgets of teams", ("Team", *BUDGET_HEADER), budgets, "No team has a budget.") if teams else None,
        el("p", more, class_="quiet") if more else None,
    )


def _limits(team: TeamNow) -> Html:
    return el(
        "tr",
        el("th", team.name, scope="row"),
        el("td", team.tier),
        el("td", gauge(f"{team.name}, requests a minute", team.requests)),
        el("td", gauge(f"{team.name}, tokens a minute", team.tokens)),
        el("td", _NO_LIMIT if team.max_parallel is None else count(team.max_parallel), class_="n"),
    )


def _refusals(refusals: tuple[Refusal, ...], now_ms: int) -> Html:
    header = ("Latest (UTC)", "Team", "Model", "Endpoint", "Reason", "Request", ">Status", ">Times")
    rows = [_refusal(each, now_ms) for each in refusals]
    caption = "Requests that were refused here since the start, those alike in one row"
    return section("refusals", "Recent refusals", table(caption, header, rows, "Nothing was refused since the start."))


def _refusal(refusal: Refusal, now_ms: int) -> Html:
    return el(
        "tr",
        el("th", moment(refusal.at_ms, now_ms), scope="row"),
        el("td", refusal.team or "nobody known"),
        el("td", refusal.model or "–"),  # noqa: RUF001 - a dash
        el("td", "no endpoint" if refusal.endpoint == "_other" else refusal.endpoint),
        el("td", _reason(refusal)),
        el("td", el("code", refusal.request_id)),
        number_cell(refusal.status),
        number_cell(refusal.count),
    )


def _reason(refusal: Refusal) -> str:
    if refusal.dimension:
        return f"{_LIMITS.get(refusal.dimension, refusal.dimension)} {_OWNERS.get(refusal.scope, '')}".rstrip()
    return refusal.error_code.replace("_", " ") or "no reason given"


def _upstreams(overview: Overview) -> Html:
    header = ("Upstream", "State", ">Requests", ">Failed calls", ">Of requests", ">Keys resting")
    rows = [_upstream(each) for each in overview.now.upstreams]
    return section("upstreams", "Upstreams", table("Upstreams since the start", header, rows, "None was asked yet."))


def _upstream(upstream: UpstreamNow) -> Html:
    state = _LEVELS[min(upstream.level, len(_LEVELS) - 1)]
    return el(
        "tr",
        el("th", upstream.name, scope="row"),
        el("td", el("strong", state, class_="badge") if upstream.level else state),
        number_cell(upstream.requests),
        number_cell(upstream.errors),
        el("td", percent(upstream.errors, upstream.requests), class_="n"),
        number_cell(upstream.keys_resting),
    )
