"""The few forms that queries have. Rates are over the resolution of the screen, totals over the chosen range."""

from __future__ import annotations

__all__ = [
    "MODEL",
    "ONE_TEAM",
    "TEAM",
    "TEAM_MODEL",
    "join",
    "most",
    "p95",
    "per_hour",
    "per_minute",
    "per_second",
    "quantiles",
    "total",
]

TEAM = 'team=~"$team"'
ONE_TEAM = 'team="$team"'
MODEL = 'model=~"$model"'
TEAM_MODEL = f"{TEAM}, {MODEL}"


def join(*parts: str) -> str:
    """Selectors of labels, put together."""
    return ", ".join(part for part in parts if part)


def per_second(counter: str, by: str = "", where: str = "") -> str:
    """Its speed."""
    return f"sum{_by(by)}(rate({_series(counter, where)}[$__rate_interval]))"


def per_minute(counter: str, by: str = "", where: str = "") -> str:
    """Its speed, for what is rare."""
    return f"{per_second(counter, by, where)} * 60"


def per_hour(counter: str, by: str = "", where: str = "") -> str:
    """Its speed, for what is rarer or costs money."""
    return f"{per_second(counter, by, where)} * 3600"


def total(counter: str, by: str = "", where: str = "") -> str:
    """What it grew by in the chosen range."""
    return f"sum{_by(by)}(increase({_series(counter, where)}[$__range]))"


def most(counter: str, by: str, where: str = "") -> str:
    """The fifteen largest totals, in their order."""
    return f"sort_desc(topk(15, {total(counter, by, where)}))"


def p95(histogram: str, by: str, where: str = "") -> str:
    """What 95 of 100 stay below."""
    rate = per_second(f"{histogram}_bucket", f"{by}, le", where)
    return f"histogram_quantile(0.95, {rate})"


def quantiles(histogram: str, where: str = "") -> list[tuple[str, str]]:
    """What half, 95 and 99 of 100 stay below."""
    rate = per_second(f"{histogram}_bucket", "le", where)
    return [(f"histogram_quantile({part}, {rate})", f"p{round(part * 100)}") for part in (0.5, 0.95, 0.99)]


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


def _series(name: str, where: str) -> str:
    return f"{name}{{{where}}}" if where else name
