"""The database of the settings, opened with its schema up to date."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import PepperFile, load_or_create_pepper
from proxy.adapters.spool_state import look_at_spool
from proxy.adapters.sql.agreement import missing_peppers
from proxy.adapters.sql.books import SqlBooks
from proxy.adapters.sql.engine import PATIENCE_SECONDS, open_engine
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.core.books import Books
from proxy.core.errors import StoreAway
from proxy.core.registry import DataUnusable, Registry, UsageReports
from proxy.settings import Settings

__all__ = [
    "SPOOL_DIRECTORY",
    "SQLITE_FILE",
    "alone_in",
    "open_books",
    "open_database",
    "open_registry",
    "open_reports",
    "peppers_of",
    "prove_peppers",
    "registry_on",
]

_log = logging.getLogger(__name__)
SPOOL_DIRECTORY = "spool"
"""Of the data directory."""
SQLITE_FILE = "tollgate.sqlite3"
"""Of the data directory."""
_LOCK_FILE = "serving.lock"
_PATIENCE_OF_PEOPLE_SECONDS = 600.0
"""How long one statement of a command, or of a migration, may take."""


@contextmanager
def open_registry(settings: Settings, actor: str = "cli") -> Iterator[Registry]:
    """Open teams and keys for managing them, beside a running server or without one."""
    with open_database(settings) as engine, registry_on(settings, engine, actor) as registry:
        yield registry


@contextmanager
def registry_on(settings: Settings, engine: Engine, actor: str) -> Iterator[Registry]:
    """Teams and keys on a database that is open; at the end of the block workers are told of what it changed."""
    registry = SqlRegistry(engine, SystemClock(), peppers_of(settings), actor)
    if settings.redis_url is None:
        yield registry
        return
    from proxy.app.changes import announce  # noqa: PLC0415 - without Redis none of it is loaded

    keys = SqlKeyStore(engine)
    before = keys.read_revision()
    try:
        yield registry
    finally:
        # A key that was ended is named whatever came after: workers that cannot ask the database would trust it still.
        # Of anything else they find out by themselves.
        with suppress(StoreAway):
            if registry.ended or keys.read_revision() != before:
                announce(settings.redis_url.reveal(), registry.ended)


@contextmanager
def open_reports(settings: Settings) -> Iterator[UsageReports]:
    """Open the ledger for reading. Raises `DataUnusable` where there is none: reading makes no directory."""
    _require_ledger(settings)
    with open_database(settings, patience_seconds=_PATIENCE_OF_PEOPLE_SECONDS) as engine:
        yield SqlUsageReports(engine)


@contextmanager
def open_books(settings: Settings, actor: str = "cli") -> Iterator[Books]:
    """Open the ledger for proving it, beside a running server or without one. Raises `DataUnusable` as above."""
    _require_ledger(settings)
    with open_database(settings, patience_seconds=_PATIENCE_OF_PEOPLE_SECONDS) as engine:
        look = partial(look_at_spool, settings.data_dir / SPOOL_DIRECTORY)
        yield SqlBooks(engine, look, SystemClock(), actor)


def _require_ledger(settings: Settings) -> None:
    if settings.database_url is None and not (settings.data_dir / SQLITE_FILE).exists():
        raise DataUnusable(f"{settings.data_dir} holds no ledger")


@contextmanager
def alone_in(data_dir: Path) -> Iterator[None]:
    """Keep other servers out of a data directory for as long as the block runs.

    Two servers that each hold limits in process would give every team twice its limit. Raises `DataUnusable`.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(data_dir / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataUnusable(
                f"another server uses {data_dir}: two would each count limits for themselves; share them in Redis with "
                "redis_url (TOLLGATE_REDIS_URL), or give this one a data directory of its own"
            ) from None
        yield
    finally:
        os.close(lock)


@contextmanager
def alone_on(engine: Engine) -> Iterator[None]:
    """Keep other servers that hold limits in process off a Postgres, as `alone_in` does for a data directory.

    It is seen at the start: when Postgres itself starts again, so may another server. Raises `DataUnusable`,
    `StoreAway`.
    """
    if engine.dialect.name != "postgresql":
        yield
        return
    from proxy.adapters.sql import postgres  # noqa: PLC0415 - the driver is not in the base install

    with ExitStack() as stack:
        try:
            alone = stack.enter_context(postgres.alone_on(engine))
        except SQLAlchemyError as error:
            raise StoreAway("database", "alone") from error
        if not alone:
            raise DataUnusable(
                "another server uses this database: two would each count limits for themselves; share them in Redis "
                "with redis_url (TOLLGATE_REDIS_URL), or give this one a database of its own"
            )
        yield


@contextmanager
def open_database(settings: Settings, *, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[Engine]:
    """Open the database; its directory is made when there is none.

    `patience_seconds`: how long one statement may take. Raises `DataUnusable`, `StoreAway`.
    """
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opened(settings, _PATIENCE_OF_PEOPLE_SECONDS) as engine:
        migrate(engine)
        if patience_seconds == _PATIENCE_OF_PEOPLE_SECONDS:
            yield engine
            return
    with _opened(settings, patience_seconds) as engine:
        yield engine


@contextmanager
def _opened(settings: Settings, patience_seconds: float) -> Iterator[Engine]:
    url = settings.database_url
    place = url.reveal() if url is not None else settings.data_dir / SQLITE_FILE
    engine = open_engine(place, patience_seconds=patience_seconds)
    try:
        yield engine
    finally:
        engine.dispose()


def prove_peppers(settings: Settings, engine: Engine) -> None:
    """See that this machine can check the keys of the database; what it cannot is said in the log.

    Raises `DataUnusable` where its peppers are not those of the database: it would refuse keys that are good.
    """
    for version, keys in missing_peppers(engine, peppers_of(settings).latest(), SystemClock().now_ms()).items():
        _log.warning(
            "%d keys are hashed under pepper %d, which is not here, and will be refused: all machines that share a "
            "database need the same file of peppers (pepper_file)",
            keys,
            version,
        )


def peppers_of(settings: Settings) -> PepperFile:
    """The peppers of this machine, made when it has none. Raises `DataUnusable`, `OSError`."""
    return load_or_create_pepper(settings.data_dir, settings.pepper_file)
