"""Changes of keys."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import Unpack

from sqlalchemy import Connection, insert, select, update

from proxy.adapters.sql.changes import Changes, check_numbers, key_in, team_in
from proxy.adapters.sql.rows import key_of, key_values, model_list
from proxy.adapters.sql.tables import api_keys
from proxy.core.keys import RANDOM_BYTES, make_key
from proxy.core.principal import KeyRecord
from proxy.core.registry import BadValue, IssuedKey, KeyChanges, KeyLimits
from proxy.core.tiers import Limits

__all__ = ["SqlKeys"]

_LAST_INSTANT_MS = 253_402_300_799_999
"""The end of the year 9999: what lies behind it, nobody can be shown."""


class SqlKeys(Changes):
    """The keys of `core.registry.Registry`."""

    def issue_key(
        self,
        team: str,
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
        **limits: Unpack[KeyLimits],
    ) -> IssuedKey:
        """Make a key; it works at once and cannot be shown again. Raises `TeamUnknown`, `BadValue`, `StoreAway`."""
        check_numbers(limits)
        rates = Limits(limits.get("requests_per_minute"), limits.get("tokens_per_minute"))
        own = None if rates == Limits() else rates
        issued = self._make_key(team, label, expires_at_ms, models, own, limits.get("max_parallel"))
        with self._change("issue_key") as connection:
            team_in(connection, team)
            self._keep_key(connection, issued.record, "key.issue")
        return issued

    def set_key(self, kid: str, **changes: Unpack[KeyChanges]) -> KeyRecord:
        """Change the fields given, of a key named by its id or by the beginning `sk-tg_<kid>`.

        Raises `KeyUnknown`, `BadValue`, `StoreAway`.
        """
        values: dict[str, object] = dict(changes)
        check_numbers(values)
        if "label" in changes:
            _check_label(changes["label"])
        if "models" in changes:
            values["models"] = model_list(changes["models"])
        with self._change("set_key") as connection:
            record = key_in(connection, kid)
            if values:
                _set_key(connection, record.kid, **values)
                self._note(connection, "key.set", record.kid, values)
            return key_in(connection, record.kid)

    def list_keys(self, team: str | None = None) -> Sequence[KeyRecord]:
        """Every key, or a team's, oldest first. Raises `TeamUnknown`, `StoreAway`."""
        query = select(api_keys).order_by(api_keys.c.created_at_ms, api_keys.c.kid)
        with self._look("list_keys") as connection:
            if team is not None:
                team_in(connection, team)
                query = query.where(api_keys.c.team == team)
            return [key_of(row) for row in connection.execute(query).mappings()]

    def rotate_key(self, kid: str, overlap_ms: int = 0) -> IssuedKey:
        """Make a second key like this one, which stops after the overlap (milliseconds).

        A key that is revoked or expired cannot be rotated. Raises `KeyUnknown`, `BadValue`, `StoreAway`.
        """
        if overlap_ms < 0:
            raise BadValue("overlap_ms", "must not be negative")
        with self._change("rotate_key") as connection:
            old = key_in(connection, kid)
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
        with self._change("revoke_key") as connection:
            record = key_in(connection, kid)
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


def _set_key(connection: Connection, kid: str, **values: object) -> None:
    connection.execute(update(api_keys).where(api_keys.c.kid == kid).values(values))


def _check_label(label: str) -> None:
    if len(label) > 200 or not label.isprintable():
        raise BadValue("label", "must be printable, and at most 200 characters")
