"""Keeps in the audit log what was changed outside of the database."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Engine, insert

from proxy.adapters.sql.engine import writing
from proxy.adapters.sql.tables import audit_log

__all__ = ["note"]


def note(engine: Engine, at_ms: int, actor: str, action: str, subject: str, details: Mapping[str, object]) -> None:
    """Add a line to the audit log; what its parts are, `core.audit.AuditEntry` says. Raises `StoreAway`."""
    with writing(engine, "registry", "note") as connection:
        connection.execute(
            insert(audit_log).values(
                at_ms=at_ms,
                actor=actor,
                action=action,
                subject=subject,
                details=msgspec.json.encode(details).decode(),
            )
        )
