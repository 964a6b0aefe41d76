"""Which headers pass, in both directions, and how limits are told in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from proxy.core.bucket import Standing
from proxy.core.durations import format_duration

__all__ = ["as_it_is", "as_json", "forwardable", "holds_key", "rate_limit_headers", "returnable", "returned_as_it_is",
           "without_keys"]  # fmt: skip

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
_NEVER_FORWARDED = _HOP_BY_HOP | frozenset(
    {
        # The client's secrets, and headers that would speak for another account than the one we hold the key of.
        "authorization", "api-key", "x-api-key", "cookie", "openai-organization", "openai-project",
        # Ours to set, for our own connection.
        "host", "content-length", "content-encoding", "accept-encoding", "expect",
        # They have some servers take another method or path than the one that was looked at.
        "x-http-method", "x-http-method-override", "x-method-override", "x-original-url", "x-rewrite-url",
        # What a client says of its own way here is not to be believed.
        "forwarded", "via", "x-real-ip",
        # Answered here: the cache is ours, the request id too.
        "cache-control", "pragma", "x-request-id",
    }
)  # fmt: skip
_OF_KEYS = frozenset({"authorization", "api-key", "x-api-key"})
_KEY_CHARACTERS = 12
"""What is shorter could stand in a header by chance."""
_NEVER_FORWARDED_PREFIXES = ("x-forwarded-", "x-tollgate-")

_JSON = re.compile(r"application/json[ \t]*(?:;[ \t]*charset=\"?utf-?8\"?[ \t]*)?", re.ASCII | re.IGNORECASE)

_RETURNED = frozenset({"content-type", "openai-processing-ms", "openai-version", "openai-model"})
_RETURNED_WITH_ERRORS = _RETURNED | frozenset({"retry-after", "retry-after-ms", "x-should-retry"})
_RETURNED_AS_IT_IS = _RETURNED_WITH_ERRORS | frozenset(
    {"accept-ranges", "content-disposition", "content-encoding", "content-language", "content-length", "content-range",
     "etag", "last-modified", "vary"}
)  # fmt: skip


def forwardable(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep the client's headers that go upstream.

    All but those named here, those its `Connection` names, and any other that its key stands in: a misspelt one, say.
    """
    kept: list[tuple[str, str]] = []
    named: set[str] = set()
    keys: list[str] = []
    for pair in headers:
        name, value = pair
        known = _known.get(name)
        if _goes_on(name) if known is None else known:
            kept.append(pair)
        elif (lower := name.lower()) == "connection":
            named.update(token.strip().lower() for token in value.split(","))
        elif lower in _OF_KEYS and (key := _key_in(value)):
            keys.append(key)
    # What is named nearly always is `keep-alive`.
    if named := named - _NEVER_FORWARDED:
        kept = [(name, value) for name, value in kept if name.lower() not in named]
    for key in keys:
        kept = [(name, value) for name, value in kept if key not in value]
    return tuple(kept)


_known: dict[str, bool] = {}
"""Whether headers go on, by their names as they were written: clients have few, and each request has them all."""
_MOST_KNOWN, _KNOWN_CHARACTERS = 1_024, 64


def _goes_on(name: str) -> bool:
    lower = name.lower()
    known = lower not in _NEVER_FORWARDED and not lower.startswith(_NEVER_FORWARDED_PREFIXES)
    if len(name) <= _KNOWN_CHARACTERS:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[name] = known
    return known


def without_keys(query: str, headers: Mapping[str, str]) -> str:
    """A query as it was sent, but for parts that the client's key stands in."""
    return "&".join(part for part in query.split("&") if not holds_key(unquote(part), headers))


def holds_key(text: str, headers: Mapping[str, str]) -> bool:
    """Whether the client's key stands in something else that it sent."""
    told = (_key_in(value) for name, value in headers.items() if name.lower() in _OF_KEYS)
    return any(key and key in text for key in told)


def _key_in(value: str) -> str:
    """The key that a header holds, with or without a scheme; empty where it is too short to be known by."""
    scheme, blank, rest = value.partition(" ")
    key = rest.strip() if blank and scheme.lower() == "bearer" else value
    return key if len(key) >= _KEY_CHARACTERS else ""


def as_json(headers: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Call a body what it was read as, JSON in UTF-8: by another name it could be read as something else."""
    for at, (name, value) in enumerate(headers):
        if name.lower() == "content-type" and not _JSON.fullmatch(value):
            return (*headers[:at], (name, "application/json"), *headers[at + 1 :])
    return headers


def as_it_is(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What is added where bodies pass in the encoding they have: the client's own, and those it takes."""
    # What it does not ask for, it need not understand.
    added = (("Accept-Encoding", headers.get("Accept-Encoding", "identity")),)
    encoding = headers.get("Content-Encoding")
    return added if encoding is None else (*added, ("Content-Encoding", encoding))


def returnable(headers: Iterable[tuple[str, str]], *, error: bool) -> tuple[tuple[str, str], ...]:
    """Keep upstream's headers that reach the client; cookies, organisation and rate limits are our account's own."""
    kept = _RETURNED_WITH_ERRORS if error else _RETURNED
    # An HTTP library has a class of its own for names, which no format that an answer is kept in has a place for.
    return tuple((str(name), str(value)) for name, value in headers if name.lower() in kept)


def returned_as_it_is(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep upstream's headers of an answer whose body passes untouched: with those, what says how to read it."""
    return tuple((str(name), str(value)) for name, value in headers if name.lower() in _RETURNED_AS_IT_IS)


def rate_limit_headers(standing: Standing) -> tuple[tuple[str, str], ...]:
    """Write where the team's bucket stands, as OpenAI does and as the IETF draft does (ratelimit-headers-10).

    A dimension without a limit has no headers.
    """
    named = (("requests", standing.requests), ("tokens", standing.tokens))
    gauges = [(name, gauge) for name, gauge in named if gauge is not None]
    if not gauges:
        return ()
    told: list[tuple[str, str]] = []
    policies, levels = [], []
    for name, gauge in gauges:
        limit, remaining, reset_ms = gauge.limit, gauge.remaining, gauge.reset_ms
        told.append((f"x-ratelimit-limit-{name}", str(limit)))
        told.append((f"x-ratelimit-remaining-{name}", str(remaining)))
        told.append((f"x-ratelimit-reset-{name}", format_duration(reset_ms)))
        policies.append(f'"{name}";q={limit};w=60')
        levels.append(f'"{name}";r={remaining};t={-(-reset_ms // 1_000)}')
    return (*told, ("RateLimit-Policy", ", ".join(policies)), ("RateLimit", ", ".join(levels)))
