"""The reference of metrics is what the code declares."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from proxy.adapters.prometheus_declared import declared
from proxy.cli import main

REFERENCE = Path(__file__).parents[2] / "deploy/METRICS.md"


def test_the_reference_is_what_the_command_prints():
    printed = CliRunner().invoke(main, ["metrics"], prog_name="tollgate")
    assert printed.exit_code == 0
    assert printed.stdout == REFERENCE.read_text(), "run: tollgate metrics > deploy/METRICS.md"


def test_programs_are_told_the_same():
    printed = json.loads(CliRunner().invoke(main, ["metrics", "--json"], prog_name="tollgate").stdout)
    assert [each["name"] for each in printed] == [metric.name for metric in declared()]
    spend = next(each for each in printed if each["name"] == "tollgate_spend_usd_total")
    assert spend.pop("help").startswith("Cost")
    assert spend == {
        "name": "tollgate_spend_usd_total",
        "kind": "counter",
        "labels": ["team", "model"],
        "unit": "US dollars",
        "over_workers": "sum",
    }


def test_every_metric_is_declared_once_in_base_units_with_labels_that_tell_nothing_of_a_person():
    metrics = declared()
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names) > 40
    for metric in metrics:
        assert re.fullmatch(r"tollgate_[a-z0-9]+(_[a-z0-9]+)*", metric.name)
        assert metric.name.endswith("_total") is (metric.kind == "counter")
        assert not set(metric.name.split("_")) & {
            "ms",
            "milliseconds",
            "minutes",
            "cents",
            "kb",
            "mb",
            "percent",
            "count",
        }
        assert metric.help.endswith(".")
        assert not {"request_id", "path", "user", "address", "method", "le"} & set(metric.labels)
        assert not (metric.kind == "histogram" and "team" in metric.labels), "one series for each team and bucket"


def test_every_metric_of_the_reference_has_a_row_and_every_label_a_meaning():
    text = REFERENCE.read_text()
    for metric in declared():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{metric.name}` |")]
        assert all(f"`{label}`" in row for label in metric.labels)
        assert all(re.search(rf"^\| `{label}` \| \S", text, re.MULTILINE) for label in metric.labels)


def test_what_opentelemetry_is_told_to_be_here_is_here():
    text = REFERENCE.read_text().split("## In OpenTelemetry's words")[1]
    named = set(re.findall(r"`(tollgate_\w+)`", text))
    assert named <= {metric.name for metric in declared()}
    labels = {label for metric in declared() for label in metric.labels}
    assert set(re.findall(r"label `(\w+)`", text)) <= labels
