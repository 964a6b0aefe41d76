"""When to call upstream again, and where: (failure, attempt, time spent) -> wait, or stop.

| a call ended with | the same key, after a wait | another key, at once | another upstream, at once | an outage |
|---|---|---|---|---|
| unreachable, broken before the head | yes | - | yes | yes |
| silence until a deadline | - | - | - | yes |
| 5xx | yes | - | yes | yes |
| 408 | yes | - | yes | - |
| 429 | yes | yes | yes | - |
| 429 `insufficient_quota`, 401 | - | yes | yes | - |
| any other 4xx | - | - | - | - |
| anything with `x-should-retry: false` | - | - | - | as above |
| anything but a used-up quota with `x-should-retry: true` | yes | as above | yes | as above |

A call that met silence was heard, is likely still being worked on, and will be billed: a second one would be paid for
twice and told of once in the ledger. It is the client's to ask anew; the breaker (`core/breaker.py`), which counts
outages, soon leads elsewhere. What is wrong with a request is wrong with it everywhere. Nothing is called again once a
byte has gone to the client.

Waits are exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015);
what upstream asks for in `retry-after-ms` and `Retry-After` comes first. OpenAI's SDKs retry the same statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from proxy.core.errors import UpstreamFault

__all__ = ["Remedy", "RetryPolicy", "asked_wait_ms", "is_outage", "is_quota_used_up", "next_wait_ms",
           "remedy_for"]  # fmt: skip

_QUOTA = "insufficient_quota"
_KEY_REFUSED = 401
_TOO_MANY_REQUESTS = 429


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the retries of one request, wherever they go."""

    max_attempts: int = 3
    first_backoff_ms: int = 500
    max_backoff_ms: int = 8_000
    total_deadline_ms: int = 600_000
    """From the first attempt; a wait that would end behind it is not begun."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """What may mend a failure, beside the same call of another upstream, at once."""

    again: bool = False
    """The same call, after a wait."""
    other_key: bool = False
    """The same call under another key, at once: it is the key that is refused."""


_ANOTHER_TIME = Remedy(again=True)
_OUT_OF_RATE = Remedy(again=True, other_key=True)
_KEY_IS_DONE_FOR = Remedy(other_key=True)
_FAULTS = {UpstreamFault.UNREACHABLE: _ANOTHER_TIME, UpstreamFault.BROKEN: _ANOTHER_TIME}
_STATUSES = {408: _ANOTHER_TIME, _TOO_MANY_REQUESTS: _OUT_OF_RATE, _KEY_REFUSED: _KEY_IS_DONE_FOR}


def remedy_for(failure: int | UpstreamFault, headers: Mapping[str, str], code: str | None = None) -> Remedy | None:
    """What may mend a failure, by the table above; None: nothing, it is the client's to know.

    `failure` is a status or a fault, `code` that of the error in the body, `headers` are case-insensitive.
    """
    should = headers.get("x-should-retry")
    if should == "false":
        return None
    if isinstance(failure, UpstreamFault):
        remedy = _FAULTS.get(failure)
    elif is_quota_used_up(failure, code):
        return _KEY_IS_DONE_FOR  # it stays used up, whatever is said of it
    else:
        remedy = _STATUSES.get(failure, _ANOTHER_TIME if failure >= 500 else None)
    return Remedy(again=True, other_key=remedy is not None and remedy.other_key) if should == "true" else remedy


def is_quota_used_up(failure: int | UpstreamFault, code: str | None) -> bool:
    """Whether what refuses is no rate, but what the account has paid for."""
    return failure == _TOO_MANY_REQUESTS and code == _QUOTA


def is_outage(failure: int | UpstreamFault) -> bool:
    """Whether a failure says that upstream is not well, rather than that it refuses something."""
    return isinstance(failure, UpstreamFault) or failure >= 500


def next_wait_ms(policy: RetryPolicy, waits: int, elapsed_ms: int, asked_ms: int | None, jitter: float) -> int | None:
    """Milliseconds to wait before a call is made again, None to stop.

    `waits` were made before, `jitter` is uniform in [0, 1), `asked_ms` what upstream asked for. A wait upstream asks
    for is never cut short: when it is longer than a client would sit through (`max_backoff_ms`), it is stop.
    """
    ceiling_ms = min(policy.max_backoff_ms, policy.first_backoff_ms << waits)
    wait_ms = int(jitter * (ceiling_ms + 1))
    if asked_ms:
        if asked_ms > policy.max_backoff_ms:
            return None
        wait_ms = asked_ms
    return wait_ms if elapsed_ms + wait_ms < policy.total_deadline_ms else None


def asked_wait_ms(headers: Mapping[str, str], now_ms: int) -> int | None:
    """Read the wait an answer asks for: `retry-after-ms`, then `Retry-After` in seconds or as a date.

    `headers` is case-insensitive. Nonsense, negative and absurd values are no wish at all.
    """
    wait_ms = _number(headers.get("retry-after-ms"))
    if wait_ms is None:
        text = headers.get("retry-after")
        seconds = _number(text)
        wait_ms = seconds * 1_000 if seconds is not None else _until(text, now_ms)
    return int(wait_ms) if wait_ms is not None and 0 <= wait_ms < 86_400_000 else None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _until(text: str | None, now_ms: int) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() * 1_000 - now_ms if text else None
    except (ValueError, OverflowError):
        return None
