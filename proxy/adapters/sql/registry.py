"""Changes of teams and keys: one transaction each, audited, noticed by every worker."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Unpack

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, select, update

from proxy.adapters.sql.engine import insert_into, reading, writing
from proxy.adapters.sql.rows import cache_salts_of, key_of, key_values, model_limits_of, model_list, team_of
from proxy.adapters.sql.tables import api_keys, audit_log, cache_salts, config_revision, model_limits, teams
from proxy.core.keys import RANDOM_BYTES, Peppers, kid_of, make_key
from proxy.core.principal import CacheMode, KeyRecord, Team
from proxy.core.registry import (
    BadValue,
    IssuedKey,
    KeyChanges,
    KeyLimits,
    KeyUnknown,
    TeamChanges,
    TeamExists,
    TeamFields,
    TeamUnknown,
    checked_name,
)
from proxy.core.tiers import LARGEST_LIMIT, Limits
from proxy.ports import Clock

__all__ = ["SqlRegistry"]

_LAST_INSTANT_MS = 253_402_300_799_999
"""The end of the year 9999: what lies behind it, nobody can be shown."""
_MAX_MODEL_CHARACTERS = 256
_SECRET_BYTES = 32
_NUMBERS = (*Limits.__slots__, "max_parallel")


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
        if values.get("shadow_tier"):
            values["shadow_since_ms"] = now_ms
        secret = {"cache_secret": secrets.token_bytes(_SECRET_BYTES)}
        with writing(self._engine, "registry", "add_team") as connection:
            made = insert_into(connection, teams).values(values | secret).on_conflict_do_nothing()
            if not connection.execute(made.returning(teams.c.name)).all():
                raise TeamExists(name)
            self._note(connection, "team.add", name, values)
            return _team(connection, name)

    def set_team(self, name: str, **changes: Unpack[TeamChanges]) -> Team:
        """Change the fields given; another tier, and another shadow tier, counts from now.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        values = _columns(changes)
        with writing(self._engine, "registry", "set_team") as connection:
            before = _team(connection, name)
            if values.get("tier", before.tier) != before.tier:
                values["tier_since_ms"] = self._clock.now_ms()
            if values.get("shadow_tier", before.shadow_tier) != before.shadow_tier:
                values["shadow_since_ms"] = self._clock.now_ms() if values["shadow_tier"] else None
            if values:
                connection.execute(update(teams).where(teams.c.name == name).values(values))
                self._note(connection, "team.set", name, values)
            return _team(connection, name)

    def set_model_limit(
        self, team: str, model: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> Team:
        """Limit the team's use of one model, in place of a limit it had; without numbers, limit it no more.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        _check_model(model)
        numbers = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        _check_numbers(numbers)
        with writing(self._engine, "registry", "set_model_limit") as connection:
            before = _team(connection, team).model_limits.get(model)
            if before == (Limits(**numbers) if any(numbers.values()) else None):
                return _team(connection, team)
            here = (model_limits.c.team, model_limits.c.model)
            if any(numbers.values()):
                made = insert_into(connection, model_limits).values(team=team, model=model, **numbers)
                connection.execute(made.on_conflict_do_update(index_elements=list(here), set_=numbers))
            else:
                connection.execute(delete(model_limits).where(here[0] == team, here[1] == model))
            self._note(connection, "team.limit", team, {"model": model, **numbers})
            return _team(connection, team)

    def purge_cache(self, team: str, model: str | None = None) -> Team:
        """Forget every answer kept for the team, or those of one model, by the name clients ask for.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        if model is not None:
            _check_model(model)
        fresh = secrets.token_bytes(_SECRET_BYTES)
        with writing(self._engine, "registry", "purge_cache") as connection:
            _team(connection, team)
            if model is None:
                connection.execute(update(teams).where(teams.c.name == team).values(cache_secret=fresh))
                # Under another secret no old digest can come again, whatever the salt.
                connection.execute(delete(cache_salts).where(cache_salts.c.team == team))
            else:
                made = insert_into(connection, cache_salts).values(team=team, model=model, salt=fresh)
                here = [cache_salts.c.team, cache_salts.c.model]
                connection.execute(made.on_conflict_do_update(index_elements=here, set_={"salt": fresh}))
            self._note(connection, "cache.purge", team, {"model": model})
            return _team(connection, team)

    def get_team(self, name: str) -> Team:
        """The team. Raises `TeamUnknown`, `StoreAway`."""
        with reading(self._engine, "registry", "get_team") as connection:
            return _team(connection, name)

    def list_teams(self) -> Sequence[Team]:
        """Every team, by name. Raises `StoreAway`."""
        with reading(self._engine, "registry", "list_teams") as connection:
            limits = model_limits_of(connection.execute(select(model_limits)).mappings())
            salts = cache_salts_of(connection.execute(select(cache_salts)).mappings())
            rows = connection.execute(select(teams).order_by(teams.c.name)).mappings()
            return [team_of(row, limits.get(row["name"], {}), salts.get(row["name"], {})) for row in rows]

    def issue_key(
        self,
        team: str,
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
        **limits: Unpack[KeyLimits],
    ) -> IssuedKey:
        """Make a key; it works at once and cannot be shown again. Raises `TeamUnknown`, `BadValue`, `StoreAway`."""
        _check_numbers(limits)
        rates = Limits(limits.get("requests_per_minute"), limits.get("tokens_per_minute"))
        own = None if rates == Limits() else rates
        issued = self._make_key(team, label, expires_at_ms, models, own, limits.get("max_parallel"))
        with writing(self._engine, "registry", "issue_key") as connection:
            _team(connection, team)
            self._keep_key(connection, issued.record, "key.issue")
        return issued

    def set_key(self, kid: str, **changes: Unpack[KeyChanges]) -> KeyRecord:
        """Change the fields given, of a key named by its id or by the beginning `sk-tg_<kid>`.

        Raises `KeyUnknown`, `BadValue`, `StoreAway`.
        """
        values: dict[str, object] = dict(changes)
        _check_numbers(values)
        if "label" in changes:
            _check_label(changes["label"])
        if "models" in changes:
            values["models"] = model_list(changes["models"])
        with writing(self._engine, "registry", "set_key") as connection:
            record = _key(connection, kid)
            if values:
                _set_key(connection, record.kid, **values)
                self._note(connection, "key.set", record.kid, values)
            return _key(connection, record.kid)

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
            issued = self._make_key(old.team, old.label, old.expires_at_ms, old.models, old.limits, old.max_parallel)
            self._keep_key(connection, issued.record, "key.rotate")
            ends_at_ms = min(now_ms + overlap_ms, old.expires_at_ms or _LAST_INSTANT_MS)
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

    def _make_key(
        self,
        team: str,
        label: str,
        expires_at_ms: int | None,
        models: frozenset[str] | None,
        limits: Limits | None,
        max_parallel: int | None,
    ) -> IssuedKey:
        now_ms = self._clock.now_ms()
        if expires_at_ms is not None and expires_at_ms <= now_ms:
            raise BadValue("expires_at_ms", "must be in the future")
        if expires_at_ms is not None and expires_at_ms > _LAST_INSTANT_MS:
            raise BadValue("expires_at_ms", "is too far ahead")
        _check_label(label)
        kid, key = make_key(secrets.token_bytes(RANDOM_BYTES))
        pepper_id, secret_hash = self._peppers.hash(key)
        record = KeyRecord(
            kid, team, label, now_ms, expires_at_ms, None, models, pepper_id, secret_hash, limits, max_parallel
        )
        return IssuedKey(key=key, record=record)

    def _keep_key(self, connection: Connection, record: KeyRecord, action: str) -> None:
        values = key_values(record)
        connection.execute(insert(api_keys).values(values))
        told = ("team", "label", "expires_at_ms", "models", "requests_per_minute", "tokens_per_minute", "max_parallel")
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
    limits = connection.execute(select(model_limits).where(model_limits.c.team == name)).mappings()
    salts = connection.execute(select(cache_salts).where(cache_salts.c.team == name)).mappings()
    return team_of(row, model_limits_of(limits).get(name, {}), cache_salts_of(salts).get(name, {}))


def _key(connection: Connection, text: str) -> KeyRecord:
    kid = kid_of(text)
    row = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first() if kid else None
    if row is None:
        raise KeyUnknown(kid or "")
    return key_of(row)


def _set_key(connection: Connection, kid: str, **values: object) -> None:
    connection.execute(update(api_keys).where(api_keys.c.kid == kid).values(values))


def _columns(changes: TeamChanges) -> dict[str, object]:
    """Columns of `teams` for the fields of a change."""
    columns: dict[str, object] = dict(changes)
    if "tier" in changes and not changes["tier"]:
        raise BadValue("tier", "must be the name of a tier")
    if changes.get("shadow_tier") == "":
        raise BadValue("shadow_tier", "must be the name of a tier")
    if "models" in changes:
        columns["models"] = model_list(changes["models"])
    if "cache_mode" in changes:
        columns["cache_mode"] = CacheMode(changes["cache_mode"]).value
    _check_numbers(columns)
    return columns


def _check_numbers(values: Mapping[str, object]) -> None:
    for name in _NUMBERS:
        number = values.get(name)
        if number is not None and (not isinstance(number, int) or not 0 < number <= LARGEST_LIMIT):
            raise BadValue(name, f"must be a whole number from 1 to {LARGEST_LIMIT}")


def _check_model(model: str) -> None:
    if not 0 < len(model) <= _MAX_MODEL_CHARACTERS or not model.isprintable():
        raise BadValue("model", f"must be printable, and 1 to {_MAX_MODEL_CHARACTERS} characters")


def _check_label(label: str) -> None:
    if len(label) > 200 or not label.isprintable():
        raise BadValue("label", "must be printable, and at most 200 characters")
