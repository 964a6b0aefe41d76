"""What teams have used and the store has not been told: kept until it has answered that it was charged."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from proxy.core.bucket import Cost, Scope

__all__ = ["Debt", "Debts", "beyond_reserved"]

_MOST = 10_000
_MOST_DOUBTFUL = 64


@dataclass(slots=True)
class Debt:
    """A charge to send; the store carries out one of an `id` once, however often it is sent."""

    scopes: tuple[Scope, ...]
    requests: int
    tokens: int
    id: str = ""
    """Empty until it is sent."""
    doubtful: bool = False
    """Whether it may have been carried out already."""

    @property
    def cost(self) -> Cost:
        """What to charge."""
        return Cost(self.requests, self.tokens)


class Debts:
    """Charges that did not reach the store, added up by team and scopes; bounded, the oldest team's go first."""

    def __init__(self) -> None:
        self._of_team: dict[str, dict[tuple[str, ...], Debt]] = {}
        # A name may come again, with another process; what follows it does not.
        self._holder = secrets.token_hex(6)
        self._numbers = count(1)
        self.forgotten = 0
        """Teams whose debts were given up for want of room."""

    def __contains__(self, team: str) -> bool:
        """Whether a team owes anything."""
        return team in self._of_team

    def teams(self) -> tuple[str, ...]:
        """Every team that owes anything."""
        return tuple(self._of_team)

    def add(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Note a charge; nothing negative counts."""
        debt = self._debts(team).setdefault(tuple(scope.name for scope in scopes), Debt(tuple(scopes), 0, 0))
        debt.scopes = tuple(scopes)
        debt.requests += max(0, cost.requests)
        debt.tokens += max(0, cost.tokens)

    def take(self, team: str) -> Iterator[Debt]:
        """Everything a team owes, to be sent under its id; none of it is kept."""
        for debt in self._of_team.pop(team, {}).values():
            debt.id = debt.id or f"{self._holder}:{next(self._numbers)}"
            yield debt

    def keep(self, team: str, debt: Debt) -> None:
        """Take back one that was sent and not answered for."""
        if not debt.doubtful:
            self.add(team, debt.scopes, debt.cost)
            return
        debts = self._debts(team)
        doubtful = [key for key, each in debts.items() if each.doubtful]
        if len(doubtful) >= _MOST_DOUBTFUL:
            # Too many to tell apart: one is charged again, be it twice.
            oldest = debts.pop(doubtful[0])
            self.add(team, oldest.scopes, oldest.cost)
        debts[("", debt.id)] = debt

    def _debts(self, team: str) -> dict[tuple[str, ...], Debt]:
        if len(self._of_team) >= _MOST and team not in self._of_team:
            del self._of_team[next(iter(self._of_team))]
            self.forgotten += 1
        return self._of_team.setdefault(team, {})


def beyond_reserved(reserved: Cost, actual: Cost) -> Cost:
    """What was used above a reservation."""
    return Cost(
        max(0, actual.requests - max(0, reserved.requests)),
        max(0, actual.tokens - max(0, reserved.tokens)),
    )
