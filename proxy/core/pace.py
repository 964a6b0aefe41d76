"""How fast a model may be called, of what it could be: down by half when upstream complains, up again bit by bit.

Additive increase and multiplicative decrease (Chiu and Jain, 1989), in thousandths of the configured share, never above
it and never below a floor. What was answered within a second of a decrease was asked before it, and says nothing new.

Its calls are held back altogether for as long as upstream asks with a second refusal in a row, up to ten seconds: one
alone may be a matter of one large request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from proxy.core.durations import parse_duration
from proxy.core.retry import asked_wait_ms

__all__ = ["FLOOR", "FULL", "LONGEST_HOLD_MS", "Heard", "Pace", "hear"]

FULL = 1_000
FLOOR = 50
RISE_PER_SECOND = 10
"""From the floor to all of it in 95 seconds."""
SAME_COMPLAINT_MS = 1_000
LONGEST_HOLD_MS = 10_000
_TOO_MANY_REQUESTS = 429
_SCARCE = 20
"""What is left of a limit is scarce below one in so many."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What an answer says about the pace."""

    refused: bool = False
    scarce: bool = False
    """Little is left of a limit, and more than a second passes until there is all of it again."""
    wait_ms: int = 0
    """How long upstream asks not to be called."""


@dataclass(frozen=True, slots=True)
class Pace:
    """A pace as of `since_ms`. Times are milliseconds of any clock that does not go back."""

    level: int = FULL
    since_ms: int = 0
    lowered_ms: int | None = None
    refusals: int = 0
    """In a row."""
    held_until_ms: int = 0
    asked_until_ms: int = 0
    """Until when upstream asks not to be called, for however long that is."""

    def at(self, now_ms: int) -> int:
        """Thousandths of the share, `FLOOR` to `FULL`."""
        return min(FULL, self.level + max(0, now_ms - self.since_ms) * RISE_PER_SECOND // 1_000)

    def held_ms(self, now_ms: int) -> int:
        """How long no call may be made."""
        return max(0, self.held_until_ms - now_ms)

    def asked_ms(self, now_ms: int) -> int:
        """How long upstream is likely to refuse: what it asked for, while it refuses again and again."""
        return max(0, self.asked_until_ms - now_ms) if self.refusals > 1 else 0

    def after(self, heard: Heard, now_ms: int) -> Pace:
        """The pace once an answer has come."""
        refusals = self.refusals + 1 if heard.refused else 0
        pace = self
        if refusals > 1 and heard.wait_ms > 0:
            held_until_ms = max(self.held_until_ms, now_ms + min(heard.wait_ms, LONGEST_HOLD_MS))
            pace = replace(self, held_until_ms=held_until_ms, asked_until_ms=now_ms + heard.wait_ms)
        if refusals != pace.refusals:
            pace = replace(pace, refusals=refusals)
        if not heard.refused and not heard.scarce:
            return pace
        if self.lowered_ms is not None and now_ms - self.lowered_ms < SAME_COMPLAINT_MS:
            return pace
        level = self.at(now_ms)
        level = level // 2 if heard.refused else level * 9 // 10
        return replace(pace, level=max(FLOOR, level), since_ms=now_ms, lowered_ms=now_ms)


_FINE = Heard()
_OF_REQUESTS = ("x-ratelimit-remaining-requests", "x-ratelimit-limit-requests", "x-ratelimit-reset-requests")
_OF_TOKENS = ("x-ratelimit-remaining-tokens", "x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens")


def hear(status: int, headers: Mapping[str, str], now_ms: int) -> Heard:
    """What an answer's head says; `now_ms` is unix time, for a `Retry-After` that is a date.

    Headers as OpenAI and Azure send them. What cannot be read says nothing.
    """
    refused = status == _TOO_MANY_REQUESTS
    scarce = _scarce(headers, *_OF_REQUESTS) or _scarce(headers, *_OF_TOKENS)
    if not refused:
        return Heard(scarce=True) if scarce else _FINE
    return Heard(refused=True, scarce=scarce, wait_ms=asked_wait_ms(headers, now_ms) or 0)


def _scarce(headers: Mapping[str, str], of_remaining: str, of_limit: str, of_reset: str) -> bool:
    remaining = _count(headers.get(of_remaining))
    if remaining is None:
        return False
    limit = _count(headers.get(of_limit)) or 0
    if remaining * _SCARCE >= limit and remaining > 0:
        return False
    reset = headers.get(of_reset)
    if reset is None:
        return True
    try:
        # Azure writes plain seconds.
        reset_ms = int(reset) * 1_000 if _count(reset) is not None else parse_duration(reset)
    except ValueError:
        return True
    return reset_ms > SAME_COMPLAINT_MS


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) <= 15 and text.isascii() and text.isdigit() else None
