"""Writes the dashboards: `python deploy/grafana/build.py`.

What is on them is said in `rows`, a module for each row; how a panel looks in `rows/panels.py`.
"""  # noqa: INP001 - a script

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from rows.cache import cache, team_cache
from rows.health import health
from rows.latency import latency, team_latency
from rows.money import budgets, figures, money, spend_by_model, spend_over_time
from rows.panels import DATA_SOURCE, dashboard, link, variable
from rows.queries import ONE_TEAM, TEAM
from rows.traffic import team_traffic, traffic
from rows.upstream import upstream

_DASHBOARDS = Path(__file__).parent / "dashboards"
_TEAMS = "label_values(tollgate_requests_total, team)"
_MODELS = variable("model", "Model", f"label_values(tollgate_tokens_total{{{TEAM}}}, model)", several=True)


def tollgate() -> dict[str, Any]:
    """All teams, money first."""
    return dashboard(
        "tollgate",
        "Tollgate",
        "What all teams spend, what they ask for, what they get, and whether Tollgate is well.",
        [DATA_SOURCE, variable("team", "Team", _TEAMS, several=True), _MODELS],
        [
            ("Money", money()),
            ("Traffic", traffic()),
            ("Latency", latency()),
            ("Upstream", upstream()),
            ("Cache", cache()),
            ("Health", health()),
        ],
        link("Tollgate team", "One team, over the same time", "/d/tollgate-team/tollgate-team"),
    )


def tollgate_team() -> dict[str, Any]:
    """One team."""
    page = dashboard(
        "tollgate-team",
        "Tollgate team",
        "What one team spends, what it asks for, and what it is refused.",
        [DATA_SOURCE, variable("team", "Team", _TEAMS, several=False), _MODELS],
        [
            ("Money", [*figures(), spend_over_time("model"), spend_by_model(12), budgets(link=False, width=24)]),
            ("Traffic", team_traffic()),
            ("Latency", team_latency()),
            ("Cache", team_cache()),
        ],
        link("Tollgate", "All teams, over the same time", "/d/tollgate/tollgate"),
    )
    return _of_one_team(page)


def _of_one_team(part: Any) -> Any:
    """The dots of a name would match any character of another's."""
    if isinstance(part, dict):
        return {key: _of_one_team(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_of_one_team(value) for value in part]
    return part.replace(TEAM, ONE_TEAM) if isinstance(part, str) else part


def written() -> Mapping[str, str]:
    """The files by their names."""
    pages = {"tollgate.json": tollgate(), "tollgate-team.json": tollgate_team()}
    return {name: json.dumps(page, indent=2, sort_keys=True) + "\n" for name, page in pages.items()}


if __name__ == "__main__":
    for name, text in written().items():
        (_DASHBOARDS / name).write_text(text)
