"""What a client asks of the cache: the request directives of `Cache-Control` that are acted upon (RFC 9111, 5.2.1).

Others (`max-stale`, `min-fresh`, `no-transform`) are advice that is not taken, as the RFC leaves open.
"""

from __future__ import annotations

import re

import msgspec

__all__ = ["NO_WISHES", "CacheWishes", "cache_wishes"]

_DIRECTIVE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)"  # a token
    r'(?:[ \t]*=[ \t]*("(?:[^"\\]|\\.)*"|[^,"]*))?'  # its argument, quoted or not
)
_SECONDS = re.compile(r"[0-9]+")
_LONGEST_SECONDS = 2**31


class CacheWishes(msgspec.Struct, frozen=True, gc=False):
    """What a client asks for."""

    no_store: bool = False
    """Keep nothing of this, and answer it from nothing that was kept."""
    no_cache: bool = False
    """Answer it from nothing that was kept; the new answer may be."""
    max_age_seconds: int | None = None
    """The oldest answer it takes. 0, and whatever is no number of seconds: only a new one."""
    only_if_cached: bool = False
    """Do not ask upstream."""


NO_WISHES = CacheWishes()


def cache_wishes(value: str) -> CacheWishes:
    """Read the header, several lines of it joined by commas. Never raises: what is no directive is passed over.

    Names are compared without case, arguments may be quoted. Of a directive given twice the first counts. A `max-age`
    that is malformed or negative counts as 0: such a cache entry is to be taken for stale (RFC 9111, 4.2.1).
    """
    said: dict[str, str] = {}
    for match in _DIRECTIVE.finditer(value):
        said.setdefault(match[1].lower(), (match[2] or "").strip(' \t"'))
    return CacheWishes(
        no_store="no-store" in said,
        no_cache="no-cache" in said,
        max_age_seconds=_seconds(said["max-age"]) if "max-age" in said else None,
        only_if_cached="only-if-cached" in said,
    )


def _seconds(argument: str) -> int:
    if _SECONDS.fullmatch(argument) is None:
        return 0
    digits = argument.lstrip("0")
    # More than can be told apart counts as the most that can, as the RFC has it.
    return min(int(digits or 0), _LONGEST_SECONDS) if len(digits) <= 10 else _LONGEST_SECONDS
