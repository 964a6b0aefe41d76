"""The ledger against OpenAI's exports, from the command line."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from proxy.adapters.sql.tables import usage_daily
from proxy.app import open_database
from proxy.cli import main
from proxy.settings import load

DAY = date(2026, 11, 3)
START = int(datetime(2026, 11, 3, tzinfo=UTC).timestamp())


@pytest.fixture
def place(tmp_path):
    """A data directory with a ledger of one day."""
    rows = [
        daily("gpt-4o", requests=10, estimated=1, input_tokens=1_000, cached_input_tokens=400, output_tokens=70,
              cost_pico_usd=2_700_000_000),
        daily("gpt-4o", upstream="", requests=4, cached=4, saved_input_tokens=90, saved_pico_usd=5),
        daily("llama", upstream="vllm", requests=3, input_tokens=9, output_tokens=9),
        daily("gpt-4o", day=date(2026, 11, 4), requests=1, input_tokens=7),
    ]  # fmt: skip
    data_dir = tmp_path / "data"
    with open_database(load(None, {}, {"data_dir": str(data_dir)})) as engine, engine.begin() as connection:
        connection.execute(insert(usage_daily), rows)
    return data_dir


def daily(model, *, day=DAY, upstream="openai", **counts):
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    return {
        **zeros, "day": day, "team": "growth", "key_id": "k", "model": model, "upstream": upstream, "endpoint": "chat",
        **counts,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path, place):
    def invoke(*arguments, **exports):
        paths = []
        for name, content in exports.items():
            path = tmp_path / f"{name}.json"
            path.write_text(content if isinstance(content, str) else json.dumps(content))
            paths.append(str(path))
        return CliRunner().invoke(main, ["reconcile", *paths, *arguments, "--data-dir", str(place)])

    return invoke


def page(*results, has_more=False):
    return {"data": [{"start_time": START, "end_time": START + 86_400, "results": list(results)}], "has_more": has_more}


def usage(model="gpt-4o-2024-08-06", requests=10, read=1_000, said=70, cached=400):
    return {"model": model, "num_model_requests": requests, "input_tokens": read, "output_tokens": said,
            "input_cached_tokens": cached}  # fmt: skip


def cost(value, item="gpt-4o-2024-08-06, input"):
    return {"amount": {"value": value, "currency": "usd"}, "line_item": item}


LLAMA = usage("llama", 3, 9, 9, 0)


def test_what_ties_out_says_so(run):
    result = run(usage=page(usage(), LLAMA), costs=page(cost("0.0015"), cost("0.0012", "gpt-4o-2024-08-06, output")))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "gpt-4o: gpt-4o, gpt-4o-2024-08-06 are compared as one",
        "requests: ledger 13, OpenAI 13, difference 0",
        "input_tokens: ledger 1,009, OpenAI 1,009, difference 0",
        "cached_input_tokens: ledger 400, OpenAI 400, difference 0",
        "output_tokens: ledger 79, OpenAI 79, difference 0",
        "cost_usd: ledger 0.002700, OpenAI 0.002700, difference 0.000000",
        "2026-11-03 to 2026-11-03: ties out, 8 figures",
    ]


def test_what_does_not_tie_out_is_shown_and_exits_with_1(run):
    result = run(usage=page(usage(said=75), LLAMA))
    assert result.exit_code == 1
    header, line, *_, last = result.stdout.splitlines()
    assert header.split() == ["day", "model", "measure", "ledger", "openai", "difference", "estimated"]
    assert line.split() == ["2026-11-03", "gpt-4o", "output_tokens", "70", "75", "-5", "1"]
    assert last == "2026-11-03 to 2026-11-03: 1 of 7 figures do not tie out"


def test_tolerance_is_in_percent(run):
    exports = {"usage": page(usage(said=75), LLAMA)}
    assert run("--tolerance", "6.6", **exports).exit_code == 1
    assert run("--tolerance", "6.7%", **exports).exit_code == 0
    for wrong in ("x", "-1", "101", "NaN"):
        assert run("--tolerance", wrong, **exports).exit_code == 2


def test_json_is_exact(run):
    result = run("--json", "--all", costs=page(cost("0.0027000000000005", None)))
    told = json.loads(result.stdout)
    assert (result.exit_code, told["ok"], told["days"]) == (1, False, ["2026-11-03"])
    assert told["figures"] == [
        {"day": "2026-11-03", "model": None, "measure": "cost_usd", "ledger": "0.002700000000",
         "openai": "0.002700000000", "difference": "0.000000000000", "estimated": 1}
    ]  # fmt: skip
    result = run("--json", "--all", usage=page(usage(), LLAMA))
    told = json.loads(result.stdout)
    assert (result.exit_code, told["ok"]) == (0, True)
    assert told["compared_as_one"] == {"gpt-4o": ["gpt-4o", "gpt-4o-2024-08-06"]}
    assert {"measure": "input_tokens", "ledger": 1_009, "openai": 1_009, "difference": 0} in told["totals"]


def test_one_upstream_can_be_compared_alone(run):
    assert run(usage=page(usage())).exit_code == 1
    assert run("--upstream", "openai", usage=page(usage())).exit_code == 0


def test_a_page_that_is_not_the_last_is_noted(run):
    result = run(usage=page(usage(), LLAMA, has_more=True))
    assert result.exit_code == 0
    assert "is not the last page (has_more)" in result.stderr


@pytest.mark.parametrize("content", ["", "{}", '{"data": []}'])
def test_what_is_no_export_is_said_so(run, content):
    result = run(usage=content)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: ")
    assert "usage.json: " in result.stderr


def test_a_file_that_is_not_there_is_said_so(run):
    result = run("none.json")
    assert (result.exit_code, result.stderr) == (1, "Error: none.json: No such file or directory\n")
    assert run().exit_code == 2
