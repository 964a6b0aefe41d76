"""The Makefile and the checks behind it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "VENV"}
}


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def check_modules(directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / ".ci/check_modules.py", directory], capture_output=True, text=True, check=False
    )


def test_help_names_every_target():
    shown = make().stdout
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [
        "help",
        "run",
        "test",
        "lint",
        "bench",
        "bench-peers",
        "bench-count",
        "lock",
        "clean",
    ]


def test_an_old_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 && exit\nexit 1\n')
    old.chmod(0o755)
    made = make("run", f"PYTHON={old}", f"VENV={tmp_path}/venv")
    assert made.returncode != 0
    assert "needs Python 3.11 or newer" in made.stderr
    assert "Python 3.9.2" in made.stderr
    assert not (tmp_path / "venv").exists()


def test_a_missing_python_is_refused(tmp_path):
    made = make("run", f"PYTHON={tmp_path}/python3", f"VENV={tmp_path}/venv")
    assert made.returncode != 0
    assert "not there" in made.stderr


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("run", "tollgate serve --demo --port 0"),
        ("test", "-m pytest -n 3 --dist worksteal --port 0"),
        ("bench", "bench/run.py --port 0"),
        ("bench-count", "bench/count.py --port 0"),
    ],
)
def test_arguments_are_passed_on(target, command, tmp_path):
    printed = make("--dry-run", target, "ARGS=--port 0", f"VENV={tmp_path}/venv").stdout
    assert command in printed
    assert "--require-hashes" in printed


def test_ci_runs_what_people_run():
    script = (ROOT / ".ci/run").read_text()
    for command in ("make lint", "make test"):
        assert f"\n{command}\n" in script
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()


@pytest.fixture
def bare_machine(tmp_path):
    """A directory for PATH with next to nothing in it, and what was run by root there."""
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    noted = tmp_path / "noted"
    for name, script in {
        "make": 'echo "make $* CI=$CI" >> "$NOTED"',
        "id": "echo 0",
        "apt-get": 'echo "$* RUNLEVEL=$RUNLEVEL" >> "$NOTED"; case "$*" in *wget*) exit 100;; esac',
    }.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{script}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": str(tmp_path), "NOTED": str(noted), "RUNLEVEL": ""}, noted


def test_ci_installs_what_is_missing_and_goes_on_without_what_cannot_be(bare_machine):
    environment, noted = bare_machine
    done = subprocess.run([ROOT / ".ci/run"], env=environment, capture_output=True, text=True, check=True)
    lines = noted.read_text().splitlines()
    update, together, *apart = [line for line in lines if not line.startswith("make")]
    assert update.startswith("update")
    packages = together.removesuffix(" RUNLEVEL=1").split()[3:]
    assert {"chromium", "nodejs", "npm", "openssl", "prometheus", "redis-server", "systemd", "valgrind"} < set(packages)
    assert [line.split()[3] for line in apart] == packages
    assert all(line.endswith("RUNLEVEL=1") for line in (together, *apart))
    assert done.stderr == "wget could not be installed; its tests will fail\n"
    assert lines[-2:] == ["make lint CI=true", "make test CI=true"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x = 1\n" * 400, None),
        ("x = 1\n" * 401, "401 lines"),
        ("def f():\n" + "    x = 1\n" * 49, None),
        ("class C:\n    async def f(self):\n" + "        x = 1\n" * 50, "m.py:2: f: 51 lines"),
    ],
)
def test_sizes_are_held(tmp_path, text, found):
    (tmp_path / "m.py").write_text(text)
    checked = check_modules(tmp_path)
    assert checked.returncode == (0 if found is None else 1)
    assert (found or "1 modules within") in checked.stdout


def test_a_check_of_nothing_does_not_pass(tmp_path):
    assert check_modules(tmp_path).returncode == 2
