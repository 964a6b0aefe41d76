"""Durations as people write them: `90d`, `48h`, `1h30m`."""

from __future__ import annotations

import re

__all__ = ["parse_duration_ms"]

_UNITS_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
_PART = re.compile(r"(\d{1,12})(ms|[wdhms])", re.ASCII)
_WHOLE = re.compile(rf"(?:{_PART.pattern})+", re.ASCII)


def parse_duration_ms(text: str) -> int:
    """Milliseconds of a duration such as `90d`, `48h` or `1h30m`.

    Whole numbers, each with one of the units w, d, h, m, s and ms; the parts add up. Raises `ValueError` for anything
    else and for a duration of nothing.
    """
    if _WHOLE.fullmatch(text) is None:
        raise ValueError(f"not a duration: {text!r} (write 90d, 48h, 30m or 1h30m)")
    total_ms = sum(int(count) * _UNITS_MS[unit] for count, unit in _PART.findall(text))
    if total_ms == 0:
        raise ValueError("a duration must be longer than nothing")
    return total_ms
