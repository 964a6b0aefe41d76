"""Brings the schema to this version of the package, at start."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, insert, inspect, text

from proxy.adapters.sql.engine import reading, writing
from proxy.adapters.sql.tables import config_revision, metadata
from proxy.core.registry import DataUnusable

__all__ = ["HEAD", "SchemaUnknown", "migrate", "revision_of"]

HEAD = "0007"
"""The newest revision under `migrations/versions`; a test holds the two together."""


class SchemaUnknown(DataUnusable):
    """The database was made by another version of the package, newer than this one."""


def migrate(engine: Engine) -> bool:
    """Make the schema, or run the migrations that are due; returns whether anything was to do.

    Safe when several processes start at once: one does it, the others wait and find nothing to do. Raises
    `SchemaUnknown`, `DataUnusable`, `StoreAway`.
    """
    with reading(engine, "database", "migrate") as connection:
        _require_unicode(connection)
        if _revision(connection) == HEAD:
            return False
    # One at a time, because writers take turns.
    with writing(engine, "database", "migrate") as connection:
        found = _revision(connection)
        if found == HEAD:
            return False
        if found is None:
            _create(connection)
        else:
            _upgrade(connection, found)
    return True


def revision_of(connection: Connection) -> str | None:
    """The revision a database is at, None where it has no schema. Raises `DataUnusable` for one that can hold none."""
    _require_unicode(connection)
    return _revision(connection)


def _require_unicode(connection: Connection) -> None:
    """Refuse a database that cannot hold the name of every model: an event it cannot take would wait for ever."""
    if connection.dialect.name != "postgresql":
        return
    encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
    if encoding != "UTF8":
        raise DataUnusable(f"the database's encoding is {encoding}; make one with ENCODING 'UTF8'")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _create(connection: Connection) -> None:
    """Make from nothing, and at once, what all migrations one after the other would."""
    metadata.create_all(connection, checkfirst=False)
    connection.execute(insert(config_revision).values(id=1, revision=0))
    connection.execute(
        text(
            "CREATE TABLE IF NOT EXISTS alembic_version "
            "(version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": HEAD})


def _upgrade(connection: Connection, found: str) -> None:
    # Alembic takes a fifth of a whole start to import, and hardly any start needs it.
    from alembic import command  # noqa: PLC0415 - see above
    from alembic.config import Config  # noqa: PLC0415 - see above
    from alembic.script import ScriptDirectory  # noqa: PLC0415 - see above
    from alembic.util.exc import CommandError  # noqa: PLC0415 - see above

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        ScriptDirectory.from_config(config).get_revision(found)
    except CommandError:
        raise SchemaUnknown(f"the database is at revision {found}, this version knows {HEAD}") from None
    command.upgrade(config, "head")
