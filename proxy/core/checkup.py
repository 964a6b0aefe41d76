"""What an examination of a deployment found: one line for each thing looked at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Verdict", "clock_finding", "fail", "is_fit", "okay", "warn"]

_CLOSE_ENOUGH_MS = 1_000
_FAR_OFF_MS = 60_000


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It serves, and something is not as it should be."""
    FAIL = "fail"
    """It does not serve, or loses or shows what it must not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """Its name, the same in every version: `redis`, `upstream.openai`."""
    verdict: Verdict
    said: str
    """What was found, without secrets."""
    remedy: str = ""
    """What to do; empty where there is nothing to do."""


def okay(check: str, said: str) -> Finding:
    """As it should be."""
    return Finding(check, Verdict.OK, said)


def warn(check: str, said: str, remedy: str) -> Finding:
    """Not as it should be, and no hindrance."""
    return Finding(check, Verdict.WARN, said, remedy)


def fail(check: str, said: str, remedy: str) -> Finding:
    """A hindrance."""
    return Finding(check, Verdict.FAIL, said, remedy)


def is_fit(findings: Iterable[Finding]) -> bool:
    """Whether nothing stands in the way of serving."""
    return all(finding.verdict is not Verdict.FAIL for finding in findings)


def clock_finding(check: str, whose: str, ahead_ms: float, uncertain_ms: float) -> Finding:
    """Judge this machine's clock against another's.

    `ahead_ms`: by how much ours is ahead; below 0 behind. `uncertain_ms`: what the way there and back may account for.
    """
    surely_ms = max(0.0, abs(ahead_ms) - uncertain_ms)
    if surely_ms < _CLOSE_ENOUGH_MS:
        return okay(check, f"this machine and {whose} agree on the time")
    side = "ahead of" if ahead_ms > 0 else "behind"
    said = f"this machine's clock is {abs(ahead_ms) / 1_000:.1f} s {side} that of {whose}"
    remedy = "set both by NTP (chrony, say): keys end, tiers change and budgets begin anew by this machine's clock"
    return (fail if surely_ms >= _FAR_OFF_MS else warn)(check, said, remedy)
