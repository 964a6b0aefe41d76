"""Which headers pass, in both directions, and how limits are told in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote

from proxy.core.bucket import Gauge, Standing
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

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

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
    telling: list[tuple[str, str]] = []
    known = _known.get
    for pair in headers:
        what = known(pair[0]) or _learn(pair[0])
        if what == _GOES:
            kept.append(pair)
        elif what == _TELLS:
            telling.append(pair)
    for name, value in telling:
        if name.lower() != "connection":
            if key := _key_in(value):
                kept = [pair for pair in kept if key not in pair[1]]
        # What is named nearly always is `keep-alive`.
        elif named := {token.strip().lower() for token in value.split(",")} - _NEVER_FORWARDED:
            kept = [pair for pair in kept if pair[0].lower() not in named]
    return tuple(kept)


_GOES, _STAYS, _TELLS = 1, 2, 3
"""What becomes of a header: it goes on, or it does not, or it does not and says what else does not."""
_known: dict[str, int] = {}
"""That, by names as they were written: clients have few, and each request has them all."""
_MOST_KNOWN, _KNOWN_CHARACTERS = 1_024, 64


def _learn(name: str) -> int:
    lower = name.lower()
    if lower == "connection" or lower in _OF_KEYS:
        what = _TELLS
    elif lower in _NEVER_FORWARDED or lower.startswith(_NEVER_FORWARDED_PREFIXES):
        what = _STAYS
    else:
        what = _GOES
    if len(name) <= _KNOWN_CHARACTERS:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[name] = what
    return what


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
    """Keep upstream's headers that reach the client; cookies, organisation and rate limits are our account's own.

    One that holds a control character stays behind: no head may have it, and the answer is worth more.
    """
    return _of(_RETURNED_WITH_ERRORS if error else _RETURNED, headers)


def returned_as_it_is(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Keep upstream's headers of an answer whose body passes untouched: with those, what says how to read it."""
    return _of(_RETURNED_AS_IT_IS, headers)


def _of(names: frozenset[str], headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    # An HTTP library has a class of its own for names, which no format that an answer is kept in has a place for.
    kept = [
        (str(name), str(value))
        for name, value in headers
        if name.lower() in names and (value.isprintable() or _CONTROL.search(value) is None)
    ]
    return tuple(kept)


def rate_limit_headers(standing: Standing) -> tuple[tuple[str, str], ...]:
    """Write where the team's bucket stands, as OpenAI does and as the IETF draft does (ratelimit-headers-10).

    A dimension without a limit has no headers.
    """
    requests, tokens = standing.requests, standing.tokens
    if requests is None:
        return () if tokens is None else _standing_of("tokens", tokens)
    if tokens is None:
        return _standing_of("requests", requests)
    # Both are limited nearly always.
    limit_requests, limit_tokens, policy = _limits(requests.limit, tokens.limit)
    left_requests, reset_requests_ms = requests.remaining, requests.reset_ms
    left_tokens, reset_tokens_ms = tokens.remaining, tokens.reset_ms
    of_requests = f'"requests";r={left_requests};t={-(-reset_requests_ms // 1_000)}'
    return (
        limit_requests,
        ("x-ratelimit-remaining-requests", str(left_requests)),
        ("x-ratelimit-reset-requests", format_duration(reset_requests_ms)),
        limit_tokens,
        ("x-ratelimit-remaining-tokens", str(left_tokens)),
        ("x-ratelimit-reset-tokens", format_duration(reset_tokens_ms)),
        policy,
        ("RateLimit", f'{of_requests}, "tokens";r={left_tokens};t={-(-reset_tokens_ms // 1_000)}'),
    )


@lru_cache(maxsize=1_024)
def _limits(requests: int, tokens: int) -> tuple[tuple[str, str], ...]:
    """What is told of two limits, whatever is left of them."""
    return (
        ("x-ratelimit-limit-requests", str(requests)),
        ("x-ratelimit-limit-tokens", str(tokens)),
        ("RateLimit-Policy", f'"requests";q={requests};w=60, "tokens";q={tokens};w=60'),
    )


def _standing_of(name: str, gauge: Gauge) -> tuple[tuple[str, str], ...]:
    return (
        (f"x-ratelimit-limit-{name}", str(gauge.limit)),
        (f"x-ratelimit-remaining-{name}", str(gauge.remaining)),
        (f"x-ratelimit-reset-{name}", format_duration(gauge.reset_ms)),
        ("RateLimit-Policy", f'"{name}";q={gauge.limit};w=60'),
        ("RateLimit", f'"{name}";r={gauge.remaining};t={-(-gauge.reset_ms // 1_000)}'),
    )
