"""Several administrators at once, each in a process of their own: nothing is lost, and all of it is in the log."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest
from sqlalchemy import select

from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import config_revision
from tests.support.tollgate_process import ROOT, clean_environment

NAMES = ("ada", "grace", "edsger")
ROUNDS = 8


@pytest.fixture
def engine(database):
    engine = open_engine(database)
    yield engine
    engine.dispose()


@pytest.fixture
def secrets(tmp_path):
    return tmp_path / "secrets"


@pytest.fixture
def registry(engine, secrets):
    registry = SqlRegistry(engine, SystemClock(), load_or_create_pepper(secrets), actor="cli:root")
    registry.add_team("growth", "free")
    return registry


def at_once(database, commands):
    """Run processes that say `ready` and begin together; what each of them printed then."""
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in processes:
        process.stdin.close()
        process.stdin = None
    said = [process.communicate(timeout=100) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [json.loads(out) for out, _ in said]


def test_nothing_is_lost_and_everything_is_audited(database, engine, registry, secrets):
    shared = registry.issue_key("growth", "shared").record.kid
    place = engine.url.render_as_string(hide_password=False) if "://" in str(database) else str(database)
    module = (sys.executable, "-m", "tests.support.administrator")
    done = at_once(database, [(*module, place, str(secrets), name, str(ROUNDS), shared) for name in NAMES])

    changes = Counter()
    for each in done:
        changes += Counter(each)
    assert changes["team.add"] == ROUNDS, "each team was made by one of them"
    log = registry.list_audit()[2:]
    assert Counter(entry.action for entry in log) == +changes
    for name, each in zip(NAMES, done, strict=True):
        assert Counter(entry.action for entry in log if entry.actor == f"cli:{name}") == +Counter(each)
    with engine.connect() as connection:
        assert connection.execute(select(config_revision.c.revision)).scalar_one() == len(log) + 2

    keys = {record.label: record for record in registry.list_keys()}
    assert len(keys) == len(NAMES) * ROUNDS + 1
    for name in NAMES:
        for each in range(ROUNDS):
            assert (keys[f"{name}-{each}-renamed"].revoked_at_ms is not None) == bool(each % 2)
    # What everybody changed is as the last of them left it, by the order in which the log has it.
    told = [entry for entry in log if entry.action == "key.set" and entry.subject == shared]
    (record,) = [record for record in keys.values() if record.kid == shared]
    assert record.label == told[-1].details["label"]
    assert record.max_wait_ms == told[-1].details["max_wait_ms"]
    assert max(secret.serial for secret in record.secrets) == 1 + changes["key.rotate"], "no two had one number"
    assert sum(secret.ends_at_ms is None for secret in record.secrets) == 1
    team = registry.get_team("growth")
    assert team.model_limits.keys() == {f"{name}-{each}" for name in NAMES for each in range(ROUNDS)}
    last = [entry for entry in log if entry.action == "team.set"][-1]
    assert team.limits.requests_per_minute == last.details["requests_per_minute"]
    assert team.weight == last.details["weight"]


def test_a_key_from_elsewhere_is_taken_by_one_of_them(database, engine, registry, secrets):
    program = """
import json, sys
from pathlib import Path
from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.registry import BadLine
place, secrets, team = sys.argv[1:]
registry = SqlRegistry(open_engine(place), SystemClock(), load_or_create_pepper(Path(secrets)))
registry.list_teams()
print("ready", flush=True)
sys.stdin.read()
taken = 0
for each in range(20):
    try:
        registry.import_keys(team, [f"key-from-elsewhere-{each:04}"])
        taken += 1
    except BadLine as refused:
        assert "is known already" in str(refused)
print(json.dumps(taken))
"""
    registry.add_team("research", "free")
    place = engine.url.render_as_string(hide_password=False) if "://" in str(database) else str(database)
    teams = ("growth", "research")
    taken = at_once(database, [(sys.executable, "-c", program, place, str(secrets), team) for team in teams])
    assert sum(taken) == 20
    assert [len(registry.list_keys(team)) for team in teams] == taken


def test_a_pepper_is_not_retired_under_a_key_that_is_being_issued(database, engine, registry, secrets):
    """Issuing and retiring take turns, so that no key is left that nobody can check."""
    program = """
import json, sys
from pathlib import Path
from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.registry import BadValue
place, secrets, part = sys.argv[1:]
registry = SqlRegistry(open_engine(place), SystemClock(), load_or_create_pepper(Path(secrets)))
registry.list_teams()
print("ready", flush=True)
sys.stdin.read()
done = 0
for each in range(1, 6 if part == "peppers" else 30):
    if part == "keys":
        registry.issue_key("growth")
        done += 1
        continue
    registry.rotate_pepper()
    for version in range(1, each + 1):
        try:
            registry.retire_pepper(version)
            done += 1
        except BadValue:
            pass
print(json.dumps(done))
"""
    place = engine.url.render_as_string(hide_password=False) if "://" in str(database) else str(database)
    at_once(database, [(sys.executable, "-c", program, place, str(secrets), part) for part in ("keys", "peppers")])
    here = load_or_create_pepper(secrets).latest().secrets
    assert len(registry.list_keys()) == 29
    assert {secret.pepper_id for record in registry.list_keys() for secret in record.secrets} <= here.keys()
