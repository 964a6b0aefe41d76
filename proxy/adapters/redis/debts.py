"""What teams have used and the store has not been told: kept until it can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.core.bucket import Cost, Scope

__all__ = ["Debt", "Debts"]

_MOST = 10_000


@dataclass(slots=True)
class Debt:
    """A charge to send; `doubtful` when it may have been carried out already, and is not to be sent a third time."""

    scopes: tuple[Scope, ...]
    requests: int
    tokens: int
    doubtful: bool

    @property
    def cost(self) -> Cost:
        """What to charge."""
        return Cost(self.requests, self.tokens)


class Debts:
    """Charges that did not reach the store, added up by team and scopes; bounded, the oldest team's go first."""

    def __init__(self) -> None:
        self._of_team: dict[str, dict[tuple[bool, tuple[str, ...]], Debt]] = {}
        self.forgotten = 0
        """Teams whose debts were given up for want of room."""

    def __contains__(self, team: str) -> bool:
        """Whether a team owes anything."""
        return team in self._of_team

    def teams(self) -> tuple[str, ...]:
        """Every team that owes anything."""
        return tuple(self._of_team)

    def add(self, team: str, scopes: Sequence[Scope], cost: Cost, *, doubtful: bool) -> None:
        """Note a charge; nothing negative counts."""
        if len(self._of_team) >= _MOST and team not in self._of_team:
            del self._of_team[next(iter(self._of_team))]
            self.forgotten += 1
        debts = self._of_team.setdefault(team, {})
        names = tuple(scope.name for scope in scopes)
        debt = debts.setdefault((doubtful, names), Debt(tuple(scopes), 0, 0, doubtful))
        debt.scopes = tuple(scopes)
        debt.requests += max(0, cost.requests)
        debt.tokens += max(0, cost.tokens)

    def take(self, team: str) -> Iterator[Debt]:
        """Everything a team owes; none of it is kept."""
        return iter(self._of_team.pop(team, {}).values())
