"""Prices from the command line, in a data directory of their own."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from proxy.adapters.price_file import load_prices, shipped_table
from proxy.adapters.sql.tables import audit_log
from proxy.app import open_database
from proxy.cli import main
from proxy.settings import load

CSV = "model,input,output\ngpt-4o-mini,0.12,0.5\nllama,0.1,0.2\n"


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(main, ["prices", *map(str, arguments)], prog_name="tollgate")

    return invoke


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def wrote(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def day(offset):
    return (datetime.now(UTC) + timedelta(days=offset)).date()


def test_list_says_what_holds_and_where_it_is_from(run, data_dir):
    result = run("list", "--data-dir", data_dir)
    assert (result.exit_code, result.stderr) == (0, "")
    header, *lines = result.stdout.splitlines()
    assert header.split()[:4] == ["model", "from", "tier", "context"]
    (mini,) = (line for line in lines if line.startswith("gpt-4o-mini "))
    assert mini.split() == ["gpt-4o-mini", "2026-11-21", "default", "-", "0.15", "0.075", "0.15", "0.60", "0.15", "0.60", "shipped"]  # fmt: skip  # noqa: E501 - a line of the table
    age = (datetime.now(UTC).date() - shipped_table().as_of).days
    assert f"shipped table of 2026-11-21, {age} days old: " in lines[-1]
    assert not data_dir.exists()


def test_list_in_json_is_exact_and_whole(run, data_dir):
    told = json.loads(run("list", "--json", "--data-dir", data_dir).stdout)
    assert len(told["prices"]) == 119
    assert (told["file"], told["shipped"]["as_of"]) == (None, "2026-11-21")
    (price,) = (each for each in told["prices"] if each["model"] == "gpt-5.4")
    assert price["pico_usd_per_token"]["flex"]["cached_input"] == 130_000
    assert price["long_context"]["above_input_tokens"] == 272_000
    assert (price["price_id"], price["holds"], price["table"]) == ("gpt-5.4@2026-11-21", True, "shipped")


def test_list_of_a_model_has_every_row_tier_and_length(run, data_dir):
    lines = run("list", "--model", "gpt-5.4", "--data-dir", data_dir).stdout.splitlines()
    assert [line.split()[2] for line in lines[1:9]] == ["default", "flex", "priority", "batch"] * 2
    assert "> 272,000" in lines[5]
    unknown = run("list", "--model", "gpt-99", "--data-dir", data_dir)
    assert (unknown.exit_code, unknown.stderr) == (1, "Error: no price is known for gpt-99\n")


def test_an_import_holds_from_tomorrow_and_leaves_the_past(run, data_dir, wrote):
    path = wrote("new.csv", CSV)
    done = json.loads(run("import", path, "--data-dir", data_dir, "--json").stdout)
    assert done["models"] == ["gpt-4o-mini", "llama"]
    assert (done["from"], done["file"]) == (str(day(1)), str(data_dir / "prices.json"))
    told = json.loads(run("list", "--model", "gpt-4o-mini", "--json", "--data-dir", data_dir).stdout)
    assert [(each["from"], each["holds"], each["table"]) for each in told["prices"]] == [
        (str(day(1)), False, "own"),
        ("2026-11-21", True, "shipped"),
    ]
    then = run("list", "--model", "gpt-4o-mini", "--at", day(1), "--json", "--data-dir", data_dir)
    (held,) = json.loads(then.stdout)["prices"]
    assert held["pico_usd_per_token"]["default"]["input"] == 120_000


def test_a_server_of_these_settings_charges_by_what_was_imported(run, data_dir, wrote):
    run("import", wrote("new.csv", CSV), "--data-dir", data_dir)
    settings = load(None, {}, {"data_dir": str(data_dir)})
    assert settings.price_file() == data_dir / "prices.json"
    assert load_prices(settings.price_file()).price("llama", 0) is not None


def test_an_import_is_noted_with_what_was_installed(run, data_dir, wrote):
    run("import", wrote("new.csv", CSV), "--data-dir", data_dir)
    again = run("import", wrote("new.csv", CSV), "--data-dir", data_dir)
    assert "has all of it already" in again.stdout
    with open_database(load(None, {}, {"data_dir": str(data_dir)})) as engine, engine.connect() as connection:
        (entry,) = connection.execute(audit_log.select()).mappings().all()
    assert (entry["action"], entry["subject"]) == ("prices.import", str(data_dir / "prices.json"))
    assert entry["actor"].startswith("cli:")
    assert json.loads(entry["details"])["models"] == ["gpt-4o-mini", "llama"]


def test_an_import_never_rewrites_the_past(run, data_dir, wrote):
    refused = run("import", wrote("new.csv", CSV), "--from", day(-1), "--data-dir", data_dir)
    assert refused.exit_code == 1
    assert f"new.csv:2: models.gpt-4o-mini.0: would hold from {day(-1)}, which is past" in refused.stderr
    assert not (data_dir / "prices.json").exists()


def test_an_import_goes_where_the_settings_look(run, tmp_path, data_dir, wrote):
    config = wrote("tollgate.toml", 'data_dir = "data"\n[prices]\nfile = "own.json"\n')
    wrote("own.json", '{"models": {"llama": {"prices": {"default": {"input": 1, "output": 2}}}}}')
    result = run("import", wrote("new.csv", CSV), "--config", config)
    assert result.exit_code == 0, result.output
    own = json.loads((tmp_path / "own.json").read_text())
    assert [row.get("valid_from") for row in own["models"]["llama"]] == [None, str(day(1))]
    wrote("own.toml", "models = {}\n")
    config.write_text('data_dir = "data"\n[prices]\nfile = "own.toml"\n')
    refused = run("import", wrote("new.csv", CSV), "--config", config)
    assert (refused.exit_code, "an import writes JSON" in refused.stderr) == (1, True)


def test_check_names_the_line_of_everything(run, wrote):
    path = wrote("p.toml", "[models.a]\nprices.default = {input = 1, output = -1}\n[models.b]\nprcies = 1\n")
    result = run("check", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        f"{path}:2: models.a.prices.default.output: must be zero or more",
        f"{path}:4: models.b.prcies: unknown field (did you mean prices?)",
        f"{path}:3: models.b: prices is missing",
    ]
    told = run("check", path, "--json")
    assert told.exit_code == 1
    assert [(each["line"], each["path"]) for each in json.loads(told.stdout)["problems"]] == [
        (2, "models.a.prices.default.output"),
        (4, "models.b.prcies"),
        (3, "models.b"),
    ]


def test_check_takes_what_is_right_and_notes_what_is_unlikely(run, wrote):
    right = run("check", wrote("p.csv", CSV))
    assert (right.exit_code, right.stderr) == (0, "")
    assert "p.csv: ok, 2 models in 2 rows" in right.stdout
    slip = '{"models": {"gpt4o-mini": {"prices": {"default": {"input": 3, "output": 15}}}}}'
    doubtful = run("check", wrote("p.json", slip))
    assert doubtful.exit_code == 0
    assert 'is unit = "usd_per_million_tokens" missing?' in doubtful.stderr
    assert "gpt4o-mini is no model of the shipped table; did you mean gpt-4o-mini?" in doubtful.stderr
    assert json.loads(run("check", wrote("p.json", slip), "--json").stdout)["notes"]


@pytest.mark.parametrize("value", ["soon", "2026-13-01", "30d"])
def test_a_day_is_a_day(run, value):
    assert run("list", "--at", value).exit_code == 2
