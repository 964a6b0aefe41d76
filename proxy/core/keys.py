"""Issued keys: their form, their checksum and the keyed hash under which they are known.

`sk-tg_<kid>_<secret><crc>`: 12, 43 and 6 characters of base62. The kid is public and finds the record; the secret holds
256 random bits, which is why a plain keyed hash suffices and no slow one is needed; the checksum keeps mistyped and
made-up keys away from the database.
"""

from __future__ import annotations

import hmac
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PREFIX", "RANDOM_BYTES", "ParsedKey", "Peppers", "keyed_hash", "kid_of", "make_key", "matches", "parse"]

PREFIX = "sk-tg_"
RANDOM_BYTES = 48
"""Random bytes one key takes: 16 for the kid, 32 for the secret."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KID_LENGTH = 12
_SECRET_LENGTH = 43
_CRC_LENGTH = 6
_KEY = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{_KID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}([0-9A-Za-z]{{{_CRC_LENGTH}}})", re.ASCII
)
_KID = re.compile(rf"(?:{PREFIX})?([0-9A-Za-z]{{{_KID_LENGTH}}})(?:_.*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A well-formed key; whether it opens anything is not known yet."""

    kid: str
    text: str = field(repr=False)
    """The whole key."""


def make_key(random_bytes: bytes) -> tuple[str, str]:
    """The kid and the whole key made of 48 random bytes; raises `ValueError` for another number of them."""
    if len(random_bytes) != RANDOM_BYTES:
        raise ValueError(f"a key takes {RANDOM_BYTES} random bytes, not {len(random_bytes)}")
    kid = _base62(int.from_bytes(random_bytes[:16], "big") % 62**_KID_LENGTH, _KID_LENGTH)
    secret = _base62(int.from_bytes(random_bytes[16:], "big"), _SECRET_LENGTH)
    body = f"{PREFIX}{kid}_{secret}"
    return kid, body + _checksum(body)


def parse(text: str) -> ParsedKey | None:
    """The key, or None when its form or its checksum is wrong."""
    match = _KEY.fullmatch(text)
    if match is None or match[2] != _checksum(text[:-_CRC_LENGTH]):
        return None
    return ParsedKey(kid=match[1], text=text)


def kid_of(text: str) -> str | None:
    """The kid in a kid, in the beginning `sk-tg_<kid>` of a key or in a whole key; None when there is none."""
    match = _KID.fullmatch(text)
    return match[1] if match else None


def keyed_hash(pepper: bytes, text: str) -> bytes:
    """HMAC-SHA256 of the whole key under the pepper: 32 bytes."""
    return hmac.digest(pepper, text.encode(), "sha256")


def matches(pepper: bytes, text: str, expected: bytes) -> bool:
    """Whether `expected` is the keyed hash of `text`; takes the same time whatever the answer."""
    return hmac.compare_digest(keyed_hash(pepper, text), expected)


@dataclass(frozen=True, slots=True)
class Peppers:
    """The secrets keys are hashed under, by version; new keys get the current one."""

    current_id: int
    secrets: Mapping[int, bytes] = field(repr=False)

    def hash(self, text: str) -> tuple[int, bytes]:
        """The current version and the keyed hash under it."""
        return self.current_id, keyed_hash(self.secrets[self.current_id], text)

    def matches(self, pepper_id: int, text: str, expected: bytes) -> bool:
        """Whether `expected` is the hash under that version; does the same work when the version is unknown."""
        known = pepper_id in self.secrets
        pepper = self.secrets[pepper_id if known else self.current_id]
        return matches(pepper, text, expected) and known


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CRC_LENGTH)
