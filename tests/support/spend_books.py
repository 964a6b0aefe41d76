"""A ledger of a list, for tests of limiters: what has reached it, and whether it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from proxy.core.budget import Span, minute_of
from proxy.core.errors import StoreAway
from proxy.ports import Spent

__all__ = ["SpendBooks"]


@dataclass
class SpendBooks:
    """`ports.SpendLedger`. Gives up the loop at each look, as a database does."""

    entries: list[tuple[str, str, int, int]] = field(default_factory=list)
    """Team, scope, admission in ms, nano-dollars."""
    is_away: bool = False
    looks: int = 0

    def write(self, team: str, scope: str, at_ms: int, nano_usd: int) -> None:
        """Have a request reach the ledger."""
        self.entries.append((team, scope, at_ms, nano_usd))

    async def spent(self, team: str, scope: str, span: Span, boundary: int) -> Spent:
        """What `entries` add up to."""
        self.looks += 1
        await asyncio.sleep(0)
        if self.is_away:
            raise StoreAway("ledger", "spent")
        base, minutes = 0, {}
        for of_team, of_scope, at_ms, amount in self.entries:
            if (of_team, of_scope) != (team, scope) or at_ms < span.start_ms:
                continue
            if span.end_ms is not None and at_ms >= span.end_ms:
                continue
            minute = minute_of(at_ms)
            if minute < boundary:
                base += amount
            else:
                minutes[minute] = minutes.get(minute, 0) + amount
        return Spent(base, boundary, minutes)
