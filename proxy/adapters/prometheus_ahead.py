"""Makes counters before they count: one that a scraper first sees at 5 has, to the scraper, never increased."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

__all__ = ["Ahead"]

_MOST = 500
"""Combinations made for what may come. The others are made when the ledger knows them or they first happen."""
_AT_ONCE = 10
"""Made in one go: some fifteen counters each, about a millisecond on the loop."""


class Ahead:
    """Combines each live team with each model in use, by whichever team, and has the counters of that made."""

    def __init__(self, make: Callable[[str, str, str], object]) -> None:
        self._make = make
        self._teams: set[str] = set()
        self._uses: set[tuple[str, str]] = set()
        self._due: deque[tuple[str, str, str]] = deque()
        self._room = _MOST

    def teams_live(self, teams: Iterable[str]) -> None:
        """Take in teams; those that are known are passed over."""
        new = sorted(set(teams) - self._teams)
        self._teams.update(new)
        self._expect((team, model, endpoint) for team in new for model, endpoint in sorted(self._uses))

    def used(self, model: str, endpoint: str) -> None:
        """Take in that a model is in use."""
        if (model, endpoint) not in self._uses:
            self._uses.add((model, endpoint))
            self._expect((team, model, endpoint) for team in sorted(self._teams))

    def make_some(self) -> None:
        """Have a few of what is due made: call it now and then."""
        for _ in range(min(_AT_ONCE, len(self._due))):
            self._make(*self._due.popleft())

    def _expect(self, combinations: Iterable[tuple[str, str, str]]) -> None:
        for combination in combinations:
            if not self._room:
                return
            self._room -= 1
            self._due.append(combination)
