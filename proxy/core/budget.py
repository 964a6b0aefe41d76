"""Budgets: what a team or a key may spend in a day, in a month, or at all.

Amounts are integer nano-dollars: exact in a double up to 9 million dollars, which is what a script on a store counts
in. What is reserved is rounded up, so a budget is never passed by rounding.

An account keeps what was spent in one period as a base and a tail. The base is the ledger's sum over all requests
admitted before a boundary; the tail is one number for each minute of admission since. Requests reserve into the minute
of their admission and settle into that same minute. Moving the boundary forward takes the ledger's word for everything
older than it: what a lost settlement left wrong is right again as soon as the boundary has passed it.

An account that was lost is made anew from the ledger, under another epoch. It does not hold what the lost one had
reserved: who settles such a reservation adds what was spent and takes nothing back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import msgspec

from proxy.core.money import BadAmount, format_usd, parse_usd

__all__ = [
    "LARGEST_BUDGET_NANO_USD",
    "MINUTE_MS",
    "SETTLED_AFTER_MINUTES",
    "Account",
    "BadBudget",
    "Budget",
    "Cap",
    "Period",
    "Span",
    "Spend",
    "minute_of",
    "nano_usd",
    "parse_budget",
    "settled_after",
    "span_of",
]

MINUTE_MS = 60_000
SETTLED_AFTER_MINUTES = 15
"""A request this old has ended, and the ledger has it: longer than any exchange may last, and the ledger's lag."""
_LAG_MINUTES = 5
LARGEST_BUDGET_NANO_USD = 2**52
"""About 4.5 million dollars; sums of it and a request stay below 2^53."""
_PICO_PER_NANO = 1_000
_BUDGET = re.compile(r"\$?([0-9]+(?:\.[0-9]+)?)\s*(?:usd)?\s*/\s*(day|month|total)", re.ASCII | re.IGNORECASE)


class BadBudget(ValueError):
    """The text is not a budget."""


