"""How long a server has been away, as one connection to it tells."""

from __future__ import annotations

import math
from dataclasses import dataclass

from proxy.core.share import LATER_MS, Away

__all__ = ["NEVER_HEARD", "Absences"]

NEVER_HEARD = -math.inf
_AGES_SECONDS = 86_400.0
"""As good as for ever."""


@dataclass(slots=True)
class _Absence:
    """When it was heard last, failed first, was found away last, and was heard again."""

    heard_at: float
    since: float
    found_at: float
    back_at: float | None = None


class Absences:
    """The latest absence. Times are seconds of one clock that never steps.

    One that follows within `LATER_MS` of the return goes on with it as to when the server was last heard.
    """

    def __init__(self) -> None:
        self._latest: _Absence | None = None
        self.is_on = False
        """Whether it is away as far as anybody knows."""

    def missed(self, heard_at: float, found_at: float, now: float) -> None:
        """Note that an answer was due and did not come: away at `found_at`, and heard last at `heard_at`."""
        absence = self._latest
        if absence is None or _is_past(absence, now):
            self._latest = _Absence(heard_at, now, found_at)
        elif absence.back_at is not None:
            self._latest = _Absence(absence.heard_at, now, found_at)
        else:
            absence.found_at = max(absence.found_at, found_at)
        self.is_on = True

    def heard(self, now: float) -> None:
        """Note an answer."""
        if self._latest is not None and self._latest.back_at is None:
            self._latest.back_at = now
        self.is_on = False

    def latest(self, now: float) -> Away | None:
        """The latest absence, until it has been over for `LATER_MS`. Rounded so that it counts for more."""
        absence = self._latest
        if absence is None or _is_past(absence, now):
            return None
        return Away(
            unheard_ms=math.ceil(min(now - absence.heard_at, _AGES_SECONDS) * 1_000),
            failing_ms=int((now - absence.since) * 1_000),
            proven_ms=max(0, int((absence.found_at - absence.since) * 1_000)),
            back_ms=None if absence.back_at is None else math.ceil((now - absence.back_at) * 1_000),
        )


def _is_past(absence: _Absence, now: float) -> bool:
    return absence.back_at is not None and now - absence.back_at >= LATER_MS / 1_000
