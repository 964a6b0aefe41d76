"""Versions of the pepper: made, listed and retired; the peppers themselves are kept outside the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, exists, insert, select, update

from proxy.adapters.sql.agreement import keys_by_needed_version
from proxy.adapters.sql.changes import Changes
from proxy.adapters.sql.tables import key_secrets, peppers
from proxy.core.registry import BadValue, PepperRecord

__all__ = ["SqlPeppers"]

_MAX_VERSIONS = 8
"""Each key that is presented is hashed under all of them."""


class SqlPeppers(Changes):
    """The peppers of `core.registry.Registry`."""

    def list_peppers(self) -> Sequence[PepperRecord]:
        """Every version of the pepper that keys were ever hashed under, oldest first. Raises `StoreAway`."""
        with self._look("list_peppers") as connection:
            return self._records(connection)

    def rotate_pepper(self, *, lost: bool = False) -> PepperRecord:
        """Make a new pepper, for every key issued from now on; keys issued before go on.

        `lost`: forget the peppers there are, which are not the ones that keys are hashed under. Raises `BadValue`,
        `DataUnusable`, `OSError`, `StoreAway`.
        """
        with self._change("rotate_pepper") as connection:
            before = self._peppers.latest() if lost else self._agreed(connection)
            if len(before.secrets) >= _MAX_VERSIONS and not lost:
                raise BadValue("pepper", f"there are {_MAX_VERSIONS} versions; retire one that no key needs")
            noted = connection.execute(select(peppers.c.version)).scalars()
            version = 1 + max((*noted, *before.secrets), default=0)
            after = self._peppers.add(version, alone=lost)
            made = {
                "version": version,
                "fingerprint": after.fingerprint(version),
                "created_at_ms": self._clock.now_ms(),
            }
            connection.execute(insert(peppers).values(made))
            self._note(connection, "pepper.rotate", str(version), None, {"lost": lost})
            return self._record(connection, version)

    def retire_pepper(self, version: int) -> PepperRecord:
        """Forget a pepper that no live key needs; again changes nothing.

        Raises `BadValue`, `DataUnusable`, `OSError`, `StoreAway`.
        """
        with self._change("retire_pepper") as connection:
            here = self._agreed(connection)
            record = self._record(connection, version)
            if record.current:
                raise BadValue("pepper", f"version {version} is the current one; rotate first")
            if record.keys:
                raise BadValue(
                    "pepper", f"live keys need version {version} ({record.keys}): rotate or revoke them first"
                )
            if record.retired_at_ms is None:
                other = key_secrets.alias()
                twin = exists().where(
                    other.c.kid == key_secrets.c.kid,
                    other.c.serial == key_secrets.c.serial,
                    other.c.pepper_id != version,
                )
                connection.execute(delete(key_secrets).where(key_secrets.c.pepper_id == version, twin))
                now_ms = self._clock.now_ms()
                connection.execute(update(peppers).where(peppers.c.version == version).values(retired_at_ms=now_ms))
                self._note(connection, "pepper.retire", str(version), None, {})
            if version in here.secrets:
                self._peppers.remove(version)
            return self._record(connection, version)

    def _record(self, connection: Connection, version: int) -> PepperRecord:
        for record in self._records(connection):
            if record.version == version:
                return record
        raise BadValue("pepper", f"there is no version {version}")

    def _records(self, connection: Connection) -> list[PepperRecord]:
        here = self._peppers.latest()
        keys = keys_by_needed_version(connection, self._clock.now_ms())
        return [
            PepperRecord(
                version=row.version,
                created_at_ms=row.created_at_ms,
                retired_at_ms=row.retired_at_ms,
                keys=keys.get(row.version, 0),
                current=row.version == here.current_id,
                here=row.version in here.secrets,
            )
            for row in connection.execute(select(peppers).order_by(peppers.c.version))
        ]
