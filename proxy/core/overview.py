"""What pages show of the ledger and of a running server, as plain figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from proxy.core.bucket import Gauge, Scope, Standing
from proxy.core.refusals import Refusal
from proxy.core.registry import Axis, UsageRow
from proxy.core.views.budgets import BudgetView

__all__ = [
    "CHART_DAYS",
    "Account",
    "Level",
    "Line",
    "Now",
    "Overview",
    "Spent",
    "TeamNow",
    "UpstreamNow",
    "account_of",
    "first_day",
    "levels_of",
]

CHART_DAYS = 30
"""Days that are shown one by one, today included."""
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used, in all."""

    requests: int = 0
    cached: int = 0
    """Of these, answered from the cache."""
    tokens: int = 0
    """Input and output; none of answers from the cache."""
    cost_pico_usd: int = 0
    saved_pico_usd: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.requests + other.requests,
            self.cached + other.cached,
            self.tokens + other.tokens,
            self.cost_pico_usd + other.cost_pico_usd,
            self.saved_pico_usd + other.saved_pico_usd,
        )


NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class Line:
    """A team, or a model."""

    name: str
    today: Spent
    month: Spent


@dataclass(frozen=True, slots=True)
class Account:
    """What the ledger has; days and months are those of UTC."""

    as_of_ms: int
    today: Spent
    month: Spent
    days: tuple[tuple[date, Spent], ...]
    """The last `CHART_DAYS`, oldest first, those without use included."""
    teams: tuple[Line, ...]
    """Those that used anything this month, dearest first."""
    models: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """Where a bucket stands in one dimension."""

    per_minute: int
    capacity: int
    """What it holds when it is full: all that could be used at once."""
    remaining: int | None
    """None: whoever keeps it does not answer."""


@dataclass(frozen=True, slots=True)
class TeamNow:
    """Where a team's limits and budgets stand."""

    name: str
    tier: str
    requests: Level | None
    """As of this moment; None where there is no limit."""
    tokens: Level | None
    max_parallel: int | None
    budgets: tuple[BudgetView, ...]


@dataclass(frozen=True, slots=True)
class UpstreamNow:
    """How an upstream is, over all processes."""

    name: str
    level: int
    """0 it is called, 1 one request tries it out, 2 it rests after failures."""
    keys_resting: int
    requests: int
    """That it was asked for since the start."""
    errors: int
    """Calls without a usable answer since the start."""


@dataclass(frozen=True, slots=True)
class Now:
    """What the metrics say at this moment."""

    in_flight: int
    queued: int
    spool_lag_seconds: float
    degraded: tuple[str, ...]
    """Stores that are away."""
    upstreams: tuple[UpstreamNow, ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """All that an operator is shown."""

    at_ms: int
    version: str
    now: Now
    account: Account | None
    """None: the ledger does not answer."""
    teams: Sequence[TeamNow] | None
    """By name, the first so many; None: the database does not answer."""
    more_teams: int
    """Teams beyond those."""
    refusals: tuple[Refusal, ...]


def levels_of(scope: Scope, standing: Standing, now_ms: int) -> tuple[Level | None, Level | None]:
    """Requests and tokens of one bucket."""
    limits = scope.schedule.limits_at(now_ms)
    return (
        _level(standing.requests, limits.requests_per_minute, limits.effective_request_capacity),
        _level(standing.tokens, limits.tokens_per_minute, limits.effective_token_capacity),
    )


def _level(gauge: Gauge | None, per_minute: int | None, capacity: int | None) -> Level | None:
    if per_minute is None or capacity is None:
        return None
    return Level(per_minute, capacity, None if gauge is None else max(0, min(capacity, gauge.remaining)))


def first_day(now_ms: int) -> date:
    """The first day that an account at `now_ms` is made of."""
    today = _day_of(now_ms)
    return min(today.replace(day=1), today - timedelta(days=CHART_DAYS - 1))


def account_of(rows: Iterable[UsageRow], axes: Sequence[Axis], now_ms: int) -> Account:
    """Sum up rows since `first_day`, by `axes`, in one pass; a clock that is behind sees days ahead as today."""
    today = _day_of(now_ms)
    month = today.replace(day=1)
    at = {axis: place for place, axis in enumerate(axes)}
    days: dict[date, Spent] = {}
    of_today: dict[Axis, dict[str, Spent]] = {Axis.TEAM: {}, Axis.MODEL: {}}
    of_month: dict[Axis, dict[str, Spent]] = {Axis.TEAM: {}, Axis.MODEL: {}}
    for row in rows:
        spent, day = _spent(row), min(today, date.fromisoformat(row.group[at[Axis.DAY]]))
        days[day] = days.get(day, NOTHING) + spent
        if day < month:
            continue
        for axis, named in of_month.items():
            name = row.group[at[axis]] if axis in at else ""
            named[name] = named.get(name, NOTHING) + spent
            if day == today:
                of_today[axis][name] = of_today[axis].get(name, NOTHING) + spent
    shown = [today - timedelta(days=back) for back in reversed(range(CHART_DAYS))]
    return Account(
        as_of_ms=now_ms,
        today=days.get(today, NOTHING),
        month=sum((spent for day, spent in days.items() if day >= month), NOTHING),
        days=tuple((day, days.get(day, NOTHING)) for day in shown),
        teams=_lines(of_today[Axis.TEAM], of_month[Axis.TEAM]),
        models=_lines(of_today[Axis.MODEL], of_month[Axis.MODEL]),
    )


def _lines(today: dict[str, Spent], month: dict[str, Spent]) -> tuple[Line, ...]:
    lines = (Line(name, today.get(name, NOTHING), spent) for name, spent in month.items())
    return tuple(sorted(lines, key=lambda line: (-line.month.cost_pico_usd, -line.month.requests, line.name)))


def _spent(row: UsageRow) -> Spent:
    tokens = row.usage.input_tokens + row.usage.output_tokens
    return Spent(row.requests, row.cached, tokens, row.cost_pico_usd, row.saved_pico_usd)


def _day_of(at_ms: int) -> date:
    return _EPOCH + timedelta(days=at_ms // _DAY_MS)
