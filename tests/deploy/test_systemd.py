"""The unit of systemd: proved by systemd's own tools, and what it starts is started, with its environment."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from proxy.app.open_files import connections_that_fit
from proxy.app.supervisor import _KILL_AFTER_DRAIN_SECONDS
from proxy.app.systemd import READY, STOPPING, tell_systemd
from proxy.settings import load
from tests.support.redis_server import RedisServer
from tests.support.tollgate_process import COMMAND, ROOT, Child, clean_environment
from tests.support.tools import program

UNIT = ROOT / "deploy/systemd/tollgate.service"
INSTALLED = "/opt/tollgate/bin/tollgate"
_MOST_EXPOSURE = 15
"""In tenths; what is left is that it speaks to the network, and to whom."""


class _Everything(dict):
    """Values of settings that a unit may have more than once."""

    def __setitem__(self, key, value):
        if key in self and isinstance(value, list):
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def unit_of(text: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(
        strict=False, dict_type=_Everything, delimiters=("=",), comment_prefixes=("#",)
    )
    parser.optionxform = str
    parser.read_string(text)
    return parser


SERVICE = unit_of(UNIT.read_text())["Service"]


def said(name: str) -> list[str]:
    return SERVICE[name].split("\n")


def seconds(name: str) -> float:
    return float(SERVICE[name])


def test_systemd_understands_every_line(tmp_path):
    here = tmp_path / "tollgate.service"
    here.write_text(UNIT.read_text().replace(INSTALLED, sys.executable))
    verified = subprocess.run(
        [program("systemd-analyze", "systemd"), "verify", "--man=no", here], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    here.write_text(here.read_text().replace("ProtectSystem=strict", "ProtectSystem=stirct"))
    misspelt = subprocess.run(
        [program("systemd-analyze", "systemd"), "verify", "--man=no", here], capture_output=True, text=True, check=False
    )
    assert "stirct" in misspelt.stderr


def test_it_is_hardly_exposed(tmp_path):
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", f"--threshold={_MOST_EXPOSURE}"]
    judged = subprocess.run([*command, UNIT], capture_output=True, text=True, check=False)
    assert judged.returncode == 0, judged.stdout
    weaker = tmp_path / "tollgate.service"
    weaker.write_text(
        re.sub(r"^(SystemCallFilter|ProtectSystem|CapabilityBoundingSet).*\n", "", UNIT.read_text(), flags=re.MULTILINE)
    )
    assert subprocess.run([*command, weaker], capture_output=True, text=True, check=False).returncode == 1


_NEEDED = {
    "DeviceAllow", "IPAddressDeny", "PrivateNetwork", "RestrictAddressFamilies_AF_INET_INET6",
    "RestrictAddressFamilies_AF_UNIX", "RootDirectoryOrRootImage",
}  # fmt: skip
"""What it is open to: it speaks to the network and to systemd, and runs from the machine's own files."""


def exposed(unit: Path) -> set[str]:
    command = [program("systemd-analyze", "systemd"), "security", "--offline=true", "--json=short", unit]
    judged = json.loads(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    assert len(judged) > 60
    return {each["json_field"] for each in judged if each["set"] is False}


@pytest.mark.parametrize("line", ["MemoryDenyWriteExecute", "PrivateDevices", "ProtectHome", "PrivateUsers"])
def test_it_is_open_to_what_it_needs_alone(tmp_path, line):
    assert exposed(UNIT) <= _NEEDED
    weaker = tmp_path / "tollgate.service"
    weaker.write_text(re.sub(rf"^{line}=.*\n", "", UNIT.read_text(), flags=re.MULTILINE))
    assert exposed(weaker) - _NEEDED == {line}


def test_a_stop_waits_longer_than_the_drain():
    server = load(None, {}).server
    assert seconds("TimeoutStopSec") > server.drain_seconds + server.ready_grace_seconds + _KILL_AFTER_DRAIN_SECONDS
    assert SERVICE["KillMode"] == "mixed"


def test_open_files_are_enough_for_the_connections():
    assert connections_that_fit(int(SERVICE["LimitNOFILE"])) >= load(None, {}).server.max_connections


def test_no_secret_is_in_the_unit():
    credentials = dict(each.split(":") for each in said("LoadCredential"))
    assert credentials == {"openai_api_key": "/etc/tollgate/openai_api_key"}
    for each in said("Environment"):
        name, value = each.split("=", 1)
        assert not re.search("KEY|SECRET|TOKEN|PASSWORD", name) or value.startswith("%d/")


@pytest.fixture
def manager(tmp_path):
    """The socket that systemd would listen on."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(60)
        yield listening


@pytest.mark.parametrize("workers", [1, 2])
def test_what_it_starts_says_when_it_serves_and_when_it_drains(tmp_path, manager, simulator, workers):
    """ExecStartPre and ExecStart with the environment of the unit, its places mapped."""
    state, credentials, config = tmp_path / "state", tmp_path / "credentials", tmp_path / "tollgate.toml"
    credentials.mkdir()
    (credentials / "openai_api_key").write_text(simulator.key)
    config.write_text((ROOT / "deploy/tollgate.example.toml").read_text())
    places = {"%S": str(state), "%d": str(credentials), "/etc/tollgate/tollgate.toml": str(config)}

    def here(text: str) -> str:
        for there, place in places.items():
            text = text.replace(there, place)
        return text

    def command(name: str) -> list[str]:
        (line,) = said(name)
        first, *words = shlex.split(here(line))
        assert first == INSTALLED
        return [*COMMAND, *words]

    given = dict(here(each).split("=", 1) for each in said("Environment"))
    with RedisServer() as redis:
        environment = clean_environment(
            **given,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            TOLLGATE_UPSTREAM=simulator.base_url,
            TOLLGATE_PORT="0",
            TOLLGATE_ADMIN_PORT="0",
            TOLLGATE_WORKERS=str(workers),
            TOLLGATE_REDIS_URL=redis.url,
        )
        checked = subprocess.run(command("ExecStartPre"), env=environment, capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr
        child = Child(command("ExecStart"), tmp_path / "log", environment)
        try:
            assert manager.recv(100).decode() == READY
            assert "operations on http://" in child.stderr
            child.signal(signal.Signals[SERVICE["KillSignal"]])
            assert manager.recv(100).decode() == STOPPING
            assert child.wait() == 0
        finally:
            child.end()
    assert (state / "tollgate/tollgate.sqlite3").exists()


def test_a_socket_without_a_file_is_told_too(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        name = f"tollgate-notify-of-the-tests-{os.getpid()}"
        listening.bind(f"\0{name}")
        listening.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        tell_systemd(READY)
        assert listening.recv(100) == b"READY=1"


def test_without_systemd_nobody_is_told_and_nothing_breaks(monkeypatch, tmp_path):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    tell_systemd(READY)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    tell_systemd(READY)


def test_the_unit_names_what_the_readme_installs():
    readme = (ROOT / "deploy/README.md").read_text()
    assert "deploy/systemd/tollgate.service" in readme
    assert Path(INSTALLED).parent.as_posix() in readme
