"""What expressions are held to declarations by sees what is wrong with them."""

from __future__ import annotations

import pytest

from tests.support.promql import labels_asked, metrics_named, misformed, whole_names

DECLARED = {"tollgate_spend_usd_total": frozenset({"team"}), "tollgate_wait_seconds": frozenset({"queue"})}


@pytest.mark.parametrize(
    ("expression", "named"),
    [
        ("tollgate_a", {"tollgate_a"}),
        ('sum by (team) (rate(tollgate_a_total{team=~"$team"}[5m])) / tollgate_b', {"tollgate_a_total", "tollgate_b"}),
        ("team:tollgate_a:rate5m > 0 and up == 1", {"team:tollgate_a:rate5m", "up"}),
        ('tollgate_a{text="up tollgate_b{} sum(x)"}', {"tollgate_a"}),
        ("time() - scalar(days_in_month())", set()),
        ("upstream", set()),
    ],
)
def test_metrics_are_found(expression, named):
    assert metrics_named(expression) == named


@pytest.mark.parametrize(
    ("expression", "asked"),
    [
        ('tollgate_a{team="x", model=~"a|b=c"}', {("tollgate_a", "team"), ("tollgate_a", "model")}),
        (
            "sum by (x, le) (rate(tollgate_a[5m]) / up)",
            {("tollgate_a", "x"), ("tollgate_a", "le"), ("up", "x"), ("up", "le")},
        ),
        ("max(max by (team) (tollgate_a)) / sum(tollgate_b)", {("tollgate_a", "team")}),
        ("topk(3, sum by (x) (tollgate_a))", {("tollgate_a", "x")}),
        ('sum by (y) (tollgate_a{z!~"}) by (q"})', {("tollgate_a", "y"), ("tollgate_a", "z")}),
    ],
)
def test_labels_are_found_with_the_metric_they_are_asked_of(expression, asked):
    assert set(labels_asked(expression)) == asked


@pytest.mark.parametrize("expression", ["sum(a) by (team)", "sum without (team) (a)", "sum (a) by(team)"])
def test_what_cannot_be_read_is_refused(expression):
    assert misformed(expression)


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("tollgate_spend_usd_total", {"team", "instance", "job"}),
        ("tollgate_wait_seconds_bucket", {"queue", "le", "instance", "job"}),
        ("tollgate_wait_seconds_count", {"queue", "instance", "job"}),
        ("up", {"instance", "job"}),
        ("tollgate_spend_usd", None),
        ("tollgate_spent_usd_total", None),
    ],
)
def test_a_series_has_the_labels_of_its_declaration_or_there_is_none(name, labels):
    assert whole_names(name, DECLARED) == labels
