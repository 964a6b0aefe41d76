"""Opens the database: SQLite by path, Postgres by URL."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from proxy.adapters.file_owner import give_to_owner
from proxy.core.errors import StoreAway
from proxy.core.registry import DataUnusable

__all__ = ["PATIENCE_SECONDS", "insert_into", "open_engine", "reading", "writing"]

PATIENCE_SECONDS = 5.0
"""How long a statement may take while requests wait for it."""
_BUSY_TIMEOUT_MS = 10_000
_CHECKPOINT_PAGES = 8_000
"""Of 4 KB each, that the WAL takes before they are put in their places: what many events change goes there once."""
# The two are alike in all that is used of them, and have no type in common that says so.
Insert = sqlite.Insert


def open_engine(
    url_or_path: str | Path, *, patience_seconds: float = PATIENCE_SECONDS, as_it_is: bool = False
) -> Engine:
    """An engine for a database URL or the path of an SQLite file; connects when first used.

    An SQLite file is made with mode 0600 and its directory with 0700. A statement on Postgres that takes longer than
    `patience_seconds` fails. `as_it_is`: an SQLite file keeps the journal it has, for those who only look. The engine
    is synchronous and safe to use from threads. Raises `DataUnusable`, which tells nothing of the URL: it may hold a
    password.
    """
    if isinstance(url_or_path, Path) or "://" not in url_or_path:
        return _open_sqlite(URL.create("sqlite", database=os.fspath(url_or_path)), as_it_is=as_it_is)
    try:
        url = make_url(url_or_path)
    except (ArgumentError, ValueError):
        raise DataUnusable(
            "database_url is not a URL of a database: postgresql://user:password@host:5432/name"
        ) from None
    if url.get_backend_name() == "sqlite":
        return _open_sqlite(url, as_it_is=as_it_is)
    try:
        from proxy.adapters.sql.postgres import open_postgres  # noqa: PLC0415 - the driver is not in the base install
    except ImportError:
        raise DataUnusable(
            "Postgres needs its driver, which is not installed: pip install 'tollgate[server]'"
        ) from None
    return open_postgres(url, patience_seconds)


@contextmanager
def reading(engine: Engine, store: str, operation: str) -> Iterator[Connection]:
    """A transaction that only reads, all of it at one instant; a database that fails becomes `StoreAway`."""
    options: dict[str, Any] = {"read_only": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "REPEATABLE READ"
    try:
        with engine.connect() as connection, connection.execution_options(**options).begin():
            yield connection
    except (SQLAlchemyError, OSError) as error:
        raise StoreAway(store, operation) from error


@contextmanager
def writing(engine: Engine, store: str, operation: str) -> Iterator[Connection]:
    """A transaction that writes, committed at the end; a database that fails becomes `StoreAway`.

    The writers of one store take turns, whatever process or machine they are on.
    """
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                from proxy.adapters.sql.postgres import take_turn  # noqa: PLC0415 - as above

                take_turn(connection, store)
            yield connection
    except (SQLAlchemyError, OSError) as error:
        raise StoreAway(store, operation) from error


def insert_into(connection: Connection, table: Table) -> Insert:
    """An INSERT that knows ON CONFLICT, in the connection's dialect."""
    if connection.dialect.name == "sqlite":
        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql  # noqa: PLC0415 - costs a command beside SQLite a tenth of its time

    return cast("Insert", postgresql.insert(table))


def _open_sqlite(url: URL, *, as_it_is: bool) -> Engine:
    if url.database is None:
        raise ValueError("the SQLite database needs a path")
    path = Path(url.database)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its -wal and -shm files the mode of this one. A file that is there is left alone: to close any
    # descriptor of it lets go of every lock this process has on it, and another one could then pull its -wal away.
    with suppress(FileExistsError):
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        give_to_owner(made, path.parent)
        os.close(made)
    engine = create_engine(url, hide_parameters=True)
    event.listen(engine, "connect", _prepare)
    if not as_it_is:
        event.listen(engine, "connect", _use_wal)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    # Transactions begin where `_begin` says, not where the driver guesses.
    connection.isolation_level = None
    settings = ("foreign_keys=ON", "synchronous=FULL", f"wal_autocheckpoint={_CHECKPOINT_PAGES}")
    for pragma in (f"busy_timeout={_BUSY_TIMEOUT_MS}", *settings):
        # FULL: a spool segment is deleted once its events are committed, so a commit must survive a power cut.
        connection.execute(f"PRAGMA {pragma}").close()


def _use_wal(connection: sqlite3.Connection, _record: object) -> None:
    # The first switch to WAL needs the file alone and does not wait by itself; from then on the file remembers it.
    for _ in range(100):
        try:
            if connection.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",):
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                raise
        time.sleep(0.02)


def _begin(connection: Connection) -> None:
    # A writer takes its lock first: one that began as a reader could not wait for it.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN DEFERRED" if read_only else "BEGIN IMMEDIATE")
