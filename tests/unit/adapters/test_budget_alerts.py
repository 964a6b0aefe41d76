"""Who is told of budgets, when the notes or the ledger do not answer, and what the gauges show."""

import asyncio
import json
import logging
import math

import pytest

from proxy.adapters import budget_alerts
from proxy.adapters.budget_alerts import BudgetAlerts, watch_budgets
from proxy.adapters.prometheus import Metrics
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.spend import SqlSpendLedger
from proxy.adapters.sql.told import SqlToldWarnings
from proxy.core.budget import Cap, Period, span_of
from proxy.core.caps import BudgetReached
from proxy.core.event import Outcome, UsageEvent
from proxy.core.ids import uuid7

NOW_MS = 1_800_000_000_000
MONTH = span_of(Period.MONTH, NOW_MS)


class SetClock:
    def now_ms(self):
        return NOW_MS

    def monotonic_ns(self):
        return 0


class Sent:
    """In the place of a destination: keeps what it is given."""

    def __init__(self):
        self.bodies = []

    def send(self, body):
        self.bodies.append(json.loads(body))


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def metrics():
    return Metrics(lambda _: True)


@pytest.fixture
def tell(engine, metrics):
    async def go(reached, alerts_told=None):
        work, sent = [], Sent()
        told = alerts_told or SqlToldWarnings(engine)
        alerts = BudgetAlerts(told, SqlSpendLedger(engine), metrics, SetClock(), work.append, sent)
        alerts.reached(reached)
        for each in work:
            await each
        return sent.bodies

    return go


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


def of_key(warn=4, limit=None):
    return BudgetReached("growth", "0a1B2c3D4e5F", Cap("key:0a1B2c3D4e5F", MONTH, limit, warn), NOW_MS)


async def test_a_notice_names_the_key_and_has_one_id_for_one_warning(tell, metrics, caplog):
    (notice,) = await tell(of_key())
    assert (notice["key_id"], notice["limit_usd"], notice["spent_nano_usd"]) == ("0a1B2c3D4e5F", None, 0)
    assert (notice["period"], notice["span"], notice["at"]) == ("month", "2027-01", "2027-01-15T08:00:00Z")
    assert await tell(of_key()) == []
    (other,) = await tell(of_key(warn=5))
    assert other["id"] != notice["id"]
    assert "key 0a1B2c3D4e5F of team growth has reached" in caplog.text
    assert value(metrics, "tollgate_budget_warnings_total", team="growth", period="month") == 2


async def test_while_the_database_is_away_somebody_is_told_all_the_same(tell, engine, metrics, caplog):
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE budget_warnings RENAME TO away")
        connection.exec_driver_sql("ALTER TABLE usage_daily RENAME TO away_too")
    with caplog.at_level(logging.WARNING):
        (notice,) = await tell(of_key())
    assert (notice["spent_usd"], notice["spent_nano_usd"]) == (None, None)
    assert value(metrics, "tollgate_store_errors_total", store="budget_warnings", operation="first") == 1
    assert value(metrics, "tollgate_store_errors_total", store="ledger", operation="spent") == 1


async def test_gauges_show_the_budgets_of_teams_and_no_number_for_one_that_is_gone(engine, metrics, tmp_path):
    registry = SqlRegistry(engine, SetClock(), load_or_create_pepper(tmp_path / "secrets"))
    registry.add_team("growth", "free", budgets={Period.MONTH: {"limit_nano_usd": 5 * 10**9, "warn_nano_usd": 1}})
    registry.add_team("research", "free", budgets={Period.DAY: {"warn_nano_usd": 1}})
    registry.issue_key("research", budgets={Period.TOTAL: {"limit_nano_usd": 1}})
    looks = []

    async def sleep(seconds):
        assert seconds == 60
        looks.append({team: shown(team, period) for team, period in (("growth", "month"), ("research", "day"))})
        if len(looks) == 1:
            registry.set_team("growth", budgets={Period.MONTH: {"limit_nano_usd": None, "warn_nano_usd": None}})
        elif len(looks) == 2:
            with engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE budgets RENAME TO away")
        else:
            raise asyncio.CancelledError

    def shown(team, period):
        return tuple(
            value(metrics, f"tollgate_budget_{name}_usd", team=team, period=period) for name in ("limit", "spent")
        )

    with pytest.raises(asyncio.CancelledError):
        await watch_budgets(registry, metrics, SetClock(), sleep)()
    first, second, third = looks
    assert first == {"growth": (5, 0), "research": (math.inf, 0)}
    assert all(map(math.isnan, second["growth"]))
    assert second["research"] == third["research"] == (math.inf, 0)
    assert value(metrics, "tollgate_store_errors_total", store="registry", operation="team_budgets") == 1
    assert value(metrics, "tollgate_budget_limit_usd", team="research", period="total") is None


async def test_gauges_show_what_the_ledger_has_of_day_and_month(engine, metrics, tmp_path):
    """Of every team, with a budget or without, whichever process it was that counted."""
    registry = SqlRegistry(engine, SetClock(), load_or_create_pepper(tmp_path / "secrets"))
    for team in ("growth", "research"):
        registry.add_team(team, "free")
    day, month = span_of(Period.DAY, NOW_MS), MONTH
    instants = [month.start_ms - 1, month.start_ms, day.start_ms - 1, day.start_ms, day.end_ms - 1, month.end_ms]
    events = [
        UsageEvent(
            event_id=uuid7(at_ms, bytes([number]) * 10),
            at_ms=at_ms,
            request_id="req_1",
            team="growth",
            key_id="0a1B2c3D4e5F",
            endpoint="chat",
            model=f"gpt-{number % 2}",
            upstream="openai",
            status=0,
            outcome=Outcome.INTERRUPTED,
            cost_pico_usd=10**number,
        )
        for number, at_ms in enumerate(instants)
    ]
    SqlLedgerStore(engine).take_over(events, "w/1", 1)

    async def sleep(_seconds):
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watch_budgets(registry, metrics, SetClock(), sleep)()
    shown = {
        (team, period): value(metrics, "tollgate_ledger_spend_usd", team=team, period=period)
        for team in ("growth", "research")
        for period in ("day", "month")
    }
    assert shown == {
        ("growth", "day"): 11_000 / 1e12,
        ("growth", "month"): 11_110 / 1e12,
        ("research", "day"): 0,
        ("research", "month"): 0,
    }


class Sums:
    """What a registry has of teams and their spending."""

    def __init__(self, names, spent):
        self.names, self.spent = names, spent

    def team_names(self, limit):
        return self.names[:limit]

    def team_budgets(self):
        return {}

    def spent_by_team(self, at_ms):
        return self.spent


async def test_of_many_teams_those_are_shown_that_have_spent_and_what_is_over_is_nothing_again(metrics, monkeypatch):
    monkeypatch.setattr(budget_alerts, "_SHOWN_WITHOUT_SPEND", 2)
    sums = Sums([f"team-{number}" for number in range(9)], {("team-7", Period.DAY): 10**12})
    looks = []

    async def sleep(_):
        shown = metrics.budgets.ledger_spend_usd.collect()[0].samples
        looks.append({(each.labels["team"], each.labels["period"]): each.value for each in shown})
        sums.spent = {("team-1", Period.MONTH): 2 * 10**12}
        if len(looks) == 2:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await watch_budgets(sums, metrics, SetClock(), sleep)()
    nothing = {(team, period): 0 for team in ("team-0", "team-1") for period in ("day", "month")}
    assert looks[0] == nothing | {("team-7", "day"): 1}
    assert looks[1] == nothing | {("team-7", "day"): 0, ("team-1", "month"): 2}
