"""What each start does without: modules that take long to import, and that most starts have no use for."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

STORES = {"alembic", "cryptography", "psycopg", "redis", "sqlalchemy.dialects.postgresql"}
SERVER = {"aiohttp", "prometheus_client", "uvloop", "proxy.pipeline", "proxy.web"}


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("proxy.cli.serve", STORES | SERVER | {"proxy.simulator", "sqlalchemy"}),
        ("proxy.cli.keys", STORES | SERVER | {"proxy.simulator", "sqlalchemy"}),
        ("proxy.app", STORES | SERVER | {"proxy.simulator"}),
        ("proxy.app.run", STORES | {"proxy.simulator"}),
        ("proxy.app.seated", STORES | {"proxy.simulator"}),
    ],
)
def test_what_is_not_needed_is_not_imported(module, spared):
    assert all(map(find_spec, spared)), "there is such a thing"
    program = f"import sys, {module}; print(*sorted({spared!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []
