"""What deploy/README.md promises is so, as far as a file can be held to it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from ruamel.yaml import YAML

from proxy.adapters.prometheus_declared import declared
from proxy.cli import main
from proxy.pipeline.principals import STALE_MS
from tests.support.compose import COMPOSE
from tests.support.tollgate_process import COMMAND, ROOT, clean_environment, run_tollgate

TEXT = (ROOT / "deploy/README.md").read_text()
RULES = YAML(typ="safe").load((ROOT / "deploy/prometheus/rules/tollgate.alerts.yml").read_text())


def test_files_that_are_named_are_there():
    named = re.findall(r"^\| `([\w./-]+)` \|", TEXT.split("\n## ")[0], re.MULTILINE)
    assert len(named) > 8
    for name in named:
        assert (ROOT / "deploy" / name).exists(), name
    for name in re.findall(r"deploy/[\w./-]*\w", TEXT):
        assert (ROOT / name).exists(), name


def test_alerts_and_metrics_that_are_named_exist():
    alerts = {rule["alert"] for group in RULES["groups"] for rule in group["rules"] if "alert" in rule}
    named = set(re.findall(r"`(Tollgate[A-Z]\w+)`", TEXT))
    assert len(named) > 5
    assert named <= alerts
    metrics = set(re.findall(r"`(tollgate_\w+)", TEXT))
    assert metrics
    assert metrics <= {metric.name for metric in declared()}


def test_commands_that_are_shown_are_commands():
    commands = re.findall(r"tollgate ((?:doctor|check|serve|teams|keys|ledger|metrics)(?: [a-z]+)*)", TEXT)
    assert {"doctor", "ledger verify", "teams add growth"} <= set(commands)
    for shown in commands:
        command = main.get_command(None, shown.split()[0])
        assert command is not None, shown


def test_addresses_are_those_that_are_published():
    published = {port for service in COMPOSE["services"].values() for port in service.get("ports", [])}
    shown = set(re.findall(r"`http://(127\.0\.0\.1:\d+)", TEXT))
    assert shown == {port.rpartition(":")[0] for port in published}


def test_the_drill_that_is_shown_is_the_one_that_is_performed():
    drill = (ROOT / "tests/deploy/test_restore_drill.py").read_text()
    for words in ("deploy/backup.py", "pg_dump", "--format=custom", "pg_restore", "--no-owner", "--exit-on-error"):
        assert words in TEXT
        assert words in drill
    assert TEXT.index("backup.py /var/lib/tollgate > tollgate.tar") < TEXT.index("pg_dump --format=custom")


@pytest.fixture(scope="module")
def left(tmp_path_factory, simulator):
    """The data of a server that was there."""
    with run_tollgate(tmp_path_factory.mktemp("left"), simulator.base_url, simulator.key) as gateway:
        gateway.add_team("growth")
    return gateway.data_dir


@pytest.fixture
def used(tmp_path, left):
    """The same, to be damaged."""
    return shutil.copytree(left, tmp_path / "data")


def started(data_dir, simulator) -> subprocess.CompletedProcess[str]:
    """A start that comes to nothing."""
    options = ("--data-dir", str(data_dir), "--upstream", simulator.base_url, "--port", "0", "--admin-port", "0")
    return subprocess.run(
        (*COMMAND, "serve", *options), env=clean_environment(), capture_output=True, text=True, check=False, timeout=60
    )


def test_without_its_peppers_a_server_does_not_start_and_says_why(used, simulator):
    (used / "peppers.json").unlink()
    done = started(used, simulator)
    assert done.returncode == 1
    assert "is not the one that keys in this database are hashed under" in done.stderr
    assert "tollgate keys pepper rotate --lost" in done.stderr


def test_on_a_damaged_database_a_server_does_not_start(used, simulator):
    for path in used.glob("tollgate.sqlite3-*"):
        path.unlink()
    (used / "tollgate.sqlite3").write_bytes(b"damaged" * 4_000)
    done = started(used, simulator)
    assert done.returncode == 1
    assert "the database did not answer" in done.stderr


def test_a_database_of_a_newer_version_is_not_served(used, simulator):
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(used / "tollgate.sqlite3")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    done = started(used, simulator)
    assert done.returncode == 1
    assert "the database is at revision 9999" in done.stderr


def test_figures_of_time_are_those_of_the_code():
    """How long keys that are known go on without the database."""
    sentences = " ".join(TEXT.split())
    assert STALE_MS == 5 * 60_000
    assert "keys that were in use go on for five minutes" in sentences
    grace_seconds = COMPOSE["services"]["tollgate"]["stop_grace_period"].removesuffix("s")
    assert f"On `docker compose stop` the server has {grace_seconds} seconds" in sentences
