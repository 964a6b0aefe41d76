"""Databases for whatever test asks: SQLite and Postgres, empty or with the schema."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.migrate import migrate
from tests.support.postgres_server import PostgresServer
from tests.support.schema import put_database

# Some images forbid it, to be small; here hundreds of starts would each compile the whole package again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes says more of the machine than of what it tries.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")


_LONGEST = (
    "bench/test_sections.py",
    "deploy/test_compose_natively.py",
    "integration/test_make_run.py",
    "monitoring/test_live.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest: the last test of all keeps the other cores waiting for it."""
    items.sort(key=lambda item: not item.path.as_posix().endswith(_LONGEST))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for all tests of a process, started when it is first asked for."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def _migrated(postgres: PostgresServer) -> Iterator[str]:
    """A database to copy: that takes a tenth of the time of migrating."""
    with postgres.database() as name:
        engine = open_engine(postgres.url(name))
        migrate(engine)
        engine.dispose()
        yield name


@pytest.fixture
def postgres_url(postgres: PostgresServer, _migrated: str) -> Iterator[str]:
    """The URL of a Postgres database of the test's own, which has the schema."""
    with postgres.database(_migrated) as name:
        yield postgres.url(name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """What `open_engine` takes: a database of the test's own with the schema, of each kind in turn."""
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return put_database(tmp_path / "tollgate.db")


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path | str]:
    """The same, and nothing in it."""
    if request.param == "sqlite":
        yield tmp_path / "data" / "tollgate.db"
        return
    postgres = request.getfixturevalue("postgres")
    with postgres.database() as name:
        yield postgres.url(name)
