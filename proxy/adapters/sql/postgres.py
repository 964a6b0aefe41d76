"""Postgres through psycopg: connections that give up, and writers that take turns.

Imported only where the database is Postgres: the driver is not part of the base install.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg.abc import PQGen
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql

__all__ = ["alone_on", "as_one", "insert_rows", "open_postgres", "take_turn"]

_POOL_SIZE = 4
_CONNECT_SECONDS = 5
_GRACE_SECONDS = 2.0
"""What the server has beyond its own deadline to say that it has given up."""
# A server that has vanished without a word is found out by keepalives, and by what stays unacknowledged.
_LIVENESS: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
_LIVENESS_OF_CLIENTS = {"tcp_keepalives_idle": 30, "tcp_keepalives_interval": 10, "tcp_keepalives_count": 3}
_IDLE_IN_TRANSACTION_MS = 60_000
"""After this long the server takes back the turn of a writer whose machine has vanished."""

_Result = TypeVar("_Result")


def open_postgres(url: URL, patience_seconds: float) -> Engine:
    """An engine for a Postgres URL; connects when first used.

    No statement takes longer than `patience_seconds`, and no wait for its answer much longer: a server that accepts
    and then says nothing is as good as away. What the URL itself says of these things wins.
    """
    wait_seconds = patience_seconds + _GRACE_SECONDS

    class Bounded(psycopg.Connection[Any]):
        """A connection that is closed when an answer does not come."""

        def wait(self, gen: PQGen[_Result], *args: Any, **kwargs: Any) -> _Result:
            try:
                return super().wait(gen, *args, **{"timeout": wait_seconds, **kwargs})
            except psycopg.OperationalError:
                # The answer may still come, and would be taken for that of the next statement.
                if not self.closed and self.pgconn.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
                    self.pgconn.finish()
                raise

    own = {
        "statement_timeout": round(patience_seconds * 1_000),
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_MS,
        **_LIVENESS_OF_CLIENTS,
    }
    said = dict(url.query)
    options = [f"-c {name}={value}" for name, value in own.items()]
    given = said.pop("options", ())
    # The last one of a name holds.
    options += [given] if isinstance(given, str) else list(given)
    engine = create_engine(
        url.set(drivername="postgresql+psycopg", query=said),
        connect_args={"connect_timeout": _CONNECT_SECONDS, "application_name": "tollgate", **_LIVENESS}
        | {name: value for name, value in said.items() if isinstance(value, str)}
        | {"options": " ".join(options)},
        client_encoding="utf8",
        # Whatever is the database's own: by a snapshot from before its turn a writer sees nothing of those before it.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_SIZE,
        pool_timeout=wait_seconds,
        hide_parameters=True,
    )
    event.listen(engine, "do_connect", lambda _dialect, _record, args, named: Bounded.connect(*args, **named))
    return engine


def take_turn(connection: Connection, store: str) -> None:
    """Wait until no other writer of the store is in a transaction; the turn ends with this one.

    As on SQLite, where there is one writer at a time: what a change reads first is still so when it writes.
    """
    connection.execute(_TAKE_TURN, {"store": f"tollgate {store}"})


@contextmanager
def alone_on(engine: Engine) -> Iterator[bool]:
    """Whether nobody else holds this database for itself; nobody can, while the block runs and the connection lives.

    Raises SQLAlchemy's errors.
    """
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            yield bool(connection.execute(_HOLD, {"what": "tollgate alone"}).scalar())
        finally:
            # The hold is the session's: in the pool it would go on.
            connection.invalidate()


_HOLD = text("SELECT pg_try_advisory_lock(hashtextextended(:what, 0))")


@cache
def insert_rows(table: Table) -> str:
    """The head of a statement that inserts rows bound as one parameter, what `as_one` makes of them.

    It is as long for a thousand rows as for one: what a VALUES list has to be parsed for is then nothing.
    """
    names = ", ".join(table.c.keys())
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    values = ", ".join(f"CAST(given ->> {at} AS {column.type.compile(dialect)})" for at, column in enumerate(table.c))
    # All of it is names and types of the schema.
    return f"INSERT INTO {table.name} ({names}) SELECT {values} FROM jsonb_array_elements(%s::jsonb) AS given"  # noqa: S608 - as said


def as_one(rows: Sequence[tuple[object, ...]]) -> tuple[str]:
    """The parameter of `insert_rows`; the values of a row stand in the order of the table's columns."""
    return (msgspec.json.encode(rows).decode(),)


_TAKE_TURN = text("SELECT pg_advisory_xact_lock(hashtextextended(:store, 0))")
