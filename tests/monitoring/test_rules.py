"""Rules and alerts of Prometheus: valid, tested to the threshold, explained, and of metrics that there are."""

from __future__ import annotations

import re
import shutil
from collections import defaultdict

import pytest
from ruamel.yaml import YAML

from proxy.adapters.prometheus_declared import declared
from proxy.cli import main
from tests.support.prometheus_server import ALERT_RULES, PROMETHEUS_DIR, RECORDING_RULES, promtool
from tests.support.promql import labels_asked, metrics_named, misformed, whole_names
from tests.support.tollgate_process import ROOT

TESTS = sorted((PROMETHEUS_DIR / "tests").glob("*.yml"))
TESTS_OF_ALERTS = [path for path in TESTS if "alert_rule_test" in path.read_text()]
RUNBOOK = (PROMETHEUS_DIR / "RUNBOOK.md").read_text()


def read(path):
    return YAML(typ="safe").load(path.read_text())


RECORDED = {rule["record"]: rule["expr"] for group in read(RECORDING_RULES)["groups"] for rule in group["rules"]}
ALERTS = {rule["alert"]: rule for group in read(ALERT_RULES)["groups"] for rule in group["rules"]}
DECLARED = {metric.name: frozenset(metric.labels) for metric in declared()}


def labels_of_recorded(expression):
    """A recorded series has the labels of the first aggregation that makes it."""
    return frozenset(re.search(r"\bby \(([^()]*)\)", expression)[1].replace(",", " ").split()) - {"le"}


KNOWN = DECLARED | {name: labels_of_recorded(expression) for name, expression in RECORDED.items()}
EXPRESSIONS = {**RECORDED, **{name: rule["expr"] for name, rule in ALERTS.items()}}


