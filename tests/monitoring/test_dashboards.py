"""The dashboards: what the script builds, of metrics that there are, and readable by whoever looks at them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations

import pytest
from ruamel.yaml import YAML

from proxy.adapters.prometheus_declared import declared
from tests.support.promql import labels_asked, metrics_named, misformed, whole_names
from tests.support.tollgate_process import ROOT

GRAFANA = ROOT / "deploy/grafana"
PAGES = {path.name: json.loads(path.read_text()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
DECLARED = {metric.name: frozenset(metric.labels) for metric in declared()}
PANELS = [
    pytest.param(page, panel, id=f"{name}-{panel['title']}")
    for name, page in PAGES.items()
    for panel in page["panels"]
    if panel["type"] != "row"
]
UNITS = {"currencyUSD", "percentunit", "reqps", "short", "s", "bytes", "dtdurations", "none"}
VARIABLES = {"datasource", "team", "model"}
OF_GRAFANA = {"__rate_interval", "__range"}
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def expressions(panel):
    return [target["expr"] for target in panel["targets"]]


def test_the_files_are_what_the_script_builds(tmp_path):
    build = "import sys; sys.path.insert(0, sys.argv[1]); import build, json; print(json.dumps(dict(build.written())))"
    built = subprocess.run([sys.executable, "-B", "-c", build, GRAFANA], capture_output=True, text=True, check=True)
    files = {path.name: path.read_text() for path in (GRAFANA / "dashboards").iterdir()}
    assert json.loads(built.stdout) == files, "run: python deploy/grafana/build.py"


def test_there_are_two_with_their_rows_money_first():
    rows = {name: [each["title"] for each in page["panels"] if each["type"] == "row"] for name, page in PAGES.items()}
    assert rows == {
        "tollgate.json": ["Money", "Traffic", "Latency", "Upstream", "Cache", "Health"],
        "tollgate-team.json": ["Money", "Traffic", "Latency", "Cache"],
    }
    for name, page in PAGES.items():
        assert page["uid"] == name.removesuffix(".json")
        assert page["panels"][0]["title"] == "Money"
        assert page["schemaVersion"] == 42
        assert page["id"] is None
        assert page["timezone"] == "utc", "days and months of the ledger are those of UTC"
        assert page["description"].endswith(".")


@pytest.mark.parametrize("name", PAGES)
def test_the_variables(name):
    listed = {each["name"]: each for each in PAGES[name]["templating"]["list"]}
    assert list(listed) == ["datasource", "team", "model"]
    assert listed["datasource"]["type"] == "datasource"
    assert listed["datasource"]["query"] == "prometheus"
    for variable in ("team", "model"):
        each = listed[variable]
        assert each["datasource"] == DATA_SOURCE
        metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", each["query"]["query"]).groups()
        assert label == variable
        assert label in DECLARED[metric]
        assert each["regex"] == "/.+/", "requests of nobody have no team"
        assert ("allValue" in each) is each["includeAll"] is each["multi"]
    assert listed["team"]["multi"] is (name == "tollgate.json")
    assert listed["model"]["multi"] is True


def test_each_leads_to_the_other_with_time_and_choice():
    for name, other in (("tollgate.json", "tollgate-team"), ("tollgate-team.json", "tollgate")):
        (link,) = PAGES[name]["links"]
        assert link["url"] == f"/d/{other}/{other}"
        assert link["keepTime"] is link["includeVars"] is True
        assert link["title"] == PAGES[f"{other}.json"]["title"]
        assert link["tooltip"]


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_a_panel_can_be_read_without_knowing_the_code(page, panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert len(panel["description"].split()) > 3
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"] in UNITS
    assert defaults["noValue"].strip()
    assert "tollgate_" not in panel["title"] + panel["description"] + defaults["noValue"]


@pytest.mark.parametrize("name", PAGES)
def test_titles_and_ids_are_unique_and_panels_lie_beside_each_other(name):
    panels = PAGES[name]["panels"]
    for key in ("id", "title"):
        assert len({panel[key] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["w"] > 0 and place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("name", PAGES)
def test_lines_of_panels_are_full(name):
    """No holes: panels that begin at one height fill the width."""
    lines = {}
    for panel in PAGES[name]["panels"]:
        place = panel["gridPos"]
        lines[place["y"]] = lines.get(place["y"], 0) + place["w"]
    assert set(lines.values()) == {24}


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_queries_go_to_the_chosen_data_source_and_ask_for_what_is_declared(page, panel):
    assert panel["datasource"] == DATA_SOURCE
    assert panel["targets"]
    refs = [target["refId"] for target in panel["targets"]]
    assert len(set(refs)) == len(refs)
    for target in panel["targets"]:
        assert target["datasource"] == DATA_SOURCE
        assert target["instant"] is not target["range"]
        expression = target["expr"]
        assert misformed(expression) is None
        named = metrics_named(expression)
        assert named
        assert {name for name in named if whole_names(name, DECLARED) is None} == set()
        asked = set(labels_asked(expression))
        assert {(name, label) for name, label in asked if label not in whole_names(name, DECLARED)} == set()
        assert set(re.findall(r"\$\{?(\w+)", expression)) <= VARIABLES | OF_GRAFANA
        shown = set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
        assert shown <= {label for _, label in asked}, "a legend of a label that the series does not have"


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_counters_are_never_summed_up_raw(page, panel):
    for expression in expressions(panel):
        counted = {name for name in metrics_named(expression) if name.endswith(("_total", "_count", "_bucket", "_sum"))}
        for name in counted:
            every = len(re.findall(rf"\b{name}\b", expression))
            risen = re.findall(rf"\b(rate|increase)\({name}(?:\{{[^}}]*\}})?\[(\$\w+)\]\)", expression)
            assert len(risen) == every, f"{name} is not taken the rate of: {expression}"
            # Rates follow the resolution of the screen, totals the chosen time.
            assert set(risen) <= {("rate", "$__rate_interval"), ("increase", "$__range")}
        over_range = "$__range" in expression
        assert not (over_range and panel["type"] == "timeseries"), "a total has no course"


@pytest.mark.parametrize(("page", "panel"), PANELS)
def test_figures_that_every_replica_has_are_taken_once_and_others_are_added_up(page, panel):
    shared = {"tollgate_ledger_spend_usd", "tollgate_budget_spent_usd", "tollgate_budget_limit_usd"}
    for expression in expressions(panel):
        for name in metrics_named(expression) & shared:
            every = len(re.findall(rf"\b{name}\b", expression))
            assert len(re.findall(rf"max by \([\w, ]+\) \({name}", expression)) == every


def test_what_is_of_one_team_is_chosen_by_its_name_on_its_page():
    """Never by a pattern: `a.b` is a name, and as a pattern it would be that of `a-b` too."""
    page = PAGES["tollgate-team.json"]
    asked = [expression for panel in page["panels"] if "targets" in panel for expression in expressions(panel)]
    asked += [each["query"]["query"] for each in page["templating"]["list"] if each["name"] == "model"]
    assert len(asked) > 20
    for expression in asked:
        assert '=~"$team"' not in expression
        for name in metrics_named(expression):
            if "team" in whole_names(name, DECLARED):
                assert len(re.findall(rf'{name}{{[^}}]*\bteam="\$team"', expression)) == expression.count(name)


def test_what_the_dashboards_are_to_show_is_there():
    of = {name: {panel["title"] for panel in page["panels"]} for name, page in PAGES.items()}
    money = {
        "Spend in range",
        "Today",
        "Month to date",
        "Month, projected",
        "Spend per hour",
        "Spend by model",
        "Budgets",
    }
    assert money | {"Saved by the cache in range", "Spend by team"} <= of["tollgate.json"]
    assert money <= of["tollgate-team.json"]
    assert {"Requests by outcome", "Refused, by limit", "Refused, by team", "In flight and waiting"} <= of[
        "tollgate.json"
    ]
    assert {"Requests", "First token", "Tollgate's own time"} <= of["tollgate.json"]
    assert {"Errors, by kind", "Calls made again", "Breakers", "Left of upstream's own limits"} <= of["tollgate.json"]
    assert {"Hit ratio in range", "Shared in range"} <= of["tollgate.json"]


def test_every_metric_is_shown_or_alerted_on_or_said_not_to_be():
    rules = "".join(path.read_text() for path in (ROOT / "deploy/prometheus/rules").iterdir())
    used = metrics_named(rules + " ".join(e for _, panel in (p.values for p in PANELS) for e in expressions(panel)))
    bare = {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} | used
    # What is of use to whoever hunts for a cause, and would crowd a page.
    for_hunters = {
        "tollgate_breaker_openings_total",
        "tollgate_limiter_forgotten_debts_total",
        "tollgate_store_clock_steps_total",
        "tollgate_store_events_total",
    }
    assert DECLARED.keys() - bare == for_hunters


def test_grafana_is_told_where_the_data_and_the_dashboards_are():
    source = YAML(typ="safe").load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    (prometheus,) = source["datasources"]
    assert prometheus["uid"] == "tollgate-prometheus"
    assert prometheus["type"] == "prometheus"
    scraped = YAML(typ="safe").load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert prometheus["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]
    providers = YAML(typ="safe").load((GRAFANA / "provisioning/dashboards/tollgate.yml").read_text())
    (provider,) = providers["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"] == "/etc/grafana/dashboards"


def test_links_of_series_name_what_the_series_has():
    for param in PANELS:
        _, panel = param.values
        for link in panel["fieldConfig"]["defaults"].get("links", ()):
            assert link["url"].startswith("/d/tollgate-team/tollgate-team?var-team=${__field.labels.team}&")
            assert "${__url_time_range}" in link["url"]
            assert "var-datasource=${datasource}" in link["url"]
            assert all("by (team)" in expression for expression in expressions(panel))
