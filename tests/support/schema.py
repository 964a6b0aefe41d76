"""SQLite databases that have the schema: copied, which takes a fifth of the time of migrating."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.migrate import migrate

__all__ = ["put_database"]


def put_database(path: Path) -> Path:
    """Put a database with the schema and nothing else at a path where there is no file; returns the path."""
    path.touch(0o600, exist_ok=False)
    path.write_bytes(_with_schema())
    return path


@cache
def _with_schema() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "made.sqlite3"
        engine = open_engine(path)
        migrate(engine)
        engine.dispose()
        return path.read_bytes()