def test_prometheus_takes_the_settings_and_the_rules():
    for arguments in (
        ("check", "config", PROMETHEUS_DIR / "prometheus.yml"),
        ("check", "rules", RECORDING_RULES, ALERT_RULES),
    ):
        checked = promtool(*arguments)
        assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 rule files found" in promtool("check", "config", PROMETHEUS_DIR / "prometheus.yml").stdout


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_unit_tests_say(path):
    tested = promtool("test", "rules", path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_is_seen_to_fire_and_not_to_before_and_afterwards():
    seen = defaultdict(list)
    for path in TESTS:
        content = read(path)
        groups = {group["name"] for file in (RECORDING_RULES, ALERT_RULES) for group in read(file)["groups"]}
        # One that is not named here would be evaluated at any time, before what it asks for.
        assert set(content["group_eval_order"]) == groups
        for test in content["tests"]:
            for each in test.get("alert_rule_test", ()):
                seen[each["alertname"], test["name"]].append(bool(each["exp_alerts"]))
    proved = {alert for (alert, _), fired in seen.items() if fired[0] is False and True in fired and fired[-1] is False}
    assert proved == ALERTS.keys()


_NUMBER = re.compile(r"(?<=[<>=] )[\d.]+(?= |$)")


def of_one_replica(rule):
    """The rule with nothing added up; None where there is one series for each instance, or no figure is asked for."""
    if "sum by" not in rule["expr"] or re.search(r"sum by \(instance|tollgate_breaker_state", rule["expr"]):
        return None
    return {**rule, "expr": rule["expr"].replace("sum by", "max by")}


MUTATIONS = {
    "the first threshold a tenth lower": lambda rule: scaled(rule, 0, 0.9),
    "the first threshold a tenth higher": lambda rule: scaled(rule, 0, 1.1),
    "the last threshold a tenth lower": lambda rule: scaled(rule, -1, 0.9),
    "the last threshold a tenth higher": lambda rule: scaled(rule, -1, 1.1),
    "no duration": lambda rule: {**rule, "for": "0s"} if "for" in rule else None,
    "one replica for all": of_one_replica,
}


def scaled(rule, which, factor):
    """The rule with one of its numbers moved; None for a rule that only asks whether there was anything at all."""
    numbers = [found for found in _NUMBER.finditer(rule["expr"]) if float(found[0])]
    if not numbers:
        return None
    (start, end), number = numbers[which].span(), float(numbers[which][0])
    return {**rule, "expr": f"{rule['expr'][:start]}{number * factor:.6g}{rule['expr'][end:]}"}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_unit_tests_notice_what_is_moved_in_an_alert(mutation, tmp_path):
    shutil.copytree(PROMETHEUS_DIR, tmp_path / "there")
    content, moved = read(ALERT_RULES), set()
    for group in content["groups"]:
        for number, rule in enumerate(group["rules"]):
            there = MUTATIONS[mutation](rule)
            if there is not None:
                group["rules"][number] = there
                moved.add(rule["alert"])
    with (tmp_path / "there/rules" / ALERT_RULES.name).open("w") as file:
        YAML().dump(content, file)
    tested = promtool("test", "rules", *(tmp_path / "there/tests" / path.name for path in TESTS_OF_ALERTS))
    assert len(moved) >= 10
    assert set(re.findall(r"alertname: (\w+), time:", tested.stdout + tested.stderr)) == moved


MUTATIONS_OF_RECORDED = {
    "a shorter span": (r"\[(5m|15m|1h)\]", lambda span: {"5m": "[2m]", "15m": "[5m]", "1h": "[30m]"}[span[1]]),
    "a longer span": (r"\[(5m|15m|1h)\]", lambda span: {"5m": "[15m]", "15m": "[1h]", "1h": "[2h]"}[span[1]]),
    "one replica for all": (r"sum by \((?!instance)", "max by ("),
    "each replica's figure of what all share": (r"max by", "sum by"),
    "not all outcomes": (r"failed\|unavailable", "unavailable"),
    "another part": (r"0\.99", "0.98"),
}


@pytest.mark.parametrize("mutation", MUTATIONS_OF_RECORDED)
def test_unit_tests_notice_what_is_changed_in_a_recorded_series(mutation, tmp_path):
    shutil.copytree(PROMETHEUS_DIR, tmp_path / "there")
    content, changed = read(RECORDING_RULES), set()
    for group in content["groups"]:
        for rule in group["rules"]:
            there = re.sub(*MUTATIONS_OF_RECORDED[mutation], rule["expr"])
            if there != rule["expr"]:
                changed.add(rule["record"])
                rule["expr"] = there
    with (tmp_path / "there/rules" / RECORDING_RULES.name).open("w") as file:
        YAML().dump(content, file)
    tested = promtool("test", "rules", tmp_path / "there/tests/recorded.yml")
    noticed = set(re.findall(r'expr: "[^"]*?(\w+:\w+:\w+)', tested.stdout + tested.stderr))
    assert changed
    assert noticed == changed


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_ask_for_what_is_declared(name):
    expression = EXPRESSIONS[name]
    assert misformed(expression) is None
    named = metrics_named(expression)
    assert named
    assert {each for each in named if whole_names(each, KNOWN) is None} == set()
    asked = set(labels_asked(expression))
    assert {(metric, label) for metric, label in asked if label not in whole_names(metric, KNOWN)} == set()


def test_recorded_series_are_named_for_what_they_are_and_all_of_use():
    dashboards = "".join(path.read_text() for path in (ROOT / "deploy/grafana/dashboards").glob("*.json"))
    asked = " ".join((*EXPRESSIONS.values(), dashboards))
    for name, expression in RECORDED.items():
        level, metric, _ = name.split(":")
        assert set(level.split("_")) == labels_of_recorded(expression)
        assert metric.startswith("tollgate_")
        assert name in asked


def test_every_alert_says_how_bad_it_is_and_where_to_read_on():
    for name, rule in ALERTS.items():
        assert name.startswith("Tollgate")
        assert rule["labels"] == {"severity": rule["labels"]["severity"]}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}
        path, anchor = rule["annotations"]["runbook"].split("#")
        assert (ROOT / path).read_text() == RUNBOOK
        assert anchor == name.lower()


def test_the_runbook_has_one_paragraph_for_each_alert_in_their_order():
    chapters = re.findall(r"^## (\w+)\n\n((?:.+\n)+)(?:\n|\Z)", RUNBOOK, re.MULTILINE)
    assert [name for name, _ in chapters] == list(ALERTS)
    assert RUNBOOK.count("\n\n") == 1 + 2 * len(chapters)
    assert all(len(text.split()) > 40 for _, text in chapters)


def test_the_runbook_names_what_there_is():
    panels = {
        panel["title"]
        for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")
        for panel in YAML(typ="safe").load(path.read_text())["panels"]
    }
    named = {" ".join(each.split()) for each in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*", RUNBOOK)}
    assert named - {"Tollgate", "Tollgate team", "Status, Targets"} <= panels
    assert set(re.findall(r"`(tollgate_\w+)`", RUNBOOK)) <= DECLARED.keys()
    assert set(re.findall(r"\bsee (Tollgate\w+)", RUNBOOK)) <= ALERTS.keys()


def test_commands_of_the_runbook_are_those_of_the_command_line():
    commands = {" ".join(each.split()) for each in re.findall(r"`tollgate ([^`]+)`", RUNBOOK)}
    assert len(commands) > 8
    for words in map(str.split, commands):
        command, context = main, main.make_context("tollgate", [], resilient_parsing=True)
        while words and hasattr(command, "get_command"):
            command = command.get_command(context, words.pop(0))
            assert command is not None
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, words
