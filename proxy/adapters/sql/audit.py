"""What was changed, by whom: the audit log, read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from sqlalchemy import select

from proxy.adapters.sql.changes import Changes, team_in
from proxy.adapters.sql.tables import audit_log
from proxy.core.audit import AuditEntry

__all__ = ["SqlAudit"]


class SqlAudit(Changes):
    """The audit log of `core.registry.Registry`."""

    def list_audit(
        self,
        since_ms: int | None = None,
        until_ms: int | None = None,
        team: str | None = None,
        *,
        after: int | None = None,
        limit: int | None = None,
    ) -> Sequence[AuditEntry]:
        """What was changed in [since_ms, until_ms), of one team or at all, oldest first.

        At most `limit`, of those whose serial is above `after`. Raises `TeamUnknown`, `StoreAway`.
        """
        query = select(audit_log).order_by(audit_log.c.id).limit(limit)
        if after is not None:
            query = query.where(audit_log.c.id > after)
        if since_ms is not None:
            query = query.where(audit_log.c.at_ms >= since_ms)
        if until_ms is not None:
            query = query.where(audit_log.c.at_ms < until_ms)
        with self._look("list_audit") as connection:
            if team is not None:
                team_in(connection, team)
                query = query.where(audit_log.c.team == team)
            return [
                AuditEntry(
                    at_ms=row["at_ms"],
                    actor=row["actor"],
                    action=row["action"],
                    subject=row["subject"],
                    team=row["team"],
                    details=msgspec.json.decode(row["details"]),
                    serial=row["id"],
                )
                for row in connection.execute(query).mappings()
            ]
