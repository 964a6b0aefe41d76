"""The registry of an SQL database, put together from its parts."""

from __future__ import annotations

from proxy.adapters.sql.keys import SqlKeys
from proxy.adapters.sql.teams import SqlTeams

__all__ = ["SqlRegistry"]


class SqlRegistry(SqlTeams, SqlKeys):
    """Teams and keys; implements `core.registry.Registry`."""
