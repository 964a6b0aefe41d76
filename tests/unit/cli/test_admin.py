"""`tollgate admin`."""

from __future__ import annotations

import json
import re
import stat

import pytest
from click.testing import CliRunner

from proxy.cli import main


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments, **environment):
        place = ("--data-dir", str(tmp_path / "data"))
        return CliRunner().invoke(main, ["admin", "token", *arguments, *place], prog_name="tollgate", env=environment)

    return invoke


def test_it_is_made_shown_and_the_same_from_then_on(run, tmp_path):
    first, second = run(), run()
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert re.fullmatch(r"tga_[0-9a-f]{64}\n", first.stdout), "alone, so that it can be captured"
    assert first.stdout == second.stdout
    file = tmp_path / "data" / "admin_token"
    assert str(file) in first.stderr
    assert first.stdout.strip() not in first.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(run("--json").stdout) == {"token": first.stdout.strip(), "file": str(file)}


def test_it_is_rotated_and_that_is_audited_without_it(run, tmp_path):
    old = run().stdout
    new = run("--rotate")
    assert (new.exit_code, new.stdout != old, run().stdout) == (0, True, new.stdout)
    listed = CliRunner().invoke(main, ["audit", "--json", "--data-dir", str(tmp_path / "data")])
    (line,) = json.loads(listed.stdout)
    assert (line["action"], line["subject"]) == ("admin_token.rotate", str(tmp_path / "data" / "admin_token"))
    assert line["actor"].startswith("cli:")
    assert new.stdout.strip() not in listed.stdout


def test_what_is_no_token_is_refused_and_can_be_rotated(run, tmp_path):
    run()
    file = tmp_path / "data" / "admin_token"
    file.write_text("weak-secret")
    refused = run()
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert str(file) in refused.stderr
    assert "weak-secret" not in refused.stderr
    assert run("--rotate").exit_code == 0
    assert run().exit_code == 0


def test_a_file_of_its_own(run, tmp_path):
    own = tmp_path / "elsewhere" / "token"
    shown = run("--json", TOLLGATE_ADMIN_TOKEN_FILE=str(own))
    assert json.loads(shown.stdout) == {"token": own.read_text().strip(), "file": str(own)}
    assert not (tmp_path / "data" / "admin_token").exists()


@pytest.mark.parametrize("arguments", [(), ("--rotate",)])
def test_the_environments_token_is_changed_there(run, arguments):
    refused = run(*arguments, TOLLGATE_ADMIN_TOKEN="a-token-of-the-operator-0123456789")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "TOLLGATE_ADMIN_TOKEN" in refused.stderr
    assert "a-token-of" not in refused.stderr


def test_a_weak_token_in_the_environment_is_refused(run):
    refused = run(TOLLGATE_ADMIN_TOKEN="changeme")
    assert refused.exit_code == 1
    assert "32 to 512 characters" in refused.stderr
    assert "changeme" not in refused.stderr


def test_a_rotation_does_not_wait_for_the_database(run, tmp_path):
    old = run().stdout
    (tmp_path / "data" / "tollgate.sqlite3").write_bytes(b"this is no database" * 100)
    new = run("--rotate")
    assert new.exit_code == 0
    assert "the audit log does not tell of it" in new.stderr
    assert run().stdout == new.stdout != old


def test_a_place_that_cannot_be_written_to_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    refused = run("--rotate", TOLLGATE_ADMIN_TOKEN_FILE=str(tmp_path / "file" / "token"))
    assert refused.exit_code == 1
    assert str(tmp_path / "file") in refused.stderr
    assert "Traceback" not in refused.stderr
