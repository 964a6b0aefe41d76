"""Exports of the ledger that are longer than a screen."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import date, timedelta
from types import GeneratorType

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from proxy.adapters.sql.tables import usage_daily
from proxy.app import open_database, open_reports
from proxy.cli import main
from proxy.cli.usage import _progress
from proxy.core.registry import Axis
from proxy.settings import load

DAYS, MODELS = 60, 50
AXES = ("--by", "day,model", "--since", "2026-01-01")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    place = tmp_path_factory.mktemp("ledger")
    rows = [row(day, model) for day in range(DAYS) for model in range(MODELS)]
    with open_database(load(None, {}, {"data_dir": str(place)})) as engine, engine.begin() as connection:
        connection.execute(insert(usage_daily), rows)
    return place


def row(day, model):
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    key = {"day": date(2026, 1, 1) + timedelta(days=day), "team": "growth", "key_id": "k", "endpoint": "chat"}
    names = {"model": f"m{model:02d}", "upstream": "openai"}
    return {**zeros, **key, **names, "requests": 1, "input_tokens": day, "cost_pico_usd": 10**12 + model}


@pytest.fixture
def run(data_dir):
    return lambda *arguments: CliRunner().invoke(main, ["usage", *arguments, "--data-dir", str(data_dir)])


def test_json_and_csv_say_the_same_exactly(run):
    told = json.loads(run(*AXES, "--json").stdout)
    assert len(told) == DAYS * MODELS
    assert (told[0]["day"], told[0]["model"], told[1]["cost_usd"]) == ("2026-01-01", "m00", "1.000000000001")
    shown = list(csv.DictReader(io.StringIO(run(*AXES, "--csv").stdout)))
    assert shown == [{name: str(value) for name, value in each.items()} for each in told]


def test_json_is_what_json_dumps_writes(run):
    for since in ("2026-01-01", "2026-02-28", "2026-03-01", "2030-01-01"):
        text = run("--by", "day", "--since", since, "--until", "2031-01-01", "--json").stdout
        assert text == json.dumps(json.loads(text)) + "\n"


def test_columns_are_stable(run):
    header = run(*AXES, "--csv").stdout.partition("\n")[0]
    assert header == (
        "day,model,requests,cached,estimated,input_tokens,cached_input_tokens,output_tokens,reasoning_tokens,"
        "saved_input_tokens,saved_output_tokens,cost_usd,saved_usd"
    )


def test_rows_come_from_the_database_as_they_are_read(data_dir):
    with open_reports(load(None, {}, {"data_dir": str(data_dir)})) as reports:
        axes = (Axis.MODEL, Axis.DAY)
        rows = reports.each_usage(axes)
        assert isinstance(rows, GeneratorType)
        assert next(rows).group == ("m00", "2026-01-01")
        rows.close()
        assert list(reports.each_usage(axes)) == reports.usage(axes)
        assert reports.count_usage(axes) == DAYS * MODELS
        assert reports.count_usage((Axis.DAY,), team="growth") == DAYS
        assert reports.count_usage((Axis.DAY,), team="nobody") == 0
        assert reports.count_usage(()) == len(reports.usage(())) == 1


class Screen(io.StringIO):
    def isatty(self):
        return True


def watched(monkeypatch, length, *, stderr, stdout):
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", stdout)
    asked = []
    with _progress(range(length), lambda: asked.append(length) or length) as rows:
        assert list(rows) == list(range(length))
    return stderr.getvalue(), asked


def test_a_long_export_that_somebody_watches_shows_how_far_it_is(monkeypatch):
    shown, _ = watched(monkeypatch, 10_000, stderr=Screen(), stdout=io.StringIO())
    assert "exporting" in shown
    assert "100%" in shown


@pytest.mark.parametrize(
    ("length", "stderr", "stdout", "asks"),
    [
        (9_999, Screen, io.StringIO, [9_999]),
        (10_000, io.StringIO, io.StringIO, []),
        (10_000, Screen, Screen, []),
    ],
)
def test_otherwise_nothing_is_shown(monkeypatch, length, stderr, stdout, asks):
    assert watched(monkeypatch, length, stderr=stderr(), stdout=stdout()) == ("", asks)


def test_who_has_seen_enough_may_stop_reading(data_dir):
    command = [sys.executable, "-m", "proxy", "usage", *AXES, "--csv", "--data-dir", str(data_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as export:
        assert export.stdout.readline().startswith("day,model,")
        export.stdout.close()
        assert export.stderr.read() == ""
        export.wait(60)
