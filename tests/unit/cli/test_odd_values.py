"""Every parameter of every command is given what was not meant for it: nothing breaks, nothing is lost."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import click
import pytest
from click.testing import CliRunner

from proxy.cli import main

MANAGING = ("teams", "keys", "audit", "usage")
ODD = [
    "'; DROP TABLE teams; --",
    "growth'--",
    '" OR ""="',
    "' UNION SELECT secret_hash FROM key_secrets --",
    "growth' OR '1'='1",
    "%",
    "%(kid)s",
    ":kid",
    "?",
    "\\'",
    "x" * 100_000,
    "\x1b[2J\x07",
    "\u202egnihtyna",
    "\udcff",
    "日本語",
    "e\u0301\u0301\u0301",
    "-1",
    "9" * 400,
    "",
    " ",
]
GIVEN = {"--config", "--data-dir", "--database-url", "--file", "--json", "--csv", "--none", "--lost", "--allow-weak"}
"""Options that say where things are, and flags."""
NEEDED = {
    "keys issue": {"--team": "growth"},
    "keys import": {"--team": "growth", "--file": "-"},
    "teams limit": {"--model": "gpt-5", "--rpm": "1"},
}


def leaves(command, path=()):
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if path or name in MANAGING:
                yield from leaves(command.get_command(context, name), (*path, name))
    else:
        yield path, command


def cases():
    for path, command in leaves(main):
        arguments = [each for each in command.params if isinstance(each, click.Argument)]
        options = [each for each in command.params if isinstance(each, click.Option) and each.opts[0] not in GIVEN]
        for odd in arguments + options:
            yield pytest.param(path, arguments, odd, id=f"{' '.join(path)} {odd.opts[0]}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("odd") / "data"
    for arguments in (("teams", "add", "growth"), ("keys", "issue", "--team", "growth")):
        done = CliRunner().invoke(main, [*arguments, "--data-dir", str(place)])
        assert done.exit_code == 0
    return place


def rows(place):
    with closing(sqlite3.connect(place / "tollgate.sqlite3")) as database:
        tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
        return {name: database.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables}


def test_there_are_commands_to_try():
    assert {path[0] for path, _ in leaves(main)} == set(MANAGING)
    assert len(list(cases())) > 40


@pytest.mark.parametrize(("path", "arguments", "odd"), list(cases()))
def test_odd_values_are_values(data, path, arguments, odd):
    before = rows(data)
    key = before["api_keys"][0]
    for value in ODD:
        given = [value if each is odd else "growth" if path[0] == "teams" else key[0] for each in arguments]
        needed = [
            word
            for name, value in NEEDED.get(" ".join(path), {}).items()
            if name != odd.opts[0]
            for word in (name, value)
        ]
        option = [f"{odd.opts[0]}={value}"] if isinstance(odd, click.Option) else []
        result = CliRunner().invoke(
            main, [*path, *needed, *option, "--data-dir", str(data), "--", *given], input="a-key-from-elsewhere-1\n"
        )
        assert result.exit_code in (0, 1, 2), (value[:40], result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), (value[:40], result.exception)
        assert "Traceback" not in result.output
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
    after = rows(data)
    assert after.keys() == before.keys(), "no table is gone"
    for name in ("teams", "api_keys", "key_secrets", "audit_log", "peppers"):
        assert len(after[name]) >= len(before[name]), name
    hashes = {row[0] for row in before["key_secrets"]}
    assert hashes <= {row[0] for row in after["key_secrets"]} or path[:2] == ("keys", "rotate")


@pytest.mark.parametrize(
    "text", [odd for odd in ODD if odd.isprintable() and 0 < len(odd.strip()) < 200 and "," not in odd]
)
def test_what_can_be_printed_comes_back_as_it_was_given(data, text):
    place = ["--data-dir", str(data), "--json"]
    arguments = ["--team", "growth", f"--label={text}", f"--models={text}"]
    issued = json.loads(CliRunner().invoke(main, ["keys", "issue", *arguments, *place]).stdout)
    assert (issued["label"], issued["models"]) == (text, [text.strip()])
    listed = json.loads(CliRunner().invoke(main, ["keys", "list", *place]).stdout)
    (kept,) = [row for row in listed if row["id"] == issued["id"]]
    assert (kept["label"], kept["models"]) == (text, [text.strip()])
