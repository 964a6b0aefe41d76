"""The registry of an SQL database, put together from its parts."""

from __future__ import annotations

from proxy.adapters.sql.audit import SqlAudit
from proxy.adapters.sql.budgets import SqlBudgets
from proxy.adapters.sql.keys import SqlKeys
from proxy.adapters.sql.peppers import SqlPeppers
from proxy.adapters.sql.teams import SqlTeams

__all__ = ["SqlRegistry"]


class SqlRegistry(SqlTeams, SqlKeys, SqlBudgets, SqlPeppers, SqlAudit):
    """Teams, keys, budgets, peppers and the audit log; implements `core.registry.Registry`."""