class Period(StrEnum):
    """How long a budget lasts; days and months are those of UTC, as the ledger's."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Span(msgspec.Struct, frozen=True, gc=False):
    """One day, one month, or all of time, in unix milliseconds."""

    id: str
    """`2026-11-21`, `2026-11` or `total`."""
    start_ms: int
    end_ms: int | None
    """The first millisecond after it; None: it does not end."""


def span_of(period: Period, at_ms: int) -> Span:
    """Return the span of a period that holds an instant."""
    if period is Period.TOTAL:
        return Span("total", 0, None)
    at = datetime.fromtimestamp(at_ms / 1_000, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        return Span(f"{at:%Y-%m-%d}", _ms(at), _ms(at + timedelta(days=1)))
    first = at.replace(day=1)
    return Span(f"{first:%Y-%m}", _ms(first), _ms((first + timedelta(days=32)).replace(day=1)))


class Budget(msgspec.Struct, frozen=True, gc=False):
    """What may be spent in each span of a period; at least one of the two amounts is given."""

    period: Period
    limit_nano_usd: int | None = None
    """Requests that would pass it are refused; None: nothing is refused."""
    warn_nano_usd: int | None = None
    """Somebody is told, once in each span for each such amount, when it is reached."""

    def __str__(self) -> str:
        amount = self.limit_nano_usd if self.limit_nano_usd is not None else self.warn_nano_usd or 0
        return f"{format_usd(amount * _PICO_PER_NANO)}usd/{self.period}"


def parse_budget(text: str) -> tuple[int, Period]:
    """Read `500usd/month`, `$12.50/day` or `10000/total` as nano-dollars and a period. Raises `BadBudget`."""
    match = _BUDGET.fullmatch(text.strip())
    if match is None:
        raise BadBudget(f"not a budget such as 500usd/month, 12.50usd/day or 10000usd/total: {text[:40]!r}")
    try:
        pico_usd = parse_usd(match[1])
    except BadAmount as error:
        raise BadBudget(str(error)) from None
    if pico_usd % _PICO_PER_NANO:
        raise BadBudget("a budget has at most nine decimal places")
    amount = pico_usd // _PICO_PER_NANO
    if amount > LARGEST_BUDGET_NANO_USD:
        raise BadBudget(f"a budget is at most {format_usd(LARGEST_BUDGET_NANO_USD * _PICO_PER_NANO)}usd")
    return amount, Period(match[2].lower())


def nano_usd(pico_usd: int) -> int:
    """Round an amount of pico-dollars up to nano-dollars."""
    return -(-pico_usd // _PICO_PER_NANO)


def minute_of(at_ms: int) -> int:
    """The minute that holds an instant, counted from the epoch."""
    return at_ms // MINUTE_MS


def settled_after(longest_exchange_seconds: float) -> int:
    """Minutes after which a request has ended, and the ledger has it."""
    return max(SETTLED_AFTER_MINUTES, -int(-longest_exchange_seconds // 60) + _LAG_MINUTES)


class Cap(msgspec.Struct, frozen=True, gc=False):
    """One budget at one instant, as a limiter is asked to hold it."""

    scope: str
    """Whose it is: `team`, or `key:<kid>`."""
    span: Span
    limit_nano_usd: int | None
    warn_nano_usd: int | None

    @property
    def name(self) -> str:
        """Its identity within the team: the same for as long as the span lasts."""
        return f"{self.scope}:{self.span.id}"


class Spend(msgspec.Struct, frozen=True, gc=False):
    """What a request may cost, and the budgets it has to pass: all of them or none."""

    caps: tuple[Cap, ...]
    nano_usd: int
    """The most it can cost, rounded up."""
    at_ms: int
    """Its admission: the minute that it is accounted to, and the day that the ledger has it under."""


@dataclass(slots=True)
class Account:
    """What was spent in one span, as the module says; minutes are counted from the epoch."""

    base_nano_usd: int
    boundary: int
    """First minute of the tail."""
    minutes: dict[int, int]
    """Of the tail: minute of admission -> what its requests cost, or have reserved."""
    warned_nano_usd: int | None = None
    """The warning that somebody was told of last."""
    epoch: int = 0
    """Tells it from others of its name that were there before."""

    @property
    def spent_nano_usd(self) -> int:
        """All of it, what is reserved included."""
        return self.base_nano_usd + sum(self.minutes.values())

    def fits(self, limit_nano_usd: int | None, amount: int) -> bool:
        """Whether `amount` more stays within the limit."""
        return limit_nano_usd is None or self.spent_nano_usd + amount <= limit_nano_usd

    def take(self, minute: int, amount: int) -> int:
        """Reserve into a minute, or the first of the tail if that is later; return the minute it went to."""
        minute = max(minute, self.boundary)
        self.minutes[minute] = self.minutes.get(minute, 0) + amount
        return minute

    def settle(self, minute: int, reserved: int, actual: int, epoch: int = 0) -> None:
        """Put `actual` in the place of what was reserved into a minute; one that the ledger has taken over is its.

        What was reserved under another `epoch` is not held here.
        """
        if minute >= self.boundary:
            held = reserved if epoch == self.epoch else 0
            self.minutes[minute] = self.minutes.get(minute, 0) + actual - held

    def reach(self, warn_nano_usd: int | None) -> bool:
        """Whether the warning is reached, and nobody was told of it yet; from now on somebody was."""
        if warn_nano_usd in (None, self.warned_nano_usd) or self.spent_nano_usd < warn_nano_usd:
            return False
        self.warned_nano_usd = warn_nano_usd
        return True

    def resync(self, boundary: int, base_nano_usd: int) -> None:
        """Take the ledger's sum of all requests admitted before a minute; one behind the boundary says nothing."""
        if boundary < self.boundary:
            return
        self.base_nano_usd, self.boundary = base_nano_usd, boundary
        self.minutes = {minute: amount for minute, amount in self.minutes.items() if minute >= boundary}


def _ms(at: datetime) -> int:
    return int(at.timestamp()) * 1_000
