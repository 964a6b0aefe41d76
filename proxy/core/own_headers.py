"""The one table of headers that are Tollgate's own: what they say, on which answers, and which can be left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

__all__ = ["ATTEMPTS", "CACHE", "COST", "OWN_HEADERS", "QUEUE_WAIT", "REQUEST_ID", "SAVED", "SHADOW", "SWITCHABLE",
           "UPSTREAM", "UPSTREAM_REQUEST_ID", "Answer", "OwnHeader", "left_out"]  # fmt: skip

REQUEST_ID = "x-request-id"
UPSTREAM_REQUEST_ID = "x-upstream-request-id"
UPSTREAM = "x-tollgate-upstream"
ATTEMPTS = "x-tollgate-attempts"
COST = "x-tollgate-cost-usd"
SAVED = "x-tollgate-saved-usd"
CACHE = "x-tollgate-cache"
QUEUE_WAIT = "x-tollgate-queue-wait-ms"
SHADOW = "x-tollgate-shadow"


class Answer(StrEnum):
    """What is answered, as far as headers differ."""

    PLAIN = "plain"
    """Upstream's answer, whole."""
    STREAM = "stream"
    """Upstream's answer, as it comes: its head is sent before anybody knows what it costs."""
    HIT = "hit"
    COLLAPSED = "collapsed"
    """What another request is answered with."""
    THEIRS = "upstream's errors"
    FAILED = "502, 503, 504"
    """No usable answer of upstream, or no room for the request."""
    REFUSED = "refused"
    """Looked up and not admitted: 429, seldom another 4xx."""
    OTHER = "all else"


_SENT = (Answer.PLAIN, Answer.STREAM, Answer.THEIRS, Answer.FAILED)
_ADMITTED = (Answer.PLAIN, Answer.STREAM, Answer.HIT, Answer.COLLAPSED, Answer.THEIRS)
_METERED = (*_ADMITTED, Answer.FAILED, Answer.REFUSED)
_WHEN_TO_RETRY = (Answer.THEIRS, Answer.FAILED, Answer.REFUSED)


@dataclass(frozen=True, slots=True)
class OwnHeader:
    """A line of the table."""

    name: str
    """With `*` at its end: each that begins so."""
    says: str
    on: tuple[Answer, ...] = tuple(Answer)
    """Answers that may carry it; no other does."""
    fixed: bool = False
    """It cannot be left out: clients, or whoever is asked for help, cannot do without it."""
    names: tuple[str, ...] = ()
    """Those a `*` stands for."""


OWN_HEADERS = (
    OwnHeader(REQUEST_ID, "id of the request, as the log and the ledger have it", fixed=True),
    OwnHeader(UPSTREAM_REQUEST_ID, "id that upstream gave it", (Answer.PLAIN, Answer.STREAM, Answer.THEIRS)),
    OwnHeader(UPSTREAM, "name of the upstream that was asked last", _SENT),
    OwnHeader(ATTEMPTS, "calls made upstream, the first included", _SENT),
    OwnHeader(
        COST,
        "dollars, exact, as the ledger has them; not on streams, images and audio, whose head goes out before that is "
        "known, nor while tokens are still being counted, nor for a model without a price",
        (Answer.PLAIN, Answer.HIT, Answer.COLLAPSED, Answer.THEIRS, Answer.FAILED),
    ),
    OwnHeader(
        SAVED,
        "dollars that the cached or shared answer cost when it was made; not on a shared stream, nor while its tokens "
        "are still being counted",
        (Answer.HIT, Answer.COLLAPSED),
    ),
    OwnHeader(CACHE, "`hit`, `miss`, `collapsed` (another request's answer) or `bypass`", _METERED),
    OwnHeader("Cache-Status", "the same as RFC 9211 has it, with the reason", _METERED),
    OwnHeader("Age", "seconds since the answer was made", (Answer.HIT, Answer.COLLAPSED)),
    OwnHeader(QUEUE_WAIT, "milliseconds spent waiting for a turn", _METERED),
    OwnHeader(
        "x-ratelimit-*",
        "limit, remaining and reset of requests and tokens a minute, as OpenAI tells them",
        (*_ADMITTED, Answer.REFUSED),
        names=tuple(
            f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")
        ),
    ),
    OwnHeader("RateLimit-Policy", "the same limits as the IETF draft has them", (*_ADMITTED, Answer.REFUSED)),
    OwnHeader("RateLimit", "what is left of them, likewise", (*_ADMITTED, Answer.REFUSED)),
    OwnHeader(SHADOW, "what the tier the team is tried on would have said", _ADMITTED),
    OwnHeader(
        "Retry-After",
        "seconds, rounded up, after which the same request passes",
        _WHEN_TO_RETRY,
        fixed=True,
    ),
    OwnHeader("retry-after-ms", "the same in milliseconds", _WHEN_TO_RETRY, fixed=True),
    OwnHeader(
        "x-should-retry",
        "`false` where no wait that an SDK would keep helps",
        _WHEN_TO_RETRY,
        fixed=True,
    ),
)

SWITCHABLE: Mapping[str, OwnHeader] = MappingProxyType(
    {header.name.lower(): header for header in OWN_HEADERS if not header.fixed}
)
"""Those that can be left out, by their names in lower case."""


def left_out(off: Iterable[str]) -> frozenset[str]:
    """Names of headers, in lower case, that names of the table stand for. Raises `KeyError` for any other."""
    found = (SWITCHABLE[name.lower()] for name in off)
    return frozenset(name.lower() for header in found for name in header.names or (header.name,))
