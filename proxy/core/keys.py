"""Keys: the form of those we issue, what may be taken over from elsewhere, and the keyed hashes both are known by.

`sk-tg_<kid>_<secret><crc>`: 12, 43 and 6 characters of base62. The kid is public and finds the record; the secret holds
256 random bits, which is why a plain keyed hash suffices and no slow one is needed; the checksum keeps mistyped and
made-up keys away from the database. An imported key has none of this: its hash itself is what finds it.
"""

from __future__ import annotations

import hmac
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from proxy.core.discreet import Discreet
from proxy.core.principal import KeySecret

__all__ = [
    "MAX_IMPORTED_CHARACTERS",
    "PREFIX",
    "RANDOM_BYTES",
    "ParsedKey",
    "PepperKeeper",
    "Peppers",
    "keyed_hash",
    "kid_of",
    "make_key",
    "may_be_imported",
    "parse",
    "secret_behind",
    "why_guessable",
    "why_not_imported",
]

PREFIX = "sk-tg_"
RANDOM_BYTES = 48
"""Random bytes one key takes: 16 for the kid, 32 for the secret."""

MAX_IMPORTED_CHARACTERS = 512
"""Longest key that is taken over from elsewhere."""

_LEAST_CHARACTERS = 16
_LEAST_DIFFERENT = 6
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KID_LENGTH = 12
_SECRET_LENGTH = 43
_CRC_LENGTH = 6
_KEY = re.compile(
    rf"{PREFIX}([0-9A-Za-z]{{{_KID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}([0-9A-Za-z]{{{_CRC_LENGTH}}})", re.ASCII
)
_KID = re.compile(rf"(?:{PREFIX})?([0-9A-Za-z]{{{_KID_LENGTH}}})(?:_.*)?", re.ASCII)


class ParsedKey(Discreet, frozen=True, gc=False):
    """A well-formed key of ours; whether it opens anything is not known yet."""

    hidden = frozenset({"text"})

    kid: str
    text: str
    """The whole key."""


def make_key(random_bytes: bytes, kid: str | None = None) -> tuple[str, str]:
    """The kid and the whole key made of 48 random bytes; a `kid` that is given is kept: another secret of the same key.

    Raises `ValueError` for another number of bytes.
    """
    if len(random_bytes) != RANDOM_BYTES:
        raise ValueError(f"a key takes {RANDOM_BYTES} random bytes, not {len(random_bytes)}")
    kid = kid or _base62(int.from_bytes(random_bytes[:16], "big") % 62**_KID_LENGTH, _KID_LENGTH)
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


def why_not_imported(text: str) -> str:
    """Why this text cannot be a key taken over from elsewhere; empty when it can."""
    if not 0 < len(text) <= MAX_IMPORTED_CHARACTERS:
        return f"a key has 1 to {MAX_IMPORTED_CHARACTERS} characters"
    if not text.isprintable():
        return "it has characters that cannot be printed"
    if text != text.strip():
        return "it begins or ends with a space, which HTTP does not carry"
    if text.startswith(PREFIX):
        return f"{PREFIX} begins the keys that are issued here: issue one"
    return ""


def may_be_imported(text: str) -> bool:
    """Whether this text can be a key taken over from elsewhere; whether it is one, is not known yet."""
    return not why_not_imported(text)


def why_guessable(text: str) -> str:
    """Why this text could be guessed; empty when there is no sign of it."""
    if len(text) < _LEAST_CHARACTERS:
        return f"it has fewer than {_LEAST_CHARACTERS} characters"
    if len(set(text)) < _LEAST_DIFFERENT:
        return f"it has fewer than {_LEAST_DIFFERENT} different characters"
    return ""


def keyed_hash(pepper: bytes, text: str) -> bytes:
    """HMAC-SHA256 of the whole key under the pepper: 32 bytes."""
    return hmac.digest(pepper, text.encode(), "sha256")


_FINGERPRINTED = "tollgate pepper"


@dataclass(frozen=True, slots=True)
class Peppers:
    """The secrets keys are hashed under, by version; new keys get the current one."""

    current_id: int
    secrets: Mapping[int, bytes] = field(repr=False)

    def hash(self, text: str) -> tuple[int, bytes]:
        """The current version and the keyed hash under it."""
        return self.current_id, keyed_hash(self.secrets[self.current_id], text)

    def hashes(self, text: str) -> dict[int, bytes]:
        """The keyed hash under every version: the same work for every text, whoever knows it."""
        return {version: keyed_hash(pepper, text) for version, pepper in self.secrets.items()}

    def fingerprint(self, version: int) -> bytes:
        """What tells one pepper from another and says nothing of it: 16 bytes that may be kept anywhere."""
        return keyed_hash(self.secrets[version], _FINGERPRINTED)[:16]


_NOBODYS = (KeySecret(serial=1, pepper_id=0, secret_hash=bytes(32), created_at_ms=0),)


def secret_behind(hashes: Mapping[int, bytes], secrets: Iterable[KeySecret]) -> KeySecret | None:
    """The secret that has one of these hashes, by version of the pepper; None when there is none.

    Each is compared in constant time, and with nothing to compare the same is done with a secret nobody has.
    """
    found = None
    for secret in tuple(secrets) or _NOBODYS:
        known = hashes.get(secret.pepper_id)
        # An unknown version is compared too, with what no hash is.
        if hmac.compare_digest(known or bytes(32), secret.secret_hash) and known is not None:
            found = secret
    return found


class PepperKeeper(Protocol):
    """Where the peppers are kept: outside the database."""

    def latest(self) -> Peppers:
        """The peppers as they are there now; as they were last seen when they cannot be read any more."""
        ...

    def add(self, version: int, *, alone: bool = False) -> Peppers:
        """Make a pepper of this new version and have it be the current one; `alone`: forget all others.

        Raises `OSError`, `DataUnusable`.
        """
        ...

    def remove(self, version: int) -> Peppers:
        """Forget a pepper that is not the current one; again changes nothing. Raises `OSError`, `DataUnusable`."""
        ...


def _base62(number: int, length: int) -> str:
    digits = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CRC_LENGTH)
