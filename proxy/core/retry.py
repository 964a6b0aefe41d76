"""When to call upstream again: (failure, attempt, time spent) -> wait, or stop.

Exponential backoff with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015); what
upstream asks for in `retry-after-ms` and `Retry-After` comes first. OpenAI's SDKs retry the same statuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from proxy.core.errors import UpstreamFault

__all__ = ["RetryPolicy", "asked_wait_ms", "is_retryable", "next_wait_ms"]

_STATUSES = frozenset({408, 429})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of the retries of one request."""

    max_attempts: int = 3
    first_backoff_ms: int = 500
    max_backoff_ms: int = 8_000
    total_deadline_ms: int = 600_000
    """From the first attempt; a wait that would end behind it is not begun."""


def is_retryable(failure: int | UpstreamFault, headers: Mapping[str, str], code: str | None = None) -> bool:
    """Whether a failure is one that another attempt may mend.

    `failure` is a status or a fault. A broken connection is retried: no byte of an answer has come. A read that timed
    out is not: upstream had the request for minutes and is likely still at work on it.
    """
    match headers.get("x-should-retry"):
        case "true":
            return True
        case "false":
            return False
        case _:
            pass
    if isinstance(failure, UpstreamFault):
        return failure in {UpstreamFault.UNREACHABLE, UpstreamFault.BROKEN}
    # A quota that is used up stays used up.
    return (failure in _STATUSES or failure >= 500) and code != "insufficient_quota"


def next_wait_ms(
    policy: RetryPolicy, attempts: int, elapsed_ms: int, asked_ms: int | None, jitter: float
) -> int | None:
    """Milliseconds to wait before the next attempt, None to stop.

    `attempts` calls were made, `jitter` is uniform in [0, 1), `asked_ms` what upstream asked for. A wait upstream
    asks for is never cut short: when it is longer than a client would sit through (`max_backoff_ms`), it is stop.
    """
    if attempts >= policy.max_attempts:
        return None
    ceiling_ms = min(policy.max_backoff_ms, policy.first_backoff_ms << (attempts - 1))
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
    except ValueError:
        return None
