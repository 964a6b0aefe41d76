"""Whether the database can be reached, has the schema of this version, and keys that this machine can check."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.exc import SQLAlchemyError

from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import PEPPER_FILE, PepperFile
from proxy.adapters.sql.agreement import PepperMismatch, agree, keys_by_needed_version
from proxy.adapters.sql.engine import open_engine, reading
from proxy.adapters.sql.migrate import HEAD, revision_of
from proxy.adapters.sql.tables import api_keys
from proxy.adapters.sql.tables import peppers as peppers_noted
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.app.database import SQLITE_FILE
from proxy.app.prices import open_prices
from proxy.core.checkup import Finding, clock_finding, fail, okay, warn
from proxy.core.errors import StoreAway
from proxy.core.registry import Axis, DataUnusable
from proxy.settings import Settings

__all__ = ["look_at_database"]

_PATIENCE_SECONDS = 5.0
_IN_USE_MS = 30 * 86_400_000
"""A model that was asked for within this time is in use."""
_MOST_NAMED = 10


def look_at_database(settings: Settings) -> list[Finding]:
    """Look without changing anything: nothing is made, nothing is migrated."""
    url = settings.database_url
    place = settings.data_dir / SQLITE_FILE if url is None else url.reveal()
    try:
        if url is None and not (settings.data_dir / SQLITE_FILE).exists():
            return [okay("database", f"SQLite, made in {settings.data_dir} at the first start")]
    except PermissionError:
        return [
            fail(
                "database",
                f"this user may not look into {settings.data_dir}",
                "run this as the user the server runs as",
            )
        ]
    try:
        engine = open_engine(place, patience_seconds=_PATIENCE_SECONDS, as_it_is=True)
    except DataUnusable as error:
        return [fail("database", str(error), "mend database_url, or install what is missing")]
    try:
        return [*_look(settings, engine)]
    except StoreAway as error:
        return [fail("database", f"it does not answer: {_why(error)}", _remedy(settings))]
    except DataUnusable as error:
        return [fail("database", str(error), "mend that, or name another database in database_url")]
    finally:
        engine.dispose()


def _look(settings: Settings, engine: Engine) -> Iterator[Finding]:
    with reading(engine, "database", "doctor") as connection:
        revision = revision_of(connection)
        name = _name(connection)
        if connection.dialect.name == "postgresql":
            yield _clock(connection, name)
    if revision is None:
        yield okay("database", f"{name}; empty, and gets its schema at the first start")
        return
    if revision < HEAD:
        yield warn(
            "database",
            f"{name} is at schema {revision}, and this version at {HEAD}",
            "back it up; the next start migrates it, and older versions then do not start on it",
        )
        return
    if revision > HEAD:
        yield fail(
            "database",
            f"{name} is at schema {revision}, made by a newer version; this one knows {HEAD}",
            "install that version again, or restore the backup from before the upgrade",
        )
        return
    yield okay("database", f"{name} answers, at schema {HEAD}")
    yield _peppers(settings, engine)
    yield from _keys(engine)
    yield from _unpriced(settings, engine)


def _name(connection: Connection) -> str:
    if connection.dialect.name == "postgresql":
        version = connection.execute(text("SHOW server_version")).scalar_one()
        return f"Postgres {str(version).partition(' ')[0]}"
    version = connection.execute(text("SELECT sqlite_version()")).scalar_one()
    return f"SQLite {version}"


def _clock(connection: Connection, name: str) -> Finding:
    clock = SystemClock()
    before_ms = clock.now_ms()
    theirs = connection.execute(text("SELECT extract(epoch FROM clock_timestamp()) * 1000")).scalar_one()
    way_ms = (clock.now_ms() - before_ms) / 2
    return clock_finding("database.clock", name, before_ms + way_ms - float(theirs), way_ms + 1)


def _peppers(settings: Settings, engine: Engine) -> Finding:  # noqa: PLR0911 - one for each thing that can be wrong
    """Whether the keys in the database can be checked here."""
    path = settings.pepper_file or settings.data_dir / PEPPER_FILE
    now_ms = SystemClock().now_ms()
    with reading(engine, "database", "doctor") as connection:
        needed = keys_by_needed_version(connection, now_ms)
        noted = connection.execute(select(func.count()).select_from(peppers_noted)).scalar_one()
    restore = "restore the file of peppers that belongs to this database (pepper_file); without it its keys are lost"
    try:
        peppers = PepperFile(path).latest()
    except FileNotFoundError:
        if not noted:
            return okay("peppers", f"{path}, made at the first start")
        return fail("peppers", f"{path} is missing, and the database goes by it: {sum(needed.values())} keys", restore)
    except OSError as error:
        return fail(
            "peppers", f"{path}: {error.strerror}", "run this as the user the server runs as, or let it read it"
        )
    except DataUnusable as error:
        return fail("peppers", str(error), restore)
    try:
        # Noting what is not noted yet is for a server: here it is undone.
        with engine.connect() as connection, connection.begin() as transaction:
            agree(connection, peppers, now_ms)
            transaction.rollback()
    except PepperMismatch as error:
        return fail("peppers", str(error), restore)
    except SQLAlchemyError as error:
        raise StoreAway("database", "doctor") from error
    unknown = sum(keys for version, keys in needed.items() if version not in peppers.secrets)
    if unknown:
        return fail("peppers", f"{unknown} keys are hashed under peppers that {path} lacks, and are refused", restore)
    return okay("peppers", f"{path} is the one the keys are hashed under")


def _keys(engine: Engine) -> Iterator[Finding]:
    now_ms = SystemClock().now_ms()
    with reading(engine, "database", "doctor") as connection:
        live = connection.execute(
            select(func.count())
            .select_from(api_keys)
            .where(
                api_keys.c.revoked_at_ms.is_(None),
                api_keys.c.expires_at_ms.is_(None) | (api_keys.c.expires_at_ms > now_ms),
            )
        ).scalar_one()
    if live:
        yield okay("keys", f"{live} can be used")
    else:
        yield warn("keys", "there is none that can be used, so every request is refused",
                   "tollgate teams add NAME, then tollgate keys issue --team NAME")  # fmt: skip


def _unpriced(settings: Settings, engine: Engine) -> Iterator[Finding]:
    """Models that were asked for lately and cost nothing, because no table has their price."""
    book = open_prices(settings).book
    now_ms = SystemClock().now_ms()
    rows = SqlUsageReports(engine).usage((Axis.MODEL,), since_ms=now_ms - _IN_USE_MS)
    used = [row.group[0] for row in rows if row.group[0] and row.requests > row.cached]
    missing = [model for model in used if not book.rows(model)]
    if missing:
        named = ", ".join(missing[:_MOST_NAMED]) + (" and more" if len(missing) > _MOST_NAMED else "")
        yield warn(
            "prices.models",
            f"without a price, and used in the last 30 days: {named}; the ledger says they cost nothing",
            "write their prices into a table: tollgate prices import FILE",
        )
    else:
        yield okay("prices.models", f"all {len(used)} models used in the last 30 days have a price")


def _why(error: StoreAway) -> str:
    """The driver's first line: an address and a user, never a password."""
    said = str(getattr(error.__cause__, "orig", None) or "").strip().partition("\n")[0]
    return said or type(error.__cause__).__name__


def _remedy(settings: Settings) -> str:
    if settings.database_url is None:
        return f"see that {settings.data_dir / SQLITE_FILE} is the database, and that this user may write it"
    return "see that it runs, and to host, user, password and name in database_url"
