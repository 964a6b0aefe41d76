"""Keys and teams as the request path reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Connection, Engine, and_, bindparam, or_, select, update

from proxy.adapters.sql.engine import insert_into, reading, writing
from proxy.adapters.sql.rows import (
    budgets_in,
    cache_salts_of,
    key_of,
    model_limits_of,
    secret_values,
    secrets_in,
    team_of,
)
from proxy.adapters.sql.tables import (
    api_keys,
    audit_log,
    budgets,
    cache_salts,
    config_revision,
    key_secrets,
    model_limits,
    peppers,
    teams,
)
from proxy.core.principal import KeyRecord, KeySecret, Team
from proxy.ports import USES_EVERY_MS, ChangesSeen

__all__ = ["SqlKeyStore"]

_ENDS_KEYS = frozenset({"key.revoke", "key.rotate"})
_CHANGES_SUBJECT = frozenset({"team.set", "team.limit", "cache.purge", "key.set"}) | _ENDS_KEYS
_MAKES_TEAM = "team.add"
_MAKES = frozenset({_MAKES_TEAM, "key.issue", "key.import"})
_MAY_END_ANY = "pepper.rotate"
"""When the peppers there were are said to be lost."""
_OUT_OF_TURN = "ledger.rebuild"
"""Changes no team and no key, and is written by no administrator: its line may be seen before one with a lower id."""
_NEWEST_TEAMS = 200


class SqlKeyStore:
    """The key store of an SQL database; implements `ports.KeyStore`.

    Each call takes a thread, so that a slow database holds up no other request.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, kid: str) -> tuple[KeyRecord, Team] | None:
        """The key with this id and its team, whatever its state, or None. Raises `StoreAway`."""
        return await asyncio.to_thread(self._find, "find", kid, ())

    async def find_imported(self, hashes: Sequence[bytes]) -> tuple[KeyRecord, Team] | None:
        """The key made elsewhere that has one of these hashes, and its team, or None. Raises `StoreAway`."""
        return await asyncio.to_thread(self._find, "find_imported", None, hashes)

    async def imported_under(self) -> frozenset[int]:
        """Versions of the pepper that keys made elsewhere are hashed under; empty without any. Raises `StoreAway`."""
        return await asyncio.to_thread(self._imported_under)

    async def revision(self) -> int:
        """A number that grows with every change of a key or team, by whatever process. Raises `StoreAway`."""
        return await asyncio.to_thread(self.read_revision)

    async def changes(self, seen: ChangesSeen | None) -> ChangesSeen:
        """What has changed since `seen`, which is returned when nothing has. Raises `StoreAway`."""
        return await asyncio.to_thread(self._changes, seen)

    async def note_uses(self, used_at_ms: Mapping[str, int]) -> None:
        """Keep when keys were last used, by their ids; what is at most a minute newer stays out. Raises `StoreAway`."""
        await asyncio.to_thread(self._note_uses, used_at_ms)

    async def add_hash(self, kid: str, known: KeySecret, pepper_id: int, secret_hash: bytes) -> None:
        """Have a secret that is known under one pepper be known under another as well. Raises `StoreAway`."""
        await asyncio.to_thread(self._add_hash, kid, known, pepper_id, secret_hash)

    def _find(self, operation: str, kid: str | None, hashes: Sequence[bytes]) -> tuple[KeyRecord, Team] | None:
        with reading(self._engine, "keys", operation) as connection:
            if kid is None:
                imported = and_(key_secrets.c.secret_hash.in_(hashes), key_secrets.c.imported)
                kid = connection.execute(select(key_secrets.c.kid).where(imported).limit(1)).scalar()
            key = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first() if kid else None
            if key is None:
                return None
            name = key["team"]
            opening = secrets_in(connection, key_secrets.c.kid == kid)
            team = connection.execute(select(teams).where(teams.c.name == name)).mappings().one()
            limits = connection.execute(select(model_limits).where(model_limits.c.team == name)).mappings()
            salts = connection.execute(select(cache_salts).where(cache_salts.c.team == name)).mappings()
            own = budgets_in(connection, budgets.c.team == name, budgets.c.kid.in_(("", key["kid"])))
            return key_of(key, opening.get(key["kid"], ()), own.get((name, key["kid"]), ())), team_of(
                team,
                model_limits_of(limits).get(name, {}),
                cache_salts_of(salts).get(name, {}),
                own.get((name, ""), ()),
            )

    def _imported_under(self) -> frozenset[int]:
        with reading(self._engine, "keys", "imported_under") as connection:
            versions = connection.execute(select(key_secrets.c.pepper_id).where(key_secrets.c.imported).distinct())
            return frozenset(versions.scalars())

    def _note_uses(self, used_at_ms: Mapping[str, int]) -> None:
        before = api_keys.c.last_used_at_ms
        fresh: ColumnElement[int] = bindparam("at_ms")
        change = update(api_keys).where(
            api_keys.c.kid == bindparam("key"), or_(before.is_(None), before <= fresh - USES_EVERY_MS)
        )
        rows = [{"key": kid, "at_ms": at_ms} for kid, at_ms in used_at_ms.items()]
        with writing(self._engine, "keys", "note_uses") as connection:
            connection.execute(change.values(last_used_at_ms=fresh), rows)

    def _add_hash(self, kid: str, known: KeySecret, pepper_id: int, secret_hash: bytes) -> None:
        # In the turn of those who change keys: a rotation that is under way may be ending this very secret.
        with writing(self._engine, "registry", "add_hash") as connection:
            found = secrets_in(connection, key_secrets.c.secret_hash == known.secret_hash).get(kid)
            if found is None or _is_retired(connection, pepper_id):
                return
            twin = replace(found[0], pepper_id=pepper_id, secret_hash=secret_hash)
            made = insert_into(connection, key_secrets).values(secret_values(kid, twin))
            connection.execute(made.on_conflict_do_nothing())

    def read_revision(self) -> int:
        """Read the revision on the caller's own thread. Raises `StoreAway`."""
        with reading(self._engine, "keys", "revision") as connection:
            return _revision(connection)

    def _changes(self, seen: ChangesSeen | None) -> ChangesSeen:
        # At one instant: a line that is not here yet comes with a later revision.
        with reading(self._engine, "keys", "changes") as connection:
            revision = _revision(connection)
            is_known = seen is not None and _written_ms(connection, seen.serial) == seen.written_ms
            if seen is not None and is_known and revision == seen.revision:
                return seen
            line = audit_log.c
            lines = select(line.id, line.at_ms, line.action, line.subject).where(line.action != _OUT_OF_TURN)
            if seen is None or not is_known or revision < seen.revision:
                # Nothing was seen yet, or what was seen is no more: another database is in its place, such as a
                # standby that had not heard of the last changes, however many were made in it since.
                last = connection.execute(lines.order_by(line.id.desc()).limit(1)).first()
                newest = select(teams.c.name).order_by(teams.c.created_at_ms.desc(), teams.c.name).limit(_NEWEST_TEAMS)
                names = tuple(connection.execute(newest).scalars())
                serial, written_ms = (last.id, last.at_ms) if last else (0, None)
                return ChangesSeen(revision, serial, None, None, names, written_ms)
            since = connection.execute(lines.where(line.id > seen.serial).order_by(line.id)).all()
        told = [(each.action, each.subject) for each in since]
        ended = frozenset(subject for action, subject in told if action in _ENDS_KEYS)
        changed = frozenset(subject for action, subject in told if action in _CHANGES_SUBJECT)
        # Each change moves the revision on by one: what no line tells of may have changed anything.
        is_told = revision - seen.revision == sum(action in _CHANGES_SUBJECT | _MAKES for action, _ in told)
        return ChangesSeen(
            revision,
            since[-1].id if since else seen.serial,
            None if any(action == _MAY_END_ANY for action, _ in told) else ended,
            changed if is_told else None,
            tuple(subject for action, subject in told if action == _MAKES_TEAM),
            since[-1].at_ms if since else seen.written_ms,
        )


def _revision(connection: Connection) -> int:
    revision: int = connection.execute(select(config_revision.c.revision)).scalar_one()
    return revision


def _written_ms(connection: Connection, serial: int) -> int | None:
    """When a line of the audit log was written; None where there is none."""
    written_ms: int | None = connection.execute(select(audit_log.c.at_ms).where(audit_log.c.id == serial)).scalar()
    return written_ms


def _is_retired(connection: Connection, version: int) -> bool:
    noted = connection.execute(select(peppers.c.retired_at_ms).where(peppers.c.version == version)).first()
    return noted is None or noted[0] is not None
