"""Changes of teams and keys: one transaction each, audited, noticed by every worker."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from proxy.adapters.sql.engine import insert_into, reading, writing
from proxy.adapters.sql.rows import key_of, model_list, team_of
from proxy.adapters.sql.tables import api_keys, audit_log, config_revision, teams
from proxy.core.keys import RANDOM_BYTES, Peppers, kid_of, make_key
from proxy.core.principal import CacheMode, KeyRecord, Team
from proxy.core.registry import (
    BadValue,
    IssuedKey,
    KeyUnknown,
    TeamChanges,
    TeamExists,
    TeamFields,
    TeamUnknown,
    checked_name,
)
from proxy.core.tiers import Limits
from proxy.ports import Clock

__all__ = ["SqlRegistry"]

_MAX_NUMBER = 2**53


class SqlRegistry:
    """The registry of an SQL database; implements `core.registry.Registry`. `actor` is who the audit log names."""

    def __init__(self, engine: Engine, clock: Clock, peppers: Peppers, actor: str = "cli") -> None:
        self._engine = engine
        self._clock = clock
        self._peppers = peppers
        self._actor = actor

    def add_team(self, name: str, tier: str, **fields: Unpack[TeamFields]) -> Team:
        """Make a team; it is on the tier from now. Raises `TeamExists`, `BadName`, `BadValue`, `StoreAway`."""
        now_ms = self._clock.now_ms()
        values = {"cache_mode": CacheMode.DETERMINISTIC.value, "allow_stateful": False} | _columns(
            {"tier": tier, **fields}
        )
        values |= {"name": checked_name(name), "tier_since_ms": now_ms, "created_at_ms": now_ms}
        secret = {"cache_secret": secrets.token_bytes(32)}
        with writing(self._engine, "registry", "add_team") as connection:
            made = insert_into(connection, teams).values(values | secret).on_conflict_do_nothing()
            if not connection.execute(made.returning(teams.c.name)).all():
                raise TeamExists(name)
            self._note(connection, "team.add", name, values)
            return _team(connection, name)

    def set_team(self, name: str, **changes: Unpack[TeamChanges]) -> Team:
        """Change the fields given; another tier counts from now. Raises `TeamUnknown`, `BadValue`, `StoreAway`."""
        values = _columns(changes)
        with writing(self._engine, "registry", "set_team") as connection:
            before = _team(connection, name)
            if values.get("tier", before.tier) != before.tier:
                values["tier_since_ms"] = self._clock.now_ms()
            if values:
                connection.execute(update(teams).where(teams.c.name == name).values(values))
                self._note(connection, "team.set", name, values)
            return _team(connection, name)

    def get_team(self, name: str) -> Team:
        """The team. Raises `TeamUnknown`, `StoreAway`."""
        with reading(self._engine, "registry", "get_team") as connection:
            return _team(connection, name)

    def list_teams(self) -> Sequence[Team]:
        """Every team, by name. Raises `StoreAway`."""
        with reading(self._engine, "registry", "list_teams") as connection:
            return [team_of(row) for row in connection.execute(select(teams).order_by(teams.c.name)).mappings()]

    def issue_key(
        self,
        team: str,
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
    ) -> IssuedKey:
        """Make a key; it works at once and cannot be shown again. Raises `TeamUnknown`, `BadValue`, `StoreAway`."""
        issued = self._make_key(team, label, expires_at_ms, models)
        with writing(self._engine, "registry", "issue_key") as connection:
            _team(connection, team)
            self._keep_key(connection, issued.record, "key.issue")
        return issued

    def list_keys(self, team: str | None = None) -> Sequence[KeyRecord]:
        """Every key, or a team's, oldest first. Raises `TeamUnknown`, `StoreAway`."""
        query = select(api_keys).order_by(api_keys.c.created_at_ms, api_keys.c.kid)
        with reading(self._engine, "registry", "list_keys") as connection:
            if team is not None:
                _team(connection, team)
                query = query.where(api_keys.c.team == team)
            return [key_of(row) for row in connection.execute(query).mappings()]

    def rotate_key(self, kid: str, overlap_ms: int = 0) -> IssuedKey:
        """Make a second key like this one, which stops after the overlap (milliseconds).

        A key that is revoked or expired cannot be rotated. Raises `KeyUnknown`, `BadValue`, `StoreAway`.
        """
        if overlap_ms < 0:
            raise BadValue("overlap_ms", "must not be negative")
        with writing(self._engine, "registry", "rotate_key") as connection:
            old = _key(connection, kid)
            now_ms = self._clock.now_ms()
            if not old.live_at(now_ms):
                raise BadValue("kid", "the key is revoked or expired; issue a new one")
            issued = self._make_key(old.team, old.label, old.expires_at_ms, old.models)
            self._keep_key(connection, issued.record, "key.rotate")
            ends_at_ms = min(now_ms + overlap_ms, old.expires_at_ms or _MAX_NUMBER)
            _set_key(connection, old.kid, expires_at_ms=ends_at_ms)
            self._note(connection, "key.expire", old.kid, {"expires_at_ms": ends_at_ms, "successor": issued.record.kid})
        return issued

    def revoke_key(self, kid: str) -> KeyRecord:
        """End a key, named by its id or by the beginning `sk-tg_<kid>`; again changes nothing.

        Raises `KeyUnknown`, `StoreAway`.
        """
        with writing(self._engine, "registry", "revoke_key") as connection:
            record = _key(connection, kid)
            if record.revoked_at_ms is not None:
                return record
            now_ms = self._clock.now_ms()
            _set_key(connection, record.kid, revoked_at_ms=now_ms)
            self._note(connection, "key.revoke", record.kid, {"team": record.team})
            return replace(record, revoked_at_ms=now_ms)

    def _make_key(self, team: str, label: str, expires_at_ms: int | None, models: frozenset[str] | None) -> IssuedKey:
        now_ms = self._clock.now_ms()
        if expires_at_ms is not None and not now_ms < expires_at_ms <= _MAX_NUMBER:
            raise BadValue("expires_at_ms", "must be in the future")
        if len(label) > 200 or not label.isprintable():
            raise BadValue("label", "must be printable, and at most 200 characters")
        kid, key = make_key(secrets.token_bytes(RANDOM_BYTES))
        pepper_id, secret_hash = self._peppers.hash(key)
        record = KeyRecord(kid, team, label, now_ms, expires_at_ms, None, models, pepper_id, secret_hash)
        return IssuedKey(key=key, record=record)

    def _keep_key(self, connection: Connection, record: KeyRecord, action: str) -> None:
        values = {name: getattr(record, name) for name in KeyRecord.__slots__} | {"models": model_list(record.models)}
        connection.execute(insert(api_keys).values(values))
        told = ("team", "label", "expires_at_ms", "models")
        self._note(connection, action, record.kid, {name: values[name] for name in told})

    def _note(self, connection: Connection, action: str, subject: str, details: Mapping[str, object]) -> None:
        connection.execute(update(config_revision).values(revision=config_revision.c.revision + 1))
        connection.execute(
            insert(audit_log).values(
                at_ms=self._clock.now_ms(),
                actor=self._actor,
                action=action,
                subject=subject,
                details=msgspec.json.encode(details).decode(),
            )
        )


def _team(connection: Connection, name: str) -> Team:
    row = connection.execute(select(teams).where(teams.c.name == name)).mappings().first()
    if row is None:
        raise TeamUnknown(name)
    return team_of(row)


def _key(connection: Connection, text: str) -> KeyRecord:
    kid = kid_of(text)
    row = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first() if kid else None
    if row is None:
        raise KeyUnknown(kid or "")
    return key_of(row)


def _set_key(connection: Connection, kid: str, **values: int) -> None:
    connection.execute(update(api_keys).where(api_keys.c.kid == kid).values(values))


def _columns(changes: TeamChanges) -> dict[str, object]:
    """Columns of `teams` for the fields of a change."""
    columns: dict[str, object] = dict(changes)
    if "tier" in changes and not changes["tier"]:
        raise BadValue("tier", "must be the name of a tier")
    if "models" in changes:
        columns["models"] = model_list(changes["models"])
    if "cache_mode" in changes:
        columns["cache_mode"] = CacheMode(changes["cache_mode"]).value
    for name in Limits.__slots__:
        number = columns.get(name)
        if number is not None and (not isinstance(number, int) or not 0 < number <= _MAX_NUMBER):
            raise BadValue(name, "must be a whole number above zero")
    return columns
