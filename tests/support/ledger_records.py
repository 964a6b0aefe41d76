"""Begin records and events with numbers for names, and a clock that stands."""

from __future__ import annotations

from datetime import date
from typing import Any, ClassVar

from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.ids import uuid7
from proxy.core.usage import Usage

__all__ = ["AT_MS", "DAY_MS", "SetClock", "dispatch", "event"]

DAY_MS = 86_400_000
AT_MS = 20_000 * DAY_MS + 5_000  # 2024-10-04


class SetClock:
    """Stands at AT_MS."""

    epoch: ClassVar[date] = date(1970, 1, 1)

    def now_ms(self) -> int:
        return AT_MS

    def monotonic_ns(self) -> int:
        return 0


def dispatch(number: int, at_ms: int = AT_MS) -> Dispatch:
    """The begin record of request `number`."""
    return Dispatch(**_who(number, at_ms), reserved_input_tokens=10, reserved_output_tokens=20, price_id=None)


def event(number: int, at_ms: int = AT_MS, *, told_at_ms: int | None = None) -> UsageEvent:
    """Its event, with a cost of its own; `told_at_ms`: what the clock said at its end, when it had stepped."""
    who = _who(number, at_ms) | ({} if told_at_ms is None else {"at_ms": told_at_ms})
    usage = Usage(input_tokens=5, output_tokens=number % 1_000)
    return UsageEvent(**who, status=200, outcome=Outcome.OK, usage=usage, cost_pico_usd=1_000_003 + number)


def _who(number: int, at_ms: int) -> dict[str, Any]:
    return {
        "event_id": uuid7(at_ms, number.to_bytes(10, "big")),
        "at_ms": at_ms,
        "request_id": f"req_{number}",
        "team": ("growth", "search", "ops")[number % 3],
        "key_id": "k" * 12,
        "endpoint": "chat",
        "model": "m",
        "upstream": "openai",
    }
