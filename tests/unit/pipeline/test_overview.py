"""What an operator is shown: gathered seldom, and what does not answer is missing from it and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from msgspec import structs
from sqlalchemy import event, insert, text

from proxy.adapters.prometheus_now import figures_of
from proxy.adapters.sql.tables import usage_daily
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.bucket import Cost
from proxy.core.budget import Period
from proxy.core.overview import Level, UpstreamNow
from proxy.core.refusals import Refusal
from proxy.pipeline import overview as module
from proxy.pipeline.admit import scopes_of
from proxy.pipeline.overview import Overviews, Sources
from proxy.pipeline.team_account import KEPT_MS, TeamAccounts
from proxy.web.pages.operator import operator_page

REFUSAL = Refusal("growth", "m", "chat", 429, "team", "requests", "rate_limit_exceeded", 1, "req_1")


@pytest.fixture
def sources(bench, registry):
    return Sources(
        reports=SqlUsageReports(bench.database.engine),
        teams=registry.list_teams,
        budgets_spent=registry.budgets_spent,
        now=lambda: figures_of(bench.metrics.registry),
        refusals=lambda: [REFUSAL],
        peek=bench.services.limiter.peek,
        tiers=bench.services.policy.tiers,
        default_tier=bench.services.policy.default_tier,
    )


@pytest.fixture
def statements(bench):
    found = []
    event.listen(
        bench.database.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: found.append(statement)
    )
    return found


def used(bench, team, cost_pico_usd, model="m"):
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    day = datetime.fromtimestamp(bench.clock.now_ms() / 1_000, UTC).date()
    key = {"day": day, "team": team, "key_id": "k", "model": model, "upstream": "u", "endpoint": "chat"}
    with bench.database.engine.begin() as connection:
        connection.execute(insert(usage_daily).values({**zeros, **key, "cost_pico_usd": cost_pico_usd}))


async def test_all_of_it(bench, registry, sources):
    registry.set_team("growth", budgets={Period.MONTH: {"limit_nano_usd": 9, "warn_nano_usd": 5}})
    used(bench, "growth", 7_000)
    await bench.services.limiter.reserve("growth", (await scope_of(bench),), Cost(3, 50))
    bench.metrics.started()
    bench.metrics.upstream_failed("openai", "status_500")
    shown = await Overviews(sources, bench.clock).latest()
    assert shown.account is not None
    assert [(line.name, line.month.cost_pico_usd) for line in shown.account.teams] == [("growth", 7_000)]
    (team,) = shown.teams
    assert (team.name, team.tier) == ("growth", "free")
    assert (team.requests, team.tokens) == (Level(100, 100, 97), Level(10_000, 10_000, 9_950))
    (budget,) = team.budgets
    assert (budget.spent_nano_usd, budget.left_nano_usd) == (7, 2)
    assert shown.now.in_flight == 1
    assert shown.now.upstreams == (UpstreamNow("openai", 0, 0, 0, 1),)
    assert shown.refusals == (REFUSAL,)


async def test_teams_and_models_are_summed_up_by_the_database_each_by_itself(bench, sources):
    rows = []

    class Reports(SqlUsageReports):
        def each_usage(self, *asked):
            for row in super().each_usage(*asked):
                rows.append(row.group)
                yield row

    teams, models = [f"team-{number}" for number in range(5)], [f"model-{number}" for number in range(4)]
    for at, team in enumerate(teams):
        for model in models:
            used(bench, team, 10**at, model)
    shown = await Overviews(replace(sources, reports=Reports(bench.database.engine)), bench.clock).latest()
    assert shown.account is not None
    assert shown.account.today.cost_pico_usd == 44_444
    assert [(line.name, line.today.cost_pico_usd) for line in shown.account.models] == [(m, 11_111) for m in models]
    assert [line.month.cost_pico_usd for line in shown.account.teams] == [40_000, 4_000, 400, 40, 4]
    assert len(rows) == len(teams) + len(models)


async def scope_of(bench):
    principal = await bench.services.principals.of(bench.key)
    return scopes_of(principal, "", bench.services.policy, bench.clock.now_ms())[0]


async def test_it_is_gathered_once_for_all_who_look(bench, sources, statements):
    overviews = Overviews(sources, bench.clock)
    first, *others = await asyncio.gather(*(overviews.latest() for _ in range(9)))
    assert all(each is first for each in others)
    read = len(statements)
    bench.clock.ms += 1_999
    assert await overviews.latest() is first
    assert len(statements) == read
    bench.clock.ms += 1
    assert await overviews.latest() is not first


async def test_what_took_long_is_good_for_longer(bench, sources):
    def slow():
        bench.clock.ms += 700
        return figures_of(bench.metrics.registry)

    overviews = Overviews(replace(sources, now=slow), bench.clock)
    first = await overviews.latest()
    bench.clock.ms += 6_999
    assert await overviews.latest() is first
    bench.clock.ms += 1
    assert await overviews.latest() is not first


async def test_a_refusal_of_another_day_has_its_date(bench, sources):
    overview = await Overviews(sources, bench.clock).latest()
    now_ms = overview.at_ms
    midnight_ms = now_ms - now_ms % 86_400_000
    for at_ms, form in ((midnight_ms, "%H:%M:%S"), (midnight_ms - 1, "%Y-%m-%d %H:%M:%S")):
        page = operator_page(replace(overview, refusals=(structs.replace(REFUSAL, at_ms=at_ms),))).decode()
        assert f">{datetime.fromtimestamp(at_ms // 1_000, UTC):{form}}</time></th>" in page


@pytest.mark.parametrize(
    ("table", "missing"),
    [("usage_daily", "The ledger does not answer"), ("teams", "The database does not answer")],
)
async def test_what_does_not_answer_is_said(bench, sources, table, missing):
    with bench.database.engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {table} RENAME TO away"))
    shown = await Overviews(sources, bench.clock).latest()
    assert (shown.account is None) == (table == "usage_daily")
    assert (shown.teams is None) == (table == "teams")
    page = operator_page(shown).decode()
    assert missing in page
    assert "requests a minute of the team" in page, "all else is shown"


async def test_what_is_spent_of_a_budget_may_not_be_known(bench, registry, sources):
    registry.set_team("growth", budgets={Period.DAY: {"limit_nano_usd": 9_000_000_000}})
    with bench.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_daily RENAME TO away"))
    shown = await Overviews(sources, bench.clock).latest()
    assert shown.teams[0].budgets[0].spent_nano_usd is None
    assert "not known" in operator_page(shown).decode()


async def test_a_thousand_teams_are_a_page_still(bench, registry, sources, monkeypatch):
    monkeypatch.setattr(module, "MAX_TEAMS", 3)
    for number in range(5):
        registry.add_team(f"team-{number}", "free")
    shown = await Overviews(sources, bench.clock).latest()
    assert ([team.name for team in shown.teams], shown.more_teams) == (["growth", "team-0", "team-1"], 3)
    assert "3 more teams are not shown." in operator_page(shown).decode()


async def test_a_team_is_read_for_its_page_once_in_a_while(bench, registry, statements):
    registry.add_team("other", "free")
    used(bench, "growth", 5)
    used(bench, "other", 70)
    accounts = TeamAccounts(SqlUsageReports(bench.database.engine), bench.clock, bench.services.telemetry)
    shown = [await accounts.of("growth") for _ in range(3)]
    assert [each.month.cost_pico_usd for each in shown] == [5, 5, 5]
    assert sum("FROM usage_daily" in statement for statement in statements) == 1
    bench.clock.ms += KEPT_MS
    with bench.database.engine.begin() as connection:
        connection.execute(text("ALTER TABLE usage_daily RENAME TO away"))
    assert await accounts.of("growth") is None
    errors = bench.metrics.registry.get_sample_value
    assert errors("tollgate_store_errors_total", {"store": "ledger", "operation": "usage"}) == 1
