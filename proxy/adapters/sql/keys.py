"""Changes of keys."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Unpack

from msgspec.structs import replace
from sqlalchemy import Connection, and_, delete, insert, or_, select, tuple_, update

from proxy.adapters.sql.budgets import changed, keep_budgets, told_budgets
from proxy.adapters.sql.changes import Changes, check_numbers, key_in, team_in
from proxy.adapters.sql.rows import budgets_in, key_of, key_values, model_list, secret_values, secrets_in
from proxy.adapters.sql.tables import api_keys, budgets, key_secrets
from proxy.core.keys import RANDOM_BYTES, Peppers, make_key, why_guessable, why_not_imported
from proxy.core.names import checked_label, checked_models
from proxy.core.principal import KeyRecord, KeySecret
from proxy.core.registry import BadLine, BadValue, IssuedKey, KeyChanges, KeyLimits
from proxy.core.tiers import Limits

__all__ = ["SqlKeys"]

_LAST_INSTANT_MS = 253_402_300_799_999
"""The end of the year 9999: what lies behind it, nobody can be shown."""
_MAX_LIVE_SECRETS = 4
_BATCH = 500
_TOLD = ("label", "expires_at_ms", "models", "requests_per_minute", "tokens_per_minute", "max_parallel", "max_wait_ms")


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
        """Make a key; it works at once and cannot be shown again.

        Raises `TeamUnknown`, `BadValue`, `DataUnusable`, `StoreAway`.
        """
        described = self._described(team, label, expires_at_ms, models, limits)
        with self._change("issue_key") as connection:
            team_in(connection, team)
            kid, key = make_key(secrets.token_bytes(RANDOM_BYTES))
            record = replace(described, kid=kid, secrets=(self._secret(self._agreed(connection), key),))
            _keep(connection, [record])
            self._note(connection, "key.issue", kid, team, _told(record))
        return IssuedKey(key=key, record=record)

    def import_keys(
        self,
        team: str,
        lines: Sequence[str],
        label: str = "",
        expires_at_ms: int | None = None,
        models: frozenset[str] | None = None,
        *,
        allow_weak: bool = False,
        **limits: Unpack[KeyLimits],
    ) -> Sequence[KeyRecord]:
        """Take over keys that were made elsewhere, one a line, all or none of them; empty lines are none.

        `allow_weak`: also those that could be guessed. Raises `TeamUnknown`, `BadValue`, `BadLine`, `DataUnusable`,
        `StoreAway`.
        """
        texts = _checked_lines(lines, allow_weak=allow_weak)
        described = self._described(team, label, expires_at_ms, models, limits)
        with self._change("import_keys") as connection:
            team_in(connection, team)
            peppers = self._agreed(connection)
            _refuse_known(connection, peppers, texts)
            records = []
            for text in texts.values():
                kid, _ = make_key(secrets.token_bytes(RANDOM_BYTES))
                records.append(replace(described, kid=kid, secrets=(self._secret(peppers, text, imported=True),)))
            _keep(connection, records)
            kids = [record.kid for record in records]
            self._note(connection, "key.import", team, team, {"keys": kids, **_told(described)})
        return records

    def set_key(self, kid: str, **changes: Unpack[KeyChanges]) -> KeyRecord:
        """Change the fields given, of a key named by its id or by the beginning `sk-tg_<kid>`.

        Raises `KeyUnknown`, `BadValue`, `StoreAway`.
        """
        values: dict[str, object] = {name: value for name, value in changes.items() if name != "budgets"}
        check_numbers(values)
        if "label" in changes:
            checked_label(changes["label"])
        if "models" in changes:
            values["models"] = model_list(checked_models(changes["models"]))
        with self._change("set_key") as connection:
            record = key_in(connection, kid)
            told: dict[str, object] = {}
            if changes.get("budgets"):
                own = changed(record.budgets, changes["budgets"])
                keep_budgets(connection, record.team, [record.kid], own)
                told = {"budgets": told_budgets(own, changes["budgets"])}
            if values:
                _set(connection, record.kid, **values)
            if values or told:
                self._note(connection, "key.set", record.kid, record.team, values | told)
            return key_in(connection, record.kid)

    def get_key(self, kid: str) -> KeyRecord:
        """The key, named by its id or by the beginning `sk-tg_<kid>`. Raises `KeyUnknown`, `StoreAway`."""
        with self._look("get_key") as connection:
            return key_in(connection, kid)

    def list_keys(
        self, team: str | None = None, *, after: tuple[int, str] | None = None, limit: int | None = None
    ) -> Sequence[KeyRecord]:
        """Every key, or a team's, oldest first; at most `limit`, of those that come after `after`.

        `after`: when the last key of the page before was made (unix milliseconds), and its id. Raises `TeamUnknown`,
        `StoreAway`.
        """
        place = (api_keys.c.created_at_ms, api_keys.c.kid)
        query = select(api_keys).order_by(*place).limit(limit)
        if after is not None:
            query = query.where(tuple_(*place) > after)
        with self._look("list_keys") as connection:
            if team is not None:
                team_in(connection, team)
                query = query.where(api_keys.c.team == team)
            kids = None if team is None and limit is None else query.with_only_columns(api_keys.c.kid)
            opening = secrets_in(connection, None if kids is None else key_secrets.c.kid.in_(kids))
            owned = budgets_in(connection, *([budgets.c.kid != ""] if kids is None else [budgets.c.kid.in_(kids)]))
            return [
                key_of(row, opening.get(row["kid"], ()), owned.get((row["team"], row["kid"]), ()))
                for row in connection.execute(query).mappings()
            ]

    def rotate_key(self, kid: str, overlap_ms: int = 0) -> IssuedKey:
        """Give a key another secret; those it had stop after the overlap (milliseconds).

        All else of the key stays as it is, what it has used included. A key that is revoked or expired cannot be
        rotated. Raises `KeyUnknown`, `BadValue`, `DataUnusable`, `StoreAway`.
        """
        if overlap_ms < 0:
            raise BadValue("overlap_ms", "must not be negative")
        with self._change("rotate_key") as connection:
            old = key_in(connection, kid)
            now_ms = self._clock.now_ms()
            if not old.live_at(now_ms):
                raise BadValue("kid", "the key is revoked or expired; issue a new one")
            live = {secret.serial for secret in old.secrets if secret.live_at(now_ms)}
            if overlap_ms and len(live) >= _MAX_LIVE_SECRETS:
                raise BadValue("overlap_ms", f"{len(live)} secrets of this key still work: wait, or end them with 0")
            ends_at_ms = min(now_ms + overlap_ms, _LAST_INSTANT_MS)
            _end_secrets(connection, old.kid, now_ms, ends_at_ms)
            self.ended += [] if overlap_ms else [old.kid]
            _, key = make_key(secrets.token_bytes(RANDOM_BYTES), old.kid)
            serial = 1 + max((secret.serial for secret in old.secrets), default=0)
            fresh = self._secret(self._agreed(connection), key, serial=serial)
            connection.execute(insert(key_secrets).values(secret_values(old.kid, fresh)))
            self._note(connection, "key.rotate", old.kid, old.team, {"serial": serial, "old_ends_at_ms": ends_at_ms})
            return IssuedKey(key=key, record=key_in(connection, old.kid))

    def revoke_key(self, kid: str) -> KeyRecord:
        """End a key, named by its id or by the beginning `sk-tg_<kid>`; again changes nothing.

        Raises `KeyUnknown`, `StoreAway`.
        """
        with self._change("revoke_key") as connection:
            record = key_in(connection, kid)
            # Each time: somebody may not have been told of it the first time.
            self.ended.append(record.kid)
            if record.revoked_at_ms is not None:
                return record
            now_ms = self._clock.now_ms()
            _set(connection, record.kid, revoked_at_ms=now_ms)
            self._note(connection, "key.revoke", record.kid, record.team, {})
            return replace(record, revoked_at_ms=now_ms)

    def _described(
        self, team: str, label: str, expires_at_ms: int | None, models: frozenset[str] | None, limits: KeyLimits
    ) -> KeyRecord:
        """A key that has everything but an id and a secret. Raises `BadValue`."""
        check_numbers(limits)
        now_ms = self._clock.now_ms()
        if expires_at_ms is not None and expires_at_ms <= now_ms:
            raise BadValue("expires_at_ms", "must be in the future")
        if expires_at_ms is not None and expires_at_ms > _LAST_INSTANT_MS:
            raise BadValue("expires_at_ms", "is too far ahead")
        rates = Limits(limits.get("requests_per_minute"), limits.get("tokens_per_minute"))
        return KeyRecord(
            kid="",
            team=team,
            label=checked_label(label),
            created_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
            revoked_at_ms=None,
            models=checked_models(models),
            secrets=(),
            limits=None if rates == Limits() else rates,
            max_parallel=limits.get("max_parallel"),
            created_by=self._actor,
            budgets=changed((), limits.get("budgets", {})),
            max_wait_ms=limits.get("max_wait_ms"),
        )

    def _secret(self, peppers: Peppers, text: str, *, serial: int = 1, imported: bool = False) -> KeySecret:
        pepper_id, secret_hash = peppers.hash(text)
        return KeySecret(serial, pepper_id, secret_hash, self._clock.now_ms(), imported=imported)


def _checked_lines(lines: Sequence[str], *, allow_weak: bool) -> dict[int, str]:
    """Keys by the number of their line. Raises `BadLine`, `BadValue`."""
    found: dict[int, str] = {}
    first: dict[str, int] = {}
    for number, text in enumerate(lines, 1):
        if not text:
            continue
        if reason := why_not_imported(text):
            raise BadLine(number, reason)
        if not allow_weak and (reason := why_guessable(text)):
            raise BadLine(number, f"the key can be guessed: {reason}")
        if text in first:
            raise BadLine(number, f"the key stands on line {first[text]} already")
        first[text] = number
        found[number] = text
    if not found:
        raise BadValue("keys", "there is none to import")
    return found


def _refuse_known(connection: Connection, peppers: Peppers, texts: Mapping[int, str]) -> None:
    """Raise `BadLine` for the first line whose key is known already, under whatever pepper."""
    lines = {secret_hash: line for line, text in texts.items() for secret_hash in peppers.hashes(text).values()}
    owners: dict[int, str] = {}
    for some in _batches(list(lines)):
        query = select(key_secrets.c.secret_hash, api_keys.c.kid, api_keys.c.team).join(
            api_keys, api_keys.c.kid == key_secrets.c.kid
        )
        for row in connection.execute(query.where(key_secrets.c.secret_hash.in_(some))):
            owners[lines[row.secret_hash]] = f"{row.kid} of team {row.team}"
    if owners:
        line = min(owners)
        raise BadLine(line, f"the key is known already, as {owners[line]}")


def _batches(hashes: list[bytes]) -> Iterator[list[bytes]]:
    for start in range(0, len(hashes), _BATCH):
        yield hashes[start : start + _BATCH]


def _keep(connection: Connection, records: Sequence[KeyRecord]) -> None:
    connection.execute(insert(api_keys), [key_values(record) for record in records])
    rows = [secret_values(record.kid, secret) for record in records for secret in record.secrets]
    connection.execute(insert(key_secrets), rows)
    if records[0].budgets:
        keep_budgets(connection, records[0].team, [record.kid for record in records], records[0].budgets)


def _told(record: KeyRecord) -> dict[str, object]:
    """What the audit log says of a new key."""
    values = key_values(record)
    told = {name: values[name] for name in _TOLD}
    if record.budgets:
        told["budgets"] = told_budgets(record.budgets, [budget.period for budget in record.budgets])
    return told


def _set(connection: Connection, kid: str, **values: object) -> None:
    connection.execute(update(api_keys).where(api_keys.c.kid == kid).values(values))


def _end_secrets(connection: Connection, kid: str, now_ms: int, ends_at_ms: int) -> None:
    """Have the key's secrets end no later than then, and forget those that have ended."""
    here = key_secrets.c.kid == kid
    ends = key_secrets.c.ends_at_ms
    # An imported one is kept, so that nobody else can be given it.
    connection.execute(delete(key_secrets).where(and_(here, ends <= now_ms, key_secrets.c.imported.is_(False))))
    later = or_(ends.is_(None), ends > ends_at_ms)
    connection.execute(update(key_secrets).where(here, later).values(ends_at_ms=ends_at_ms))
