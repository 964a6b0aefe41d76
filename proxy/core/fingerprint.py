"""Canonical request -> cache digest.

A digest cannot be made without a team: its secret keys the hash, so equal requests of two teams never meet. All that
goes upstream counts, members and headers that nobody here has heard of included; what does not count is listed here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from operator import itemgetter

from proxy.core.replay import Form
from proxy.core.strict_json import JsonObject, canonical

__all__ = [
    "EXCLUDED_HEADERS",
    "EXCLUDED_HEADER_PREFIXES",
    "EXCLUDED_MEMBERS",
    "EXCLUDED_STREAM_OPTIONS",
    "VERSION",
    "digest",
    "in_form",
]

VERSION = b"3"
"""Changes whenever the digest of an unchanged request would, for then old entries must not be found."""

EXCLUDED_MEMBERS = frozenset({"metadata", "prompt_cache_key", "prompt_cache_retention", "stream"})
"""Members that do not change the answer: notes kept beside it, where upstream looks for a prefix, the form of it.

Not `user` and `safety_identifier`: an upstream may answer, remember or refuse by them. A team whose end users are to
share answers leaves them out. Not `service_tier`: the answer names it, and its price differs.
"""

EXCLUDED_STREAM_OPTIONS = frozenset({"include_obfuscation", "include_usage"})
"""Members of `stream_options` that the answer from the cache is told by, or that change no more than its padding."""

EXCLUDED_HEADERS = frozenset(
    {
        # The form of an answer is told by the body, and so is who asks by the key.
        "accept", "user-agent",
        # Names of one request or of one trace, in the words of all that writes them.
        "b3", "baggage", "newrelic", "sentry-trace", "traceparent", "tracestate", "uber-trace-id", "x-amzn-trace-id",
        "x-client-request-id", "x-cloud-trace-context", "x-correlation-id",
    }
)  # fmt: skip
"""Headers that do not change the answer, and that two equal requests would differ in; in lower case."""

EXCLUDED_HEADER_PREFIXES = ("x-b3-", "x-datadog-", "x-stainless-")
"""How more of them begin. `x-stainless-` is what official SDKs tell of themselves and of their retries."""


def digest(
    team_secret: bytes,
    *,
    salt: bytes,
    method: str,
    path: str,
    upstream: str,
    headers: Iterable[tuple[str, str]],
    body: JsonObject,
) -> bytes:
    """32 bytes that name a request of a team, in whatever form it wants its answer.

    `salt` is the team's for the model that is asked, empty where there is none; `upstream` the identity of where it
    would go (base URL); `headers` those of the client that go there. Raises `ValueError` for a team without a secret.
    """
    if len(team_secret) < 16:
        raise ValueError("a team's cache secret has at least 16 bytes")
    keyed = hashlib.blake2b(key=team_secret[:64], digest_size=32)
    keyed.update(_framed((VERSION, salt, method.encode(), path.encode(), upstream.encode(), canonical(_kept(body)))))
    keyed.update(_framed_headers(tuple(headers)))
    return keyed.digest()


def in_form(digest: bytes, form: Form) -> bytes:
    """32 bytes that name a request whose answer is wanted in one form and no other."""
    return hashlib.blake2b(form.encode(), key=digest, digest_size=32).digest()


def _framed(fields: Iterable[bytes]) -> bytes:
    """A length before each field: no two lists of fields give one byte string."""
    parts: list[bytes] = []
    for field in fields:
        parts += (len(field).to_bytes(8, "big"), field)
    return b"".join(parts)


@lru_cache(maxsize=256)
def _framed_headers(headers: tuple[tuple[str, str], ...]) -> bytes:
    """Those that count, framed; remembered, since a client sends the same with each request."""
    fields: list[bytes] = []
    for name, value in sorted(_counting(headers), key=_NAME_OF):
        # Bytes that are no UTF-8 come as what they were read into.
        fields += (name.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape"))
    return _framed(fields)


def _kept(body: JsonObject) -> JsonObject:
    kept = {name: value for name, value in body.items() if name not in EXCLUDED_MEMBERS}
    options = kept.get("stream_options")
    if isinstance(options, dict):
        kept["stream_options"] = {name: options[name] for name in options if name not in EXCLUDED_STREAM_OPTIONS}
    if not kept.get("stream_options", True):
        del kept["stream_options"]  # null, and nothing left in it, is the same as none
    return kept


def _counting(headers: Iterable[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """The headers that count, their names in lower case; values under one name stay in their order."""
    for name, value in headers:
        lower = name.lower()
        if lower not in EXCLUDED_HEADERS and not lower.startswith(EXCLUDED_HEADER_PREFIXES):
            yield lower, value


_NAME_OF = itemgetter(0)
