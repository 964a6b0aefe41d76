"""What was spent and saved, in all and by day, team and model: the same for whoever looks."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.overview import Account, Line, Spent
from proxy.web.pages.figures import amount, count, day_name, money_cell, number_cell, percent, places, table
from proxy.web.pages.html import Html, el, join

__all__ = ["chart_of_days", "day_figures", "lines", "tiles"]

MAX_LINES = 20


def tiles(account: Account) -> Html:
    """The figures that matter most, largest first."""
    today, month = account.today, account.month
    return el(
        "dl",
        _tile("Today", today.cost_pico_usd, _used(today)),
        _tile("This month", month.cost_pico_usd, _used(month)),
        _tile("Saved by the cache this month", month.saved_pico_usd, _cached(month)),
        class_="tiles",
    )


def _tile(name: str, pico_usd: int, more: str) -> Html:
    return el("div", el("dt", name), el("dd", amount(pico_usd, "big"), el("span", more, class_="quiet")), class_="tile")


def _used(spent: Spent) -> str:
    return f"{_many(spent.requests, 'request')}, {_many(spent.tokens, 'token')}"


def _cached(spent: Spent) -> str:
    return f"{percent(spent.cached, spent.requests)} of requests from the cache"


def _many(number: int, name: str) -> str:
    return f"{count(number)} {name}{'' if number == 1 else 's'}"


def lines(caption: str, of: str, found: Sequence[Line], empty: str) -> Html:
    """A table of teams or models: what they spent today and this month."""
    digits = places(max((line.month.cost_pico_usd for line in found), default=0))
    rows = [_row(line.name or "–", line, digits) for line in found[:MAX_LINES]]  # noqa: RUF001 - a dash
    if rest := found[MAX_LINES:]:
        today = sum((line.today for line in rest), Spent())
        month = sum((line.month for line in rest), Spent())
        rows.append(_row(f"{count(len(rest))} more", Line("", today, month), digits))
    header = (of, ">Today", ">This month", ">Requests", ">Tokens", ">From cache", ">Saved")
    return table(caption, header, rows, empty)


def _row(name: str, line: Line, digits: int) -> Html:
    month = line.month
    return el(
        "tr",
        el("th", name, scope="row"),
        money_cell(line.today.cost_pico_usd, digits),
        money_cell(month.cost_pico_usd, digits),
        number_cell(month.requests),
        number_cell(month.tokens),
        el("td", percent(month.cached, month.requests), class_="n"),
        money_cell(month.saved_pico_usd, digits),
    )


def day_figures(account: Account) -> Html:
    """A table by day, newest first; the chart is drawn from it."""
    digits = places(max((spent.cost_pico_usd for _, spent in account.days), default=0))
    rows = [
        el(
            "tr",
            el("th", day_name(day), scope="row"),
            money_cell(spent.cost_pico_usd, digits),
            money_cell(spent.saved_pico_usd, digits),
            number_cell(spent.requests),
            number_cell(spent.tokens),
        )
        for day, spent in reversed(account.days)
    ]
    header = ("Day (UTC)", ">Spent", ">Saved", ">Requests", ">Tokens")
    caption = f"The last {len(account.days)} days"
    return table(caption, header, rows, "")


def chart_of_days(account: Account, name: str) -> Html:
    """A chart for those who have scripts, and its table, which is open until there is a chart."""
    told = join(
        (
            el("span", class_="key", aria_hidden="true"),
            " spent (left) and ",
            el("span", class_="key saved", aria_hidden="true"),
            " saved by the cache (right), in dollars a day",
        )
    )
    label = "Dollars spent and saved by day; the table below has the figures"
    drawing = el("div", class_="chart", data_chart=name, role="img", aria_label=label)
    figures = el("div", day_figures(account), id=name, data_live=True)
    return el(
        "section",
        el("h2", "By day", id=f"{name}-title"),
        el("figure", el("figcaption", told), drawing, hidden=True),
        el("details", el("summary", "Figures by day"), figures, open=True),
        aria_labelledby=f"{name}-title",
    )
