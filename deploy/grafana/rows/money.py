"""What was spent and saved, and what is left of budgets."""

from __future__ import annotations

from rows.panels import Panel, bars, lines, number, table
from rows.queries import TEAM, TEAM_MODEL, most, per_hour, total

__all__ = ["budgets", "figures", "money", "spend_by_model", "spend_over_time"]

_NO_SPEND = "Nothing spent in this range"
_NOTHING_SAVED = "Nothing saved in this range"
_NOT_READ = "No team yet, or the ledger is away"
_NO_BUDGETS = "No budgets"
_SPENT = f"max by (team, period) (tollgate_budget_spent_usd{{{TEAM}}})"
# One that only warns has no limit.
_LIMIT = f"(max by (team, period) (tollgate_budget_limit_usd{{{TEAM}}}) < Inf)"


def money() -> list[Panel]:
    """Money of all teams."""
    return [
        *figures(),
        spend_over_time("team"),
        budgets(link=True, width=12),
        bars(
            "Spend by team",
            "The fifteen teams that spent most in the time range. Click one for its page.",
            (most("tollgate_spend_usd_total", "team", TEAM_MODEL), "{{team}}"),
            "currencyUSD",
            empty=_NO_SPEND,
            link=True,
        ),
        spend_by_model(8),
        bars(
            "Saved by team",
            "What the cache saved for each team in the time range: the fifteen with most.",
            (most("tollgate_saved_usd_total", "team", TEAM_MODEL), "{{team}}"),
            "currencyUSD",
            empty=_NOTHING_SAVED,
            link=True,
        ),
    ]


def figures() -> list[Panel]:
    """Money in six figures."""
    month = f'sum(max by (team) (tollgate_ledger_spend_usd{{period="month", {TEAM}}}))'
    days_gone = "clamp_min(day_of_month() - 1 + hour() / 24 + minute() / 1440, 1)"
    return [
        number(
            "Spend in range",
            "What requests cost in the time range above, as counted. A team's very first request for a model may be "
            "missing; the ledger lacks nothing (`tollgate usage`).",
            total("tollgate_spend_usd_total", where=TEAM_MODEL),
            "currencyUSD",
            empty=_NO_SPEND,
        ),
        number(
            "Today",
            "What the ledger has of this day, from midnight UTC on, of all models. Exact to a minute, also after a "
            "restart.",
            f'sum(max by (team) (tollgate_ledger_spend_usd{{period="day", {TEAM}}}))',
            "currencyUSD",
            empty=_NOT_READ,
        ),
        number(
            "Month to date",
            "What the ledger has of this month, in UTC, of all models. Exact to a minute, also after a restart.",
            month,
            "currencyUSD",
            empty=_NOT_READ,
        ),
        number(
            "Month, projected",
            "What the month will have cost if it goes on as it went so far. On its first day it is taken to be a "
            "whole day old, so that one hour does not stand for thirty days.",
            f"{month} * scalar(days_in_month() / {days_gone})",
            "currencyUSD",
            empty=_NOT_READ,
        ),
        number(
            "Saved by the cache in range",
            "What answers from the cache would have cost upstream. It was not spent.",
            total("tollgate_saved_usd_total", where=TEAM_MODEL),
            "currencyUSD",
            empty=_NOTHING_SAVED,
        ),
        number(
            "Least budget left",
            "Of the hard budgets of the chosen teams, the one of which the smallest part is left.",
            f"1 - max({_SPENT} / {_LIMIT})",
            "percentunit",
            empty=_NO_BUDGETS,
        ),
    ]


def spend_over_time(by: str) -> Panel:
    """How fast money goes."""
    of_team = by == "team"
    return lines(
        "Spend per hour",
        f"Dollars an hour at the speed of the moment, by {by}."
        + (" Click a line for its team's page." if of_team else ""),
        [(per_hour("tollgate_spend_usd_total", by, TEAM_MODEL), f"{{{{{by}}}}}")],
        "currencyUSD",
        empty=_NO_SPEND,
        width=12,
        stacked=True,
        link=of_team,
    )


def spend_by_model(width: int) -> Panel:
    """What models cost."""
    return bars(
        "Spend by model",
        "The fifteen models that cost most in the time range. `_other` is a model without a price.",
        (most("tollgate_spend_usd_total", "model", TEAM_MODEL), "{{model}}"),
        "currencyUSD",
        empty=_NO_SPEND,
        width=width,
    )


def budgets(*, link: bool, width: int) -> Panel:
    """Where budgets stand."""
    return table(
        "Budgets",
        "The hard budgets of teams, as the ledger has them: for this day, this month (UTC) or in total. When nothing "
        "is left, requests that cost anything are refused. Budgets of single keys are in `tollgate keys list`.",
        [
            ("Limit", _LIMIT, "currencyUSD"),
            ("Spent", f"{_SPENT} and {_LIMIT}", "currencyUSD"),
            ("Left", f"{_LIMIT} - {_SPENT}", "currencyUSD"),
            ("Used", f"{_SPENT} / {_LIMIT}", "percentunit"),
        ],
        "currencyUSD",
        empty=_NO_BUDGETS,
        width=width,
        link=link,
    )
