"""Which warnings of budgets somebody was told of, over all processes and restarts."""

from __future__ import annotations

import asyncio

from sqlalchemy import Engine

from proxy.adapters.sql.engine import insert_into, writing
from proxy.adapters.sql.tables import budget_warnings
from proxy.core.caps import BudgetReached

__all__ = ["SqlToldWarnings"]


class SqlToldWarnings:
    """Notes in an SQL database; each is made once, whoever asks. A call takes a thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def first(self, reached: BudgetReached) -> bool:
        """Note a warning; False where it was noted before: this amount, in this span. Raises `StoreAway`."""
        return await asyncio.to_thread(self._first, reached)

    def _first(self, reached: BudgetReached) -> bool:
        cap = reached.cap
        row = {"team": reached.team, "scope": cap.scope, "span": cap.span.id, "warn_nano_usd": cap.warn_nano_usd or 0}
        with writing(self._engine, "budget_warnings", "first") as connection:
            made = insert_into(connection, budget_warnings).values(**row, at_ms=reached.at_ms)
            noted = connection.execute(made.on_conflict_do_nothing().returning(budget_warnings.c.team))
            return noted.first() is not None
