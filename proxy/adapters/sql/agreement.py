"""Whether this machine's peppers are the ones that the keys of the database are hashed under."""

from __future__ import annotations

import hmac

from sqlalchemy import Connection, Engine, Select, distinct, func, insert, or_, select

from proxy.adapters.sql.engine import writing
from proxy.adapters.sql.tables import api_keys, key_secrets, peppers
from proxy.core.keys import Peppers
from proxy.core.registry import DataUnusable

__all__ = ["PepperMismatch", "agree", "keys_by_needed_version", "missing_peppers"]


class PepperMismatch(DataUnusable):
    """This machine has another pepper of the same version: what one of them issues, the other cannot check."""


def agree(connection: Connection, here: Peppers, now_ms: int) -> None:
    """Note the peppers nobody has noted yet. Raises `PepperMismatch` for one that was noted differently."""
    noted = {row.version: row for row in connection.execute(select(peppers))}
    for version in here.secrets:
        fingerprint = here.fingerprint(version)
        if version not in noted:
            connection.execute(insert(peppers).values(version=version, fingerprint=fingerprint, created_at_ms=now_ms))
        elif not hmac.compare_digest(noted[version].fingerprint, fingerprint):
            raise PepperMismatch(
                f"the pepper of version {version} here is not the one that keys in this database are hashed under; "
                "machines that share a database share one file of peppers (pepper_file, TOLLGATE_PEPPER_FILE). If the "
                "right one is lost, so are the keys: tollgate keys pepper rotate --lost makes one for new keys"
            )
    if here.current_id in noted and noted[here.current_id].retired_at_ms is not None:
        raise PepperMismatch(
            f"the current pepper here, version {here.current_id}, is retired; take over the file of peppers "
            "(pepper_file) of the machine on which it was"
        )


def missing_peppers(engine: Engine, here: Peppers, now_ms: int) -> dict[int, int]:
    """How many live keys cannot be checked with these peppers, by the version they would take.

    Raises `PepperMismatch`, `StoreAway`.
    """
    with writing(engine, "registry", "agree") as connection:
        agree(connection, here, now_ms)
        # Most often none is under another pepper: that is seen at once, and no key has to be counted.
        elsewhere = select(key_secrets.c.pepper_id).where(key_secrets.c.pepper_id.not_in(here.secrets)).limit(1)
        if connection.execute(elsewhere).first() is None:
            return {}
        needed = keys_by_needed_version(connection, now_ms)
    return {version: keys for version, keys in needed.items() if version not in here.secrets}


def keys_by_needed_version(connection: Connection, now_ms: int) -> dict[int, int]:
    """How many live keys have a secret that is hashed under one version of the pepper alone, by that version."""
    return {row[0]: row[1] for row in connection.execute(_needed(now_ms))}


def _needed(now_ms: int) -> Select[int, int]:
    alone = (
        select(key_secrets.c.kid, func.min(key_secrets.c.pepper_id).label("version"))
        .join(api_keys, api_keys.c.kid == key_secrets.c.kid)
        .where(
            api_keys.c.revoked_at_ms.is_(None),
            or_(api_keys.c.expires_at_ms.is_(None), api_keys.c.expires_at_ms > now_ms),
            or_(key_secrets.c.ends_at_ms.is_(None), key_secrets.c.ends_at_ms > now_ms),
        )
        .group_by(key_secrets.c.kid, key_secrets.c.serial)
        .having(func.count() == 1)
        .subquery()
    )
    return select(alone.c.version, func.count(distinct(alone.c.kid))).group_by(alone.c.version)
