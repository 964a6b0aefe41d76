"""The token of the admin API: who is let in, and who is not."""

import hmac
import os
import re
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters import admin_token
from proxy.adapters.admin_token import (
    ADMIN_TOKEN_FILE,
    AdminTokenFile,
    GivenAdminToken,
    load_or_create_admin_token,
    why_no_token,
)
from proxy.adapters.secrets import SecretsInvalid

GIVEN = "0123456789abcdef0123456789abcdef"


def test_made_once_random_and_for_the_owner_alone(tmp_path):
    file = load_or_create_admin_token(tmp_path / "data")
    token = file.reveal()
    assert re.fullmatch(r"tga_[0-9a-f]{64}", token), "256 bits"
    assert load_or_create_admin_token(tmp_path / "data").reveal() == token
    assert file.path == tmp_path / "data" / ADMIN_TOKEN_FILE
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert load_or_create_admin_token(tmp_path / "other").reveal() != token


def test_mode_does_not_depend_on_the_umask(tmp_path):
    before = os.umask(0)
    try:
        file = load_or_create_admin_token(tmp_path)
        file.rotate()
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_processes_that_start_at_once_agree(tmp_path):
    program = (
        "import sys; from pathlib import Path; from proxy.adapters.admin_token import load_or_create_admin_token\n"
        "print('ready', flush=True); sys.stdin.read()\n"
        "print(load_or_create_admin_token(Path(sys.argv[1])).reveal())"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    assert [child.stdout.readline() for child in children] == [b"ready\n"] * 3
    for child in children:
        child.stdin.close()
        child.stdin = None
    (told,) = {child.communicate(timeout=60)[0] for child in children}
    assert told.decode().strip() == load_or_create_admin_token(tmp_path).reveal()


@pytest.mark.parametrize("kind", ["file", "given"])
def test_the_token_and_nothing_else_is_admitted(tmp_path, kind):
    if kind == "file":
        token = load_or_create_admin_token(tmp_path)
        text = token.reveal()
    else:
        text = GIVEN
        token = GivenAdminToken(text)
    assert token.admits(text)
    for other in ("", text[:-1], text + "0", text.upper(), f" {text}", f"{text}\n", "tga_", "\udcff" * 68, "é" * 68):
        assert not token.admits(other)


@given(st.text())
def test_whatever_is_presented_is_an_answer(presented):
    assert GivenAdminToken(GIVEN).admits(presented) is (presented == GIVEN)


def test_a_rotation_is_followed_at_once_and_the_old_one_is_dead(tmp_path):
    serving = load_or_create_admin_token(tmp_path)
    old = serving.reveal()
    assert serving.admits(old)
    new = AdminTokenFile(serving.path).rotate()
    assert new != old
    assert serving.admits(new)
    assert not serving.admits(old)


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"a" * 31, b"\xff" * 40, b"has a space " * 4, b"x" * 600])
def test_what_is_no_token_lets_nobody_in(tmp_path, content, caplog):
    serving = load_or_create_admin_token(tmp_path)
    old = serving.reveal()
    assert serving.admits(old)
    serving.path.write_bytes(content)
    for presented in (old, content.decode("latin-1"), content.decode("latin-1").strip(), ""):
        assert not serving.admits(presented)
    (line,) = [record.getMessage() for record in caplog.records if record.name == admin_token.__name__]
    assert "lets nobody in" in line
    assert old not in line
    with pytest.raises(SecretsInvalid) as refused:
        load_or_create_admin_token(tmp_path)
    if content.strip():
        assert content.decode("latin-1").strip() not in f"{line} {refused.value}"
    new = serving.rotate()
    assert serving.admits(new)


def test_a_file_that_is_gone_lets_nobody_in(tmp_path):
    serving = load_or_create_admin_token(tmp_path)
    token = serving.reveal()
    kept = serving.path.read_bytes()
    serving.path.unlink()
    assert not serving.admits(token)
    serving.path.write_bytes(kept)
    assert serving.admits(token)


def test_an_operators_own_token_will_do(tmp_path):
    file = tmp_path / "secret" / "token"
    file.parent.mkdir()
    file.write_text(f"{GIVEN}\n")
    assert load_or_create_admin_token(tmp_path / "data", file).admits(GIVEN)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("text", ["", "a" * 31, "a" * 513, "a" * 31 + " ", "ä" * 32, "a" * 32 + "\x00"])
def test_weak_and_odd_tokens_are_refused(text):
    assert why_no_token(text)
    assert not why_no_token(GIVEN)


def test_digests_are_compared_in_constant_time_and_always(tmp_path, monkeypatch):
    compared = []
    genuine = hmac.compare_digest
    monkeypatch.setattr(
        admin_token.hmac, "compare_digest", lambda one, other: compared.append((one, other)) or genuine(one, other)
    )
    file = load_or_create_admin_token(tmp_path)
    token = file.reveal()
    gone = AdminTokenFile(tmp_path / "gone")
    for keeper in (file, gone, GivenAdminToken(token)):
        for presented in ("", "x", token, token[:-1] + "_"):
            compared.clear()
            keeper.admits(presented)
            ((one, other),) = compared
            assert {type(one), type(other)} == {bytes}
            assert len(one) == len(other) == 32
            assert token.encode() not in (one, other)


def test_no_secret_in_what_is_shown_of_it(tmp_path):
    file = load_or_create_admin_token(tmp_path)
    token = file.reveal()
    file.admits(token)
    assert token[4:] not in f"{file!r} {file} {vars(file)} {GivenAdminToken(token)!r} {vars(GivenAdminToken(token))}"
