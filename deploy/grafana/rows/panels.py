"""Panels in Grafana's classic JSON model: what they have in common is said here, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

__all__ = ["DATA_SOURCE", "Panel", "Row", "bars", "dashboard", "lines", "link", "number", "states", "table", "variable"]

Panel = dict[str, Any]
Row = tuple[str, Sequence[Panel]]
Query = tuple[str, str]
"""An expression, and the legend of its series."""

SCHEMA_VERSION = 42
"""Of the dashboards of Grafana 13; older versions read it, and leave out what they do not know."""
_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_COLUMNS = 24


DATA_SOURCE: dict[str, Any] = {
    "label": "Data source",
    "name": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "type": "datasource",
}
"""The variable that all queries go to."""


def variable(name: str, label: str, query: str, *, several: bool) -> dict[str, Any]:
    """A choice among the values of a label: one, or several and at first all."""
    everything = {"allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]}}
    return {
        **(everything if several else {}),
        "datasource": _DATA_SOURCE,
        "includeAll": several,
        "label": label,
        "multi": several,
        "name": name,
        "query": {"qryType": 1, "query": query, "refId": name},
        "refresh": 2,
        # Requests that nobody was recognised for have no team, and some no model.
        "regex": "/.+/",
        "sort": 1,
        "type": "query",
    }


def link(title: str, tooltip: str, path: str) -> dict[str, Any]:
    """To another dashboard, with the time range and what is chosen."""
    return {
        "asDropdown": False,
        "icon": "dashboard",
        "includeVars": True,
        "keepTime": True,
        "tags": [],
        "targetBlank": False,
        "title": title,
        "tooltip": tooltip,
        "type": "link",
        "url": path,
    }


def number(
    title: str, says: str, query: str, unit: str, *, empty: str, width: int = 4, steps: Sequence[tuple[str, float]] = ()
) -> Panel:
    """One figure of the whole time range. `steps`: colours, each from a value on."""
    return _panel("stat", title, says, unit, empty, width=width, height=4, steps=steps) | {
        "options": {
            "colorMode": "value" if steps else "none",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
        "targets": _targets([(query, "")], instant=True),
    }


def lines(
    title: str,
    says: str,
    queries: Sequence[Query],
    unit: str,
    *,
    empty: str,
    width: int = 8,
    stacked: bool = False,
    exemplars: bool = False,
    link: bool = False,
) -> Panel:
    """Figures over time. `link`: from a series to the page of its team."""
    panel = _panel("timeseries", title, says, unit, empty, width=width, height=8)
    custom = {
        "drawStyle": "line",
        "fillOpacity": 25 if stacked else 8,
        "lineWidth": 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
    }
    panel["fieldConfig"]["defaults"] |= {"color": {"mode": "palette-classic-by-name"}, "custom": custom, "min": 0}
    if link:
        panel["fieldConfig"]["defaults"]["links"] = [_team_link("${__field.labels.team}")]
    return panel | {
        "options": {
            "legend": {
                "calcs": ["lastNotNull", "max"],
                "displayMode": "table",
                "placement": "bottom",
                "showLegend": True,
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": _targets(queries, exemplars=exemplars),
    }


def bars(title: str, says: str, query: Query, unit: str, *, empty: str, width: int = 8, link: bool = False) -> Panel:
    """Figures of the whole time range beside each other, the largest first."""
    panel = _panel("bargauge", title, says, unit, empty, width=width, height=8)
    panel["fieldConfig"]["defaults"] |= {"color": {"mode": "continuous-BlPu"}, "min": 0}
    if link:
        panel["fieldConfig"]["defaults"]["links"] = [_team_link("${__field.labels.team}")]
    return panel | {
        "options": {
            "displayMode": "basic",
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
            "maxVizHeight": 32,
            "minVizHeight": 16,
            "minVizWidth": 8,
            "namePlacement": "left",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": False,
            "sizing": "auto",
            "valueMode": "text",
        },
        "targets": _targets([query], instant=True),
    }


def states(
    title: str, says: str, query: Query, names: Sequence[tuple[str, str]], *, empty: str, width: int = 8
) -> Panel:
    """What was in which state when; `names` are those of 0, 1 and so on, each with its colour."""
    panel = _panel("state-timeline", title, says, "none", empty, width=width, height=8)
    named = {str(value): {"color": color, "index": value, "text": text} for value, (text, color) in enumerate(names)}
    panel["fieldConfig"]["defaults"] |= {
        "color": {"mode": "thresholds"},
        "custom": {"fillOpacity": 70, "lineWidth": 0},
        "mappings": [{"options": named, "type": "value"}],
    }
    return panel | {
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "mergeValues": True,
            "rowHeight": 0.8,
            "showValue": "auto",
            "tooltip": {"mode": "single", "sort": "none"},
        },
        "targets": _targets([query]),
    }


def table(
    title: str,
    says: str,
    columns: Sequence[tuple[str, str, str]],
    unit: str,
    *,
    empty: str,
    width: int = 12,
    link: bool,
) -> Panel:
    """A row for each set of labels. `columns`: a heading, its expression and its unit."""
    panel = _panel("table", title, says, unit, empty, width=width, height=8)
    refs = "ABCDEFGH"
    overrides = [
        {
            "matcher": {"id": "byName", "options": f"Value #{ref}"},
            "properties": [{"id": "displayName", "value": heading}, {"id": "unit", "value": each}]
            + (
                [{"id": "custom.cellOptions", "value": {"mode": "basic", "type": "gauge"}}, {"id": "max", "value": 1}]
                if each == "percentunit"
                else []
            ),
        }
        for ref, (heading, _, each) in zip(refs, columns, strict=False)
    ]
    if link:
        overrides.append(
            {
                "matcher": {"id": "byName", "options": "team"},
                "properties": [{"id": "links", "value": [_team_link("${__value.text}")]}],
            }
        )
    panel["fieldConfig"]["overrides"] = overrides
    panel["fieldConfig"]["defaults"]["custom"] = {
        "align": "auto",
        "cellOptions": {"type": "auto"},
        "filterable": False,
        "inspect": False,
    }
    targets = _targets([(query, "") for _, query, _ in columns], instant=True)
    return panel | {
        "options": {"cellHeight": "sm", "showHeader": True},
        "targets": [target | {"format": "table"} for target in targets],
        "transformations": [
            {"id": "merge", "options": {}},
            {"id": "organize", "options": {"excludeByName": {"Time": True}, "indexByName": {}, "renameByName": {}}},
        ],
    }


def dashboard(
    uid: str, title: str, says: str, variables: Sequence[dict[str, Any]], rows: Sequence[Row], link: dict[str, Any]
) -> dict[str, Any]:
    """A whole dashboard: panels side by side from the left, a new line where one has no room."""
    return {
        "annotations": {
            "list": [
                {
                    "builtIn": 1,
                    "datasource": {"type": "grafana", "uid": "-- Grafana --"},
                    "enable": True,
                    "hide": True,
                    "iconColor": "rgba(0, 211, 255, 1)",
                    "name": "Annotations & Alerts",
                    "type": "dashboard",
                }
            ]
        },
        "description": says,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "id": None,
        "links": [link],
        "panels": list(_placed(rows)),
        "refresh": "30s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["tollgate"],
        "templating": {"list": list(variables)},
        "time": {"from": "now-24h", "to": "now"},
        "timepicker": {},
        "timezone": "utc",
        "title": title,
        "uid": uid,
        "version": 1,
    }


def _panel(
    kind: str,
    title: str,
    says: str,
    unit: str,
    empty: str,
    *,
    width: int,
    height: int,
    steps: Sequence[tuple[str, float]] = (),
) -> Panel:
    colours = [{"color": "green", "value": None}, *({"color": colour, "value": value} for colour, value in steps)]
    return {
        "type": kind,
        "title": title,
        "description": says,
        "datasource": _DATA_SOURCE,
        "gridPos": {"w": width, "h": height},
        "fieldConfig": {
            "defaults": {"noValue": empty, "thresholds": {"mode": "absolute", "steps": colours}, "unit": unit},
            "overrides": [],
        },
    }


def _targets(queries: Iterable[Query], *, instant: bool = False, exemplars: bool = False) -> list[dict[str, Any]]:
    return [
        {
            "datasource": _DATA_SOURCE,
            "editorMode": "code",
            "exemplar": exemplars,
            "expr": expression,
            "instant": instant,
            "legendFormat": legend or "__auto",
            "range": not instant,
            "refId": ref,
        }
        for ref, (expression, legend) in zip("ABCDEFGH", queries, strict=False)
    ]


def _team_link(team: str) -> dict[str, Any]:
    url = f"/d/tollgate-team/tollgate-team?var-team={team}&var-datasource=${{datasource}}&${{__url_time_range}}"
    return {"targetBlank": False, "title": f"Team {team}", "url": url}


def _placed(rows: Sequence[Row]) -> Iterator[Panel]:
    top, number_of_panel = 0, 0
    for title, panels in rows:
        number_of_panel += 1
        place = {"h": 1, "w": _COLUMNS, "x": 0, "y": top}
        yield {"collapsed": False, "gridPos": place, "id": number_of_panel, "panels": [], "title": title, "type": "row"}
        top, left, tallest = top + 1, 0, 0
        for panel in panels:
            width, height = panel["gridPos"]["w"], panel["gridPos"]["h"]
            if left + width > _COLUMNS:
                top, left, tallest = top + tallest, 0, 0
            number_of_panel += 1
            yield panel | {"id": number_of_panel, "gridPos": {"h": height, "w": width, "x": left, "y": top}}
            left, tallest = left + width, max(tallest, height)
        top += tallest
