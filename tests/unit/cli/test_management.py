"""Teams, keys and usage from the command line, against a database of their own."""

from __future__ import annotations

import csv
import io
import json
import os
import pwd
import time
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from proxy.adapters.sql.tables import usage_daily
from proxy.app import open_database
from proxy.cli import main
from proxy.settings import load


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(main, [*arguments, "--data-dir", str(tmp_path / "data")], prog_name="tollgate")

    return invoke


@pytest.fixture
def done(run):
    def invoke(*arguments):
        result = run(*arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    return invoke


@pytest.fixture
def told(done):
    return lambda *arguments: json.loads(done(*arguments, "--json"))


@pytest.fixture
def misused(run):
    """What is said of a value that an option does not take."""

    def invoke(*arguments):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (2, ""), result.output
        return result.stderr

    return invoke


@pytest.fixture
def failed(run):
    def invoke(*arguments):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.startswith("Error: ")
        return result.stderr

    return invoke


OS_USER = pwd.getpwuid(os.getuid()).pw_name


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_a_team_is_on_the_default_tier_unless_told(told):
    made = told("teams", "add", "growth")
    assert (made["name"], made["tier"], made["own_limits"], made["models"]) == ("growth", "free", None, None)
    assert (made["limits"]["requests_per_minute"], made["limits"]["tokens_per_minute"]) == (20, 40_000)
    assert made["cache"] == "deterministic"


def test_a_team_is_given_everything_it_can_have(told):
    made = told(
        *("teams", "add", "research", "--tier", "payg", "--requests-per-minute", "7", "--tokens-per-minute", "70"),
        *("--request-capacity", "9", "--token-capacity", "90", "--cache", "all", "--models", "gpt-5,gpt-5-mini"),
    )
    limits = {"requests_per_minute": 7, "tokens_per_minute": 70, "request_capacity": 9, "token_capacity": 90}
    assert made["limits"] == made["own_limits"] == limits
    assert (made["tier"], made["cache"]) == ("payg", "all")
    assert made["models"] == ["gpt-5", "gpt-5-mini"]


def test_set_changes_what_is_named_and_nothing_else(told):
    made = told("teams", "add", "growth", "--requests-per-minute", "7", "--models", "gpt-5")
    kept = told("teams", "set", "growth", "--cache", "off")
    assert kept == made | {"cache": "off"}
    cleared = told("teams", "set", "growth", "--requests-per-minute", "none", "--models", "all", "--tier", "payg")
    assert (cleared["own_limits"], cleared["models"], cleared["tier"]) == (None, None, "payg")
    assert cleared["limits"]["requests_per_minute"] == 60


def test_a_team_may_refer_to_what_is_kept_upstream_when_it_is_told_so(told):
    assert told("teams", "add", "growth")["stateful"] is False
    assert told("teams", "set", "growth", "--stateful")["stateful"] is True
    assert told("teams", "set", "growth", "--cache", "off")["stateful"] is True
    assert told("teams", "set", "growth", "--no-stateful")["stateful"] is False
    assert told("teams", "add", "research", "--stateful")["stateful"] is True


def test_teams_are_listed_by_name(told, done):
    assert told("teams", "list") == []
    for name in ("zeta", "alpha"):
        done("teams", "add", name)
    assert [team["name"] for team in told("teams", "list")] == ["alpha", "zeta"]
    header, first, second = done("teams", "list").splitlines()
    assert header.split()[:5] == ["team", "tier", "since", "requests/min", "tokens/min"]
    assert header.split()[5:] == ["parallel", "weight", "per-model", "shadow", "cache", "models", "budgets"]
    assert first.split()[:2] == ["alpha", "free"]
    assert second.split()[3:] == ["20", "40,000", "-", "1", "-", "-", "deterministic", "all", "-"]


def test_a_team_has_places_and_a_shadow_tier(told, done, failed):
    made = told("teams", "add", "growth", "--max-parallel", "4", "--shadow-tier", "payg")
    assert (made["max_parallel"], made["shadow_tier"], made["model_limits"]) == (4, "payg", {})
    assert made["shadow_since"] == made["created"]
    (line,) = done("teams", "list").splitlines()[1:]
    assert line.split()[5:9] == ["4", "1", "-", "payg"]
    for verb in ("add", "set"):
        assert "did you mean free?" in failed("teams", verb, "growth", "--shadow-tier", "fre")
    cleared = told("teams", "set", "growth", "--max-parallel", "none", "--shadow-tier", "none")
    assert (cleared["max_parallel"], cleared["shadow_tier"], cleared["shadow_since"]) == (None, None, None)


def test_a_model_is_limited_and_no_more(told, done):
    told("teams", "add", "growth")
    limited = told("teams", "limit", "growth", "--model", "gpt-5", "--rpm", "10", "--tpm", "20000")
    assert limited["model_limits"] == {"gpt-5": {"requests_per_minute": 10, "tokens_per_minute": 20_000}}
    both = told("teams", "limit", "growth", "--model", "gpt-5-mini", "--tpm", "70")
    assert list(both["model_limits"]) == ["gpt-5", "gpt-5-mini"]
    assert "gpt-5 10/20000, gpt-5-mini -/70" in done("teams", "list")
    (listed,) = told("teams", "list")
    assert listed == both
    left = told("teams", "limit", "growth", "--model", "gpt-5", "--none")
    assert list(left["model_limits"]) == ["gpt-5-mini"]


def test_an_alias_is_no_name_to_limit_or_forget_by(told, misused, tmp_path):
    file = tmp_path / "tollgate.toml"
    file.write_text('[models.aliases]\nfast = "gpt-4o-mini"\n')
    told("teams", "add", "growth")
    for command in (
        ("teams", "limit", "growth", "--model", "fast", "--rpm", "1"),
        ("cache", "purge", "--team", "growth", "--model", "fast"),
    ):
        assert "fast is an alias of gpt-4o-mini: name that" in misused(*command, "--config", str(file))
    limited = told("teams", "limit", "growth", "--model", "gpt-4o-mini", "--rpm", "1", "--config", str(file))
    assert list(limited["model_limits"]) == ["gpt-4o-mini"]


def test_a_key_has_limits_of_its_own(told, done):
    told("teams", "add", "growth")
    issued = told("keys", "issue", "--team", "growth", "--rpm", "5", "--tpm", "600", "--max-parallel", "2")
    limits = {"requests_per_minute": 5, "tokens_per_minute": 600, "max_parallel": 2}
    assert issued.items() >= limits.items()
    changed = told("keys", "set", issued["id"], "--rpm", "none", "--max-parallel", "3", "--label", "all")
    assert changed == {name: value for name, value in issued.items() if name != "key"} | {
        "requests_per_minute": None,
        "max_parallel": 3,
        "label": "all",
    }
    assert told("keys", "list") == [changed]
    header, line = done("keys", "list").splitlines()
    assert header.split()[5:] == [
        *("by", "expires", "last", "used", "requests/min", "tokens/min", "parallel", "max", "wait"),
        *("models", "budgets"),
    ]  # fmt: skip
    assert line.split()[5:] == [f"cli:{OS_USER}", "-", "-", "-", "600", "3", "-", "all", "-"]
    assert told("keys", "set", issued["id"], "--models", "gpt-5")["models"] == ["gpt-5"]
    assert told("keys", "set", issued["id"], "--models", "all")["models"] is None


def test_a_team_has_a_weight(told, done, misused):
    assert told("teams", "add", "plain")["weight"] == 1
    assert told("teams", "add", "growth", "--weight", "3")["weight"] == 3
    assert told("teams", "set", "growth", "--weight", "100")["weight"] == 100
    assert told("teams", "set", "growth", "--tier", "payg")["weight"] == 100
    assert [team["weight"] for team in told("teams", "list")] == [100, 1]
    assert [line.split()[6] for line in done("teams", "list").splitlines()[1:]] == ["100", "1"]
    for weight in ("0", "101", "none", "1.5"):
        assert "--weight" in misused("teams", "set", "growth", "--weight", weight)


def test_a_key_has_a_wait(told, done, misused):
    told("teams", "add", "growth")
    assert told("keys", "issue", "--team", "growth")["max_wait_ms"] is None
    issued = told("keys", "issue", "--team", "growth", "--max-wait", "20s")
    assert issued["max_wait_ms"] == 20_000
    assert told("keys", "set", issued["id"], "--max-wait", "1h")["max_wait_ms"] == 3_600_000
    assert told("keys", "set", issued["id"], "--label", "ci")["max_wait_ms"] == 3_600_000
    assert told("keys", "set", issued["id"], "--max-wait", "1m30s")["max_wait_ms"] == 90_000
    assert sorted(line.split()[-3] for line in done("keys", "list").splitlines()[1:]) == ["-", "1m30s"]
    assert told("keys", "set", issued["id"], "--max-wait", "none")["max_wait_ms"] is None
    assert "an hour (1h) at most" in misused("keys", "set", issued["id"], "--max-wait", "61m")
    for wait in ("0s", "20", "-1s", "soon"):
        assert "--max-wait" in misused("keys", "set", issued["id"], "--max-wait", wait)
    assert "not a duration" in misused("keys", "issue", "--team", "growth", "--max-wait", "none")


def test_a_tier_of_the_settings_file_is_known(done, told, failed, tmp_path):
    file = tmp_path / "tollgate.toml"
    file.write_text("[limits]\ndefault_tier = 'gold'\n[limits.tiers]\ngold = [{ tokens_per_minute = 5 }]\n")
    made = told("teams", "add", "growth", "--config", str(file))
    assert (made["tier"], made["limits"]["tokens_per_minute"]) == ("gold", 5)
    assert "gold (unknown)" in done("teams", "list")
    assert "did you mean free?" in failed("teams", "set", "growth", "--tier", "fre")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["teams", "add", "growth"], "team growth exists already"),
        (["teams", "add", "Growth!"], "is no name"),
        (["teams", "add", "x\x1b[2J"], r"\x1b"),
        (["teams", "add", "other", "--tier", "gold"], "no tier is named gold"),
        (["teams", "set", "nobody", "--cache", "off"], "no team is named nobody"),
        (["keys", "issue", "--team", "nobody"], "no team is named nobody"),
        (["keys", "list", "--team", "nobody"], "no team is named nobody"),
        (["keys", "revoke", "0a1B2c3D4e5F"], "no key has the id 0a1B2c3D4e5F"),
        (["keys", "rotate", "0a1B2c3D4e5F"], "no key has the id 0a1B2c3D4e5F"),
        (["keys", "set", "0a1B2c3D4e5F", "--rpm", "1"], "no key has the id 0a1B2c3D4e5F"),
        (["teams", "limit", "nobody", "--model", "gpt-5", "--rpm", "1"], "no team is named nobody"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_in_a_sentence(done, failed, arguments, message):
    done("teams", "add", "growth")
    said = failed(*arguments)
    assert message in said
    assert "\x1b" not in said


def test_a_key_is_shown_once_and_alone_on_stdout(run, done):
    done("teams", "add", "growth")
    result = run("keys", "issue", "--team", "growth", "--label", "ci")
    assert result.exit_code == 0
    key = result.stdout.removesuffix("\n")
    assert key.startswith("sk-tg_")
    assert len(key.split()) == 1
    assert key not in result.stderr
    assert "not shown again" in result.stderr
    for shown in (done("keys", "list"), done("keys", "list", "--json")):
        assert key not in shown
        assert key.split("_")[1] in shown


def test_json_has_the_key_in_the_field_key(told):
    told("teams", "add", "growth")
    before = time.time()
    issued = told("keys", "issue", "--team", "growth", "--expires", "90d", "--models", "gpt-5")
    after = time.time()
    assert issued["key"].startswith(f"sk-tg_{issued['id']}_")
    assert (issued["team"], issued["state"], issued["models"]) == ("growth", "live", ["gpt-5"])
    lasts = timedelta(days=90).total_seconds()
    assert int(before + lasts) <= at(issued["expires"]) <= after + lasts


@pytest.mark.parametrize("beyond", ["99999999d", "3650000d"])
def test_a_key_that_outlives_the_calendar_is_refused_and_breaks_no_list(told, failed, beyond):
    told("teams", "add", "growth")
    assert "too far ahead" in failed("keys", "issue", "--team", "growth", "--expires", beyond)
    assert told("keys", "list") == []
    old = told("keys", "issue", "--team", "growth")
    told("keys", "rotate", old["id"], "--overlap", beyond)
    assert [key["overlap_ends"] for key in told("keys", "list")] == ["9999-12-31T23:59:59Z"]


def test_a_revoked_key_says_so(told, done):
    told("teams", "add", "growth")
    kept, ended = (told("keys", "issue", "--team", "growth", "--label", label)["id"] for label in ("a", "b"))
    assert done("keys", "revoke", ended) == f"revoked {ended} of team growth\n"
    assert told("keys", "revoke", f"sk-tg_{ended}")["state"] == "revoked"
    states = {key["id"]: key["state"] for key in told("keys", "list", "--team", "growth")}
    assert states == {kept: "live", ended: "revoked"}


def test_a_rotated_key_goes_on_for_its_overlap(told):
    told("teams", "add", "growth")
    old = told("keys", "issue", "--team", "growth", "--label", "ci")
    new = told("keys", "rotate", old["id"], "--overlap", "24h")
    assert new["key"] != old["key"]
    same = ("id", "team", "label", "created", "created_by", "expires", "models")
    assert [new[name] for name in same] == [old[name] for name in same]
    (listed,) = told("keys", "list")
    assert (listed["state"], listed["expires"]) == ("rotating", None)
    assert 0 <= time.time() + 86_400 - at(listed["overlap_ends"]) < 60
    told("keys", "rotate", old["id"])
    (listed,) = told("keys", "list")
    assert (listed["state"], listed["overlap_ends"]) == ("live", None)


def test_a_label_cannot_steer_the_terminal(told, done, failed):
    told("teams", "add", "growth")
    assert "\x1b" not in failed("keys", "issue", "--team", "growth", "--label", "ci\x1b[2J")
    told("keys", "issue", "--team", "growth", "--label", "日本 ci")
    shown = done("keys", "list")
    assert "日本 ci" in shown
    assert shown.replace("\n", "").isprintable()


@pytest.fixture
def spent(tmp_path):
    """Two teams' use of today and of forty days ago."""
    today = datetime.now(UTC).date()
    counts = {"cached": 1, "estimated": 0, "output_tokens": 50, "cached_input_tokens": 0, "cache_write_tokens": 0}
    counts |= {"reasoning_tokens": 5, "audio_input_tokens": 0, "audio_output_tokens": 0, "saved_pico_usd": 10**12}
    rows = [
        counts
        | {"day": day, "team": team, "model": model, "requests": requests, "input_tokens": requests * 1_000}
        | {"key_id": "k", "upstream": "openai", "endpoint": "chat", "cost_pico_usd": cost}
        for day, team, model, requests, cost in (
            (today, "growth", "gpt-5", 3, 1_234_567_890_123),
            (today, "growth", "=gpt", 1, 1),
            (today, "research", "gpt-5", 2_000, 5),
            (today - timedelta(days=40), "growth", "gpt-5", 9, 10**12),
        )
    ]
    with open_database(load(None, {}, {"data_dir": str(tmp_path / "data")})) as engine, engine.begin() as connection:
        connection.execute(insert(usage_daily), rows)
    return today


def test_usage_is_broken_down_and_exact(spent, told):
    rows = told("usage", "--by", "team,model")
    assert [(row["team"], row["model"], row["requests"]) for row in rows] == [
        ("growth", "=gpt", 1),
        ("growth", "gpt-5", 3),
        ("research", "gpt-5", 2_000),
    ]
    assert (rows[0]["cost_usd"], rows[1]["cost_usd"]) == ("0.000000000001", "1.234567890123")
    assert (rows[1]["input_tokens"], rows[1]["output_tokens"], rows[1]["reasoning_tokens"]) == (3_000, 50, 5)
    assert (rows[1]["cached"], rows[1]["estimated"], rows[1]["saved_usd"]) == (1, 0, "1.000000000000")


def test_usage_is_bounded_by_days_and_team(spent, told):
    assert sum(row["requests"] for row in told("usage", "--since", "60d")) == 2_013
    until = str(spent - timedelta(days=30))
    assert [row["requests"] for row in told("usage", "--since", "60d", "--until", until)] == [9]
    since = str(spent - timedelta(days=41))
    assert [row["requests"] for row in told("usage", "--by", "day", "--since", since, "--team", "growth")] == [9, 4]
    assert told("usage", "--by", "day", "--since", "1d", "--team", "growth")[0]["day"] == str(spent)


def test_usage_in_a_table_and_as_csv(spent, done):
    header, first, *_ = done("usage", "--by", "team,model").splitlines()
    assert header.split()[:3] == ["team", "model", "requests"]
    assert first.split()[-2:] == ["0.000000", "1.000000"]
    rows = list(csv.DictReader(io.StringIO(done("usage", "--by", "team,model", "--csv"))))
    assert [(row["team"], row["model"], row["requests"]) for row in rows] == [
        ("growth", "'=gpt", "1"),
        ("growth", "gpt-5", "3"),
        ("research", "gpt-5", "2000"),
    ]


def test_a_data_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(main, ["teams", "list", "--data-dir", str(tmp_path / "file" / "data")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: Not a directory: ")


def test_reading_makes_nothing(failed, tmp_path):
    assert "holds no ledger" in failed("usage")
    assert not (tmp_path / "data").exists()


def test_usage_of_nobody_and_of_no_time_is_said_so(spent, failed, run):
    assert "nobody" in failed("usage", "--team", "nobody")
    assert run("usage", "--since", "2026-11-02", "--until", "2026-11-01").exit_code == 2
