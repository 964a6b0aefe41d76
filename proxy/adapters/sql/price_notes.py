"""Keeps in the audit log that prices were changed."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Engine, insert

from proxy.adapters.sql.engine import writing
from proxy.adapters.sql.tables import audit_log

__all__ = ["note_prices"]


def note_prices(engine: Engine, at_ms: int, actor: str, file: str, details: Mapping[str, object]) -> None:
    """Note that the price table `file` is about to change. Raises `StoreAway`."""
    with writing(engine, "registry", "note_prices") as connection:
        connection.execute(
            insert(audit_log).values(
                at_ms=at_ms,
                actor=actor,
                action="prices.import",
                subject=file,
                details=msgspec.json.encode(details).decode(),
            )
        )
