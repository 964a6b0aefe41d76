"""Durations as OpenAI writes them in headers and messages: Go's notation, in whole milliseconds."""

from __future__ import annotations

import re

__all__ = ["format_duration", "parse_duration"]

_NANOSECONDS = {
    "h": 3_600_000_000_000,
    "m": 60_000_000_000,
    "s": 1_000_000_000,
    "ms": 1_000_000,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign, what Go prints
    "\u03bcs": 1_000,  # Greek mu, what Go also reads
    "ns": 1,
}
# Twelve digits are 31,000 years of seconds; the bounds keep a hostile header cheap.
_TERM = r"(?P<whole>[0-9]{1,12})(?:\.(?P<fraction>[0-9]{1,12}))?(?P<unit>ms|us|\u00b5s|\u03bcs|ns|h|m|s)"
_TERMS = re.compile(_TERM)
_DURATION = re.compile(r"(?:[0-9]{1,12}(?:\.[0-9]{1,12})?(?:ms|us|\u00b5s|\u03bcs|ns|h|m|s)){1,8}")


def format_duration(duration_ms: int) -> str:
    """Write milliseconds as Go does: `0s`, `12ms`, `51.189s`, `6m0s`, `1h0m0s`.

    Below a second the unit is `ms`; from a minute on every smaller unit is written; trailing zeros of the fraction are
    not. Raises ValueError below zero. Source: `time.Duration.String` of the Go standard library.
    """
    if duration_ms < 1_000:
        if duration_ms < 0:
            raise ValueError(f"a duration is not negative: {duration_ms} ms")
        return f"{duration_ms}ms" if duration_ms else "0s"
    whole_seconds, milliseconds = divmod(duration_ms, 1_000)
    minutes, seconds = divmod(whole_seconds, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{seconds}.{milliseconds:03d}".rstrip("0") + "s" if milliseconds else f"{seconds}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def parse_duration(text: str) -> int:
    """Read a Go duration as whole milliseconds; what is below a millisecond is cut off.

    Raises ValueError for anything else than up to eight unsigned terms of a decimal number and a unit from `h`, `m`,
    `s`, `ms`, `us` (or with a mu) and `ns`, or a bare `0`. Source: `time.ParseDuration` of the Go standard library.
    """
    if text == "0":
        return 0
    if not _DURATION.fullmatch(text):
        raise ValueError(f"not a duration: {text[:40]!r}")
    nanoseconds = 0
    for term in _TERMS.finditer(text):
        unit = _NANOSECONDS[term["unit"]]
        fraction = term["fraction"] or "0"
        nanoseconds += int(term["whole"]) * unit + int(fraction) * unit // 10 ** len(fraction)
    return nanoseconds // 1_000_000
