"""Refusals told again without asking: a team that polls while it is limited costs the store nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from proxy.core.bucket import Cost, Refused, Scope

__all__ = ["Denials"]

_MS = 1_000_000
_MOST_TEAMS = 4_096
_MOST_OF_A_TEAM = 16
_MARKS = 256


@dataclass(frozen=True, slots=True)
class _Denial:
    scopes: tuple[Scope, ...]
    refused: Refused
    at_ns: int


class Denials:
    """The last refusals of each team, told again for `hold_ms` at most and never beyond their wait.

    What another worker takes or gives back in that time is noticed that much later; what this one does is to be told
    with `forget`. Bounded: what is too much is forgotten, and the store is asked again.
    """

    def __init__(self, hold_ms: int) -> None:
        self._hold_ms = hold_ms
        self._of_team: dict[str, dict[Cost, _Denial]] = {}
        self._marks = [0] * _MARKS

    def __len__(self) -> int:
        """Refusals held, over or not."""
        return sum(map(len, self._of_team.values()))

    def __contains__(self, team: str) -> bool:
        """Whether it is worth to `find`."""
        return team in self._of_team

    def mark(self, team: str) -> int:
        """What to hand to `note` with the answer to a question that is about to be asked."""
        return self._marks[hash(team) % _MARKS]

    def note(self, team: str, scopes: Sequence[Scope], cost: Cost, refused: Refused, now_ns: int, mark: int) -> None:
        """Remember a refusal that has just come, unless the team was to be forgotten since it was asked for."""
        if not self._hold_ms or mark != self.mark(team):
            return
        if len(self._of_team) >= _MOST_TEAMS and team not in self._of_team:
            self._of_team.clear()
        denials = self._of_team.setdefault(team, {})
        if len(denials) >= _MOST_OF_A_TEAM:
            denials.clear()
        denials[cost] = _Denial(tuple(scopes), refused, now_ns)

    def find(self, team: str, scopes: Sequence[Scope], cost: Cost, now_ns: int) -> Refused | None:
        """The refusal that still holds for this very question, with the wait that is left; its figures are as then."""
        denials = self._of_team.get(team)
        denial = denials and denials.get(cost)
        if not denials or not denial:
            return None
        passed_ms = (now_ns - denial.at_ns) // _MS
        if passed_ms < min(denial.refused.wait_ms, self._hold_ms) and denial.scopes == tuple(scopes):
            return replace(denial.refused, wait_ms=denial.refused.wait_ms - passed_ms)
        del denials[cost]
        if not denials:
            del self._of_team[team]
        return None

    def forget(self, team: str) -> None:
        """Ask the store again: something of this team has changed."""
        self._marks[hash(team) % _MARKS] += 1
        self._of_team.pop(team, None)
