"""Keys from elsewhere, peppers and the audit log from the command line."""

from __future__ import annotations

import json
import os
import pwd
import stat
import time

import pytest
from click.testing import CliRunner

from proxy.cli import main
from proxy.cli.stores import actor

OS_USER = f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
KEYS = ["sk-proj-abcdefghijklmnop", "my team key number 1", "schlüssel-mit-ümlaut-01"]


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments, stdin=None):
        whole = [*arguments, "--data-dir", str(tmp_path / "data")]
        return CliRunner().invoke(main, whole, prog_name="tollgate", input=stdin)

    return invoke


@pytest.fixture
def done(run):
    def invoke(*arguments, stdin=None):
        result = run(*arguments, stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    return invoke


@pytest.fixture
def told(done):
    return lambda *arguments, stdin=None: json.loads(done(*arguments, "--json", stdin=stdin))


@pytest.fixture
def growth(done):
    done("teams", "add", "growth")


@pytest.mark.parametrize("source", ["file", "stdin"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_keys_are_imported_and_never_shown(growth, told, done, tmp_path, source, newline):
    text = newline.join(KEYS) + newline
    path = tmp_path / "keys.txt"
    path.write_bytes(text.encode())
    given = ("--file", str(path)) if source == "file" else ("--file", "-")
    stdin, more = (None if source == "file" else text), (*given, "--max-wait", "20s")
    imported = told("keys", "import", "--team", "growth", "--label", "legacy", "--rpm", "7", *more, stdin=stdin)
    assert [(row["team"], row["label"], row["imported"]) for row in imported] == [("growth", "legacy", True)] * 3
    assert [(row["requests_per_minute"], row["max_wait_ms"]) for row in imported] == [(7, 20_000)] * 3
    assert [row["created_by"] for row in imported] == [OS_USER] * 3
    assert {row["id"] for row in told("keys", "list")} == {row["id"] for row in imported}
    for shown in (json.dumps(imported), done("keys", "list"), done("keys", "list", "--json"), done("audit")):
        assert not any(key in shown for key in KEYS)
    (kept,) = (path for path in (tmp_path / "data").iterdir() if path.suffix == ".sqlite3")
    assert not any(key.encode() in kept.read_bytes() for key in KEYS)
    assert told("keys", "revoke", imported[0]["id"])["state"] == "revoked"
    assert told("keys", "rotate", imported[1]["id"])["key"].startswith(f"sk-tg_{imported[1]['id']}_")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a-good-key-0123456789\nweak-secret\n", "line 2: the key can be guessed"),
        (b"a-good-key-0123456789\na-good-key-0123456789\n", "line 2: the key stands on line 1 already"),
        (b"a-good-key-0123456789\n\xff\xfe-0123456789abcdef\n", "line 2: not UTF-8"),
        (b"trailing-space-0123456789 \n", "line 1: it begins or ends with a space"),
        (b"\n\n", "there is none to import"),
        (b"x" * (16 * 1024 * 1024 + 1), "larger than 16,777,216 bytes"),
    ],
)
def test_what_cannot_be_imported_is_named_by_its_line(growth, run, told, tmp_path, content, said):
    path = tmp_path / "keys.txt"
    path.write_bytes(content)
    result = run("keys", "import", "--team", "growth", "--file", str(path))
    assert (result.exit_code, result.stdout) == (1, "")
    assert said in result.stderr
    for secret in ("good-key", "weak-secret", "0123456789abcdef", "trailing"):
        assert secret not in result.output
    assert told("keys", "list") == []


def test_a_weak_key_and_a_missing_file(growth, run, told, tmp_path):
    assert told("keys", "import", "--team", "growth", "--file", "-", "--allow-weak", stdin="my team key 1")
    missing = run("keys", "import", "--team", "growth", "--file", str(tmp_path / "nothing"))
    assert missing.exit_code == 1
    assert missing.stderr.startswith("Error: No such file")
    assert run("keys", "import", "--team", "growth").exit_code == 2
    assert run("keys", "import", "--team", "growth", "my team key number 1").exit_code == 2


def test_a_key_cannot_be_given_on_the_command_line(growth, run):
    helped = run("keys", "import", "--help").stdout
    assert "--key" not in helped
    assert "FILE|-" in helped


def test_peppers_are_rotated_listed_and_retired(growth, told, done, run, tmp_path):
    key = told("keys", "issue", "--team", "growth")
    assert [(row["version"], row["state"], row["keys"]) for row in told("keys", "pepper", "list")] == [
        (1, "current", 1)
    ]
    made = told("keys", "pepper", "rotate")
    assert (made["version"], made["state"], made["here"]) == (2, "current", True)
    refused = run("keys", "pepper", "retire", "1")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "live keys need version 1 (1)" in refused.stderr
    told("keys", "rotate", key["id"])
    assert told("keys", "pepper", "retire", "1")["state"] == "retired"
    header, first, second = done("keys", "pepper", "list").splitlines()
    assert header.split()[:2] == ["version", "state"]
    assert (first.split()[1], second.split()[1]) == ("retired", "current")
    file = tmp_path / "data" / "peppers.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(json.loads(file.read_bytes())["peppers"]) == ["2"]
    assert not any(
        pepper in done("keys", "pepper", "list") for pepper in json.loads(file.read_bytes())["peppers"].values()
    )


def test_a_pepper_file_that_is_not_the_databases_is_refused_with_the_way_out(growth, told, run, tmp_path, monkeypatch):
    told("keys", "issue", "--team", "growth")
    monkeypatch.setenv("TOLLGATE_PEPPER_FILE", str(tmp_path / "other" / "peppers.json"))
    refused = run("keys", "issue", "--team", "growth")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "TOLLGATE_PEPPER_FILE" in refused.stderr
    assert "tollgate keys pepper rotate --lost" in refused.stderr
    assert told("keys", "pepper", "rotate", "--lost")["version"] == 2
    assert told("keys", "issue", "--team", "growth")["state"] == "live"


def test_the_audit_log_says_who_did_what_to_whom(growth, told, done, run):
    issued = told("keys", "issue", "--team", "growth", "--label", "日本 ci")
    done("teams", "add", "research")
    told("keys", "revoke", issued["id"])
    entries = told("audit")
    assert [(entry["action"], entry["subject"], entry["team"]) for entry in entries] == [
        ("team.add", "growth", "growth"),
        ("key.issue", issued["id"], "growth"),
        ("team.add", "research", "research"),
        ("key.revoke", issued["id"], "growth"),
    ]
    assert {entry["actor"] for entry in entries} == {OS_USER}
    assert entries[1]["details"]["label"] == "日本 ci"
    assert all(abs(entry["at_ms"] / 1_000 - time.time()) < 60 for entry in entries)
    assert told("audit", "--team", "growth") == [entries[0], entries[1], entries[3]]
    assert told("audit", "--since", "1h") == entries
    assert told("audit", "--until", "2026-01-01") == []
    header, *lines = done("audit", "--team", "growth").splitlines()
    assert header.split() == ["when", "who", "what", "subject", "team", "details"]
    assert lines[1].split()[1:5] == [OS_USER, "key.issue", issued["id"], "growth"]
    assert 'label="日本 ci"' in lines[1]
    assert issued["key"][19:] not in done("audit", "--json")
    assert "no team is named nobody" in run("audit", "--team", "nobody").stderr
    assert run("audit", "--since", "2026-11-02", "--until", "2026-11-01").exit_code == 2


def test_who_gives_a_command_is_the_user_the_process_belongs_to(monkeypatch):
    monkeypatch.setenv("LOGNAME", "somebody-else")
    monkeypatch.setenv("USER", "somebody-else")
    assert actor() == OS_USER
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    assert actor() == "cli:2000000000"
