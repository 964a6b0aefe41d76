"""Figures as people read them: money, counts, times, bars. Nothing is told by colour alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime

from proxy.core.money import PICO_DIGITS, PICO_PER_USD, format_usd
from proxy.core.overview import Level
from proxy.core.views.budgets import BudgetView
from proxy.web.pages.html import Child, Html, el

__all__ = [
    "BUDGET_HEADER",
    "amount",
    "bar",
    "budget_rows",
    "clock_time",
    "count",
    "day_name",
    "gauge",
    "moment",
    "money",
    "money_cell",
    "number_cell",
    "percent",
    "places",
    "table",
]

_CENTS = 2
_SMALL = 6
_PICO_PER_NANO = 1_000
_FULL = 100
_DAY_MS = 86_400_000


def money(pico_usd: int, digits: int | None = None) -> str:
    """Dollars with cents; less than a cent with six places, or as being that where two `digits` are asked for."""
    small = 0 < abs(pico_usd) < 10 ** (PICO_DIGITS - _CENTS)
    if small and digits == _CENTS:
        return "<$0.01" if pico_usd > 0 else ">-$0.01"
    digits = digits or (_SMALL if small else _CENTS)
    whole, _, decimals = format_usd(abs(pico_usd), digits).partition(".")
    return f"{'-' if pico_usd < 0 else ''}${int(whole):,}.{decimals}"


def places(most_pico_usd: int) -> int:
    """Decimal places for a column of amounts of which this is the largest, so that their points are in one line."""
    return _CENTS if most_pico_usd >= PICO_PER_USD else _SMALL


def amount(pico_usd: int, class_: str | None = None, digits: int | None = None) -> Html:
    """The same, with the exact amount for programs."""
    return el("data", money(pico_usd, digits), value=format_usd(pico_usd, PICO_DIGITS), class_=class_)


def money_cell(pico_usd: int, digits: int | None = None) -> Html:
    """A cell of a table with an amount in it."""
    return el("td", amount(pico_usd, digits=digits), class_="n")


def count(number: int) -> str:
    """A whole number, in groups of three."""
    return f"{number:,}"


def number_cell(number: int) -> Html:
    """A cell of a table with a whole number in it."""
    return el("td", count(number), class_="n")


def percent(part: int, whole: int) -> str:
    """A part of a whole, of which all is said of nothing less; a dash of nothing."""
    if not whole:
        return "–"  # noqa: RUF001 - a dash, as in any table
    share = round(_FULL * part / whole)
    return f"{min(share, _FULL - 1) if part < whole else share} %"


def clock_time(at_ms: int) -> Html:
    """A time of day in UTC, with its date for programs."""
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    return el("time", f"{at:%H:%M:%S}", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def moment(at_ms: int, now_ms: int) -> Html:
    """A time of day in UTC; of another day than now's, with its date."""
    if at_ms // _DAY_MS == now_ms // _DAY_MS:
        return clock_time(at_ms)
    at = datetime.fromtimestamp(at_ms // 1_000, UTC)
    return el("time", f"{at:%Y-%m-%d %H:%M:%S}", datetime=f"{at:%Y-%m-%dT%H:%M:%SZ}")


def day_name(day: date) -> Html:
    """A day."""
    return el("time", day.isoformat(), datetime=day.isoformat())


def bar(label: str, part: int, whole: int, text: str, mark: int | None = None) -> Html:
    """How much of something is used, with a `mark` where somebody is told; `text` says the same in words."""
    filled = min(_FULL, _FULL * part / whole) if whole else _FULL
    level = "full" if part >= whole else "high" if mark is not None and part >= mark else "low"
    shapes = [el("rect", class_=f"bar-{level}", x=0, y=0, width=f"{filled:.1f}", height=10)]
    if mark is not None and whole:
        shapes.append(
            el("rect", class_="bar-mark", x=f"{min(99.0, _FULL * mark / whole):.1f}", y=0, width=1, height=10)
        )
    drawing = el(
        "svg", *shapes, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true", focusable="false"
    )
    return el(
        "div",
        drawing,
        class_="bar",
        role="meter",
        aria_label=label,
        aria_valuemin=0,
        aria_valuemax=_FULL,
        aria_valuenow=int(filled),
        aria_valuetext=text,
    )


def gauge(label: str, level: Level | None) -> Html:
    """A limit, and how much of it is used now; where more or less than a minute's worth fits at once, that too."""
    if level is None:
        return el("span", "no limit", class_="quiet")
    if level.remaining is None:
        return el("span", f"{count(level.per_minute)} a minute, use not known", class_="quiet")
    used = level.capacity - level.remaining
    text = f"{count(used)} of {count(level.capacity)}"
    rate = f", {count(level.per_minute)} a minute" if level.per_minute != level.capacity else ""
    spent = el("strong", "none left", class_="badge") if not level.remaining else None
    drawing = bar(label, used, level.capacity, f"{text} used{rate}")
    return el("div", drawing, el("span", text, el("span", rate, class_="quiet"), " ", spent), class_="gauge")


BUDGET_HEADER = ("Each", ">Spent", ">Of", ">Warning at", ">Left", "Used")


def budget_rows(of: str, budgets: Sequence[BudgetView]) -> list[Html]:
    """Rows of a table of budgets: whose it is, and what `BUDGET_HEADER` says."""
    return [_budget_row(of, budget) for budget in budgets]


def _budget_row(of: str, budget: BudgetView) -> Html:
    spent, limit, warn = budget.spent_nano_usd, budget.limit_nano_usd, budget.warn_nano_usd
    label = f"{of}, budget {'in total' if budget.period == 'total' else f'a {budget.period}'}"
    known: Child = el("span", "not known", class_="quiet")
    drawn: Child = known
    if spent is not None:
        whole = limit if limit is not None else warn or 0
        share = percent(spent, whole)
        told = f", warned at {money(warn * _PICO_PER_NANO)}" if warn is not None else ""
        drawn = el(
            "div",
            bar(label, spent, whole, f"{share} spent{told}", warn if limit is not None else None),
            el("span", f"{share} ", _state(spent, limit, warn)),
            class_="gauge",
        )
    ends = el("span", f" until {budget.ends:%Y-%m-%d}", class_="quiet") if budget.ends else None
    return el(
        "tr",
        el("th", of, scope="row"),
        el("td", budget.period.value, ends),
        el("td", known if spent is None else _usd(spent), class_="n"),
        el("td", "only warned" if limit is None else _usd(limit), class_="n"),
        el("td", "–" if warn is None else _usd(warn), class_="n"),  # noqa: RUF001 - a dash
        el("td", "–" if budget.left_nano_usd is None else _usd(budget.left_nano_usd), class_="n"),  # noqa: RUF001 - same
        el("td", drawn),
    )


def _state(spent: int, limit: int | None, warn: int | None) -> Html | None:
    if limit is not None and spent >= limit:
        return el("strong", "used up", class_="badge")
    if warn is not None and spent >= warn:
        return el("strong", "warned", class_="badge")
    return None


def _usd(nano_usd: int | None) -> Html:
    return amount((nano_usd or 0) * _PICO_PER_NANO)


def table(caption: str, header: Sequence[str], rows: Sequence[Html], empty: str) -> Html:
    """A table, or a sentence where there is nothing to put into it; a `>` before a heading puts it above figures."""
    if not rows:
        return el("p", empty, class_="empty")
    heads = [el("th", name.lstrip(">"), scope="col", class_="n" if name.startswith(">") else None) for name in header]
    held = el("table", el("caption", caption), el("thead", el("tr", *heads)), el("tbody", *rows))
    return el("div", held, class_="wide", tabindex=0, role="region", aria_label=caption)
