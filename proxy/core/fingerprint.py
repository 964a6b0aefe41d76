"""Canonical request -> cache digest.

A digest cannot be made without a team: its secret keys the hash, so equal requests of two teams never meet.
"""

from __future__ import annotations

import hashlib

from proxy.core.replay import Form
from proxy.core.strict_json import JsonObject, canonical

__all__ = ["EXCLUDED_MEMBERS", "VERSION", "digest", "in_form"]

VERSION = b"2"
"""Changes whenever the digest of an unchanged request would, for then old entries must not be found."""

EXCLUDED_MEMBERS = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "stream", "stream_options", "user"}
)
"""Members that do not change the answer. A member nobody has heard of changes the digest by construction."""


def digest(team_secret: bytes, *, method: str, path: str, upstream: str, body: JsonObject) -> bytes:
    """32 bytes that name a request of a team, in whatever form it wants its answer.

    `upstream` is the identity of where it would go (base URL). Raises `ValueError` for a team without a secret.
    """
    if len(team_secret) < 16:
        raise ValueError("a team's cache secret has at least 16 bytes")
    kept = {name: value for name, value in body.items() if name not in EXCLUDED_MEMBERS}
    fields = (VERSION, method.encode(), path.encode(), upstream.encode(), canonical(kept))
    keyed = hashlib.blake2b(key=team_secret[:64], digest_size=32)
    for field in fields:
        # A length before each field: no two lists of fields give one byte string.
        keyed.update(len(field).to_bytes(8, "big") + field)
    return keyed.digest()


def in_form(digest: bytes, form: Form) -> bytes:
    """32 bytes that name a request whose answer is wanted in one form and no other."""
    return hashlib.blake2b(form.encode(), key=digest, digest_size=32).digest()
