"""An account is the sum of its rows, whatever way they are looked at."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from proxy.core.bucket import Gauge, Scope, Standing
from proxy.core.overview import CHART_DAYS, Level, Spent, account_of, first_day, levels_of
from proxy.core.registry import Axis, UsageRow
from proxy.core.tiers import Limits, Schedule
from proxy.core.usage import Usage

DAY_MS = 86_400_000
AXES = (Axis.DAY, Axis.TEAM, Axis.MODEL)
TODAY = date(2026, 11, 3)
NOW = (TODAY - date(1970, 1, 1)).days * DAY_MS + 5


def row(day, team, model, cost, saved=0, requests=1, tokens=0):
    usage = Usage(input_tokens=tokens, output_tokens=tokens)
    return UsageRow((day.isoformat(), team, model), requests, requests // 2, 0, usage, cost, saved, 0, 0)


ROWS = st.lists(
    st.builds(
        row,
        st.dates(TODAY - timedelta(days=CHART_DAYS - 1), TODAY),
        st.sampled_from("abc"),
        st.sampled_from("xyz"),
        st.integers(0, 10**15),
        st.integers(0, 10**15),
        st.integers(0, 1_000),
        st.integers(0, 10**9),
    )
)


def total(spents):
    return sum(spents, Spent())


@given(ROWS)
def test_every_way_of_looking_has_the_same_sum(rows):
    account = account_of(iter(rows), AXES, NOW)
    assert len(account.days) == CHART_DAYS
    assert total(spent for _, spent in account.days).cost_pico_usd == sum(each.cost_pico_usd for each in rows)
    of_month = total(spent for day, spent in account.days if day >= TODAY.replace(day=1))
    assert account.month == of_month == total(line.month for line in account.teams)
    assert account.month == total(line.month for line in account.models)
    assert account.today == account.days[-1][1] == total(line.today for line in account.teams)
    assert account.today == total(line.today for line in account.models)
    costs = [line.month.cost_pico_usd for line in account.teams]
    assert costs == sorted(costs, reverse=True)


def test_days_without_use_are_there_and_days_ahead_are_today():
    account = account_of([row(TODAY + timedelta(days=1), "a", "x", 7)], AXES, NOW)
    assert [day for day, _ in account.days] == [TODAY - timedelta(days=back) for back in range(CHART_DAYS - 1, -1, -1)]
    assert (account.today.cost_pico_usd, account.month.cost_pico_usd) == (7, 7)


def test_tokens_are_those_of_input_and_output():
    assert account_of([row(TODAY, "a", "x", 0, tokens=21)], AXES, NOW).today.tokens == 42


def test_teams_may_be_left_out():
    rows = [UsageRow((TODAY.isoformat(), "x"), 1, 0, 0, Usage(), 5, 0, 0, 0)]
    account = account_of(rows, (Axis.DAY, Axis.MODEL), NOW)
    assert [(line.name, line.month.cost_pico_usd) for line in account.models] == [("x", 5)]


def test_it_begins_where_the_chart_or_the_month_does():
    assert first_day(NOW) == TODAY - timedelta(days=CHART_DAYS - 1)
    late = date(2026, 10, 31)
    assert first_day((late - date(1970, 1, 1)).days * DAY_MS) == date(2026, 10, 1)


def test_levels_are_of_what_a_full_bucket_holds():
    limits = Limits(requests_per_minute=60, tokens_per_minute=1_000, request_capacity=5)
    scope = Scope("team", Schedule(limits, limits))
    standing = Standing(Gauge(60, 4, 10), Gauge(1_000, -3, 10))
    assert levels_of(scope, standing, NOW) == (Level(60, 5, 4), Level(1_000, 1_000, 0))
    assert levels_of(scope, Standing(Gauge(60, 9, 0)), NOW)[0] == Level(60, 5, 5), "one that was larger a moment ago"
    assert levels_of(scope, Standing(), NOW) == (Level(60, 5, None), Level(1_000, 1_000, None)), "nobody said"
    free = Scope("team", Schedule(Limits(), Limits()))
    assert levels_of(free, Standing(), NOW) == (None, None)
