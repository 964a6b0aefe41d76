"""What root makes in a directory of somebody else's is theirs."""

from __future__ import annotations

import os

import pytest
from click.testing import CliRunner

from proxy.adapters.price_file import replacing
from proxy.cli import main

SOMEBODY = 64_001


@pytest.fixture
def given(monkeypatch):
    """Files by number that were given away, and to whom; the right to do so is root's alone."""
    gifts = {}

    def give(descriptor, user, group):
        gifts[os.fstat(descriptor).st_ino] = (user, group)
        if os.getuid() == 0:
            os.chown(f"/proc/self/fd/{descriptor}", user, group)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", give)
    return gifts


@pytest.fixture
def data_dir(tmp_path):
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    if os.getuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY)
    return path


def test_what_commands_make_belongs_to_whom_the_directory_belongs_to(data_dir, given):
    def run(*words: str) -> None:
        done = CliRunner().invoke(main, [*words, "--data-dir", str(data_dir)])
        assert done.exit_code == 0, done.output

    run("teams", "add", "growth")
    run("keys", "issue", "--team", "growth")
    run("keys", "pepper", "rotate")
    run("admin", "token", "--rotate")
    with replacing(data_dir / "prices.json") as put:
        put("{}")
    owner = data_dir.stat()
    made = {path.name: path.stat() for path in data_dir.iterdir()}
    assert {"peppers.json", "admin_token", "prices.json", "tollgate.sqlite3"} <= set(made)
    for name in ("peppers.json", "admin_token", "prices.json", "tollgate.sqlite3"):
        assert given[made[name].st_ino] == (owner.st_uid, owner.st_gid), name
        assert made[name].st_mode & 0o777 == 0o600


def test_what_takes_the_place_of_another_belongs_to_its_owner(data_dir, given):
    """A file of secrets in a directory of root's, say."""
    prices = data_dir / "prices.json"
    prices.write_text("{}")
    there = prices.stat()
    with replacing(prices) as put:
        put("{}")
    assert given[prices.stat().st_ino] == (there.st_uid, there.st_gid)


def test_without_the_right_to_give_root_keeps_what_it_makes(data_dir, monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", refuse)
    with replacing(data_dir / "prices.json") as put:
        put("{}")
    assert (data_dir / "prices.json").read_text() == "{}"


def test_a_link_in_the_place_of_the_draft_is_not_followed(data_dir):
    other = data_dir.parent / "other"
    other.write_text("untouched")
    (data_dir / ".prices.json.new").symlink_to(other)
    with replacing(data_dir / "prices.json") as put:
        put("{}")
    assert other.read_text() == "untouched"
    assert not (data_dir / "prices.json").is_symlink()
