"""Master keys of the cache: what leaves the process is sealed under the first, and opened under any of them."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = [
    "HOW_TO_MAKE",
    "KEY_BYTES",
    "KEY_ID_BYTES",
    "MasterKey",
    "MasterKeys",
    "MasterKeysInvalid",
    "read_master_keys",
]

KEY_BYTES = 32
KEY_ID_BYTES = 8
HOW_TO_MAKE = "make one with: openssl rand -base64 32"
_PERSON = b"tollgate-cache"
_URL_SAFE = str.maketrans("-_", "+/")


class MasterKeysInvalid(ValueError):
    """What was given is no list of master keys; the message shows nothing of it but the number of the key."""


@dataclass(frozen=True, slots=True)
class MasterKey:
    """A key, and the name it has outside."""

    key: bytes = field(repr=False)
    id: bytes = field(init=False)
    """Of the key itself, so that two places that hold the same key call it the same; tells nothing about it."""

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.key, digest_size=KEY_ID_BYTES, person=_PERSON).digest()
        object.__setattr__(self, "id", digest)


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The keys of a deployment, the one that seals first."""

    sealing: MasterKey
    by_id: Mapping[bytes, MasterKey] = field(repr=False)

    @classmethod
    def of(cls, *keys: bytes) -> MasterKeys:
        """Put keys together, the one that seals first."""
        named = [MasterKey(key) for key in keys]
        return cls(named[0], MappingProxyType({each.id: each for each in named}))


def read_master_keys(text: str) -> MasterKeys:
    """Read keys of 32 bytes, each 43 or 44 characters of base64, with white space between them.

    To change the key, add the new one behind on every machine, then put it first, and take the old one away when what
    it sealed has expired. Raises `MasterKeysInvalid`.
    """
    keys = [_read(word, number) for number, word in enumerate(text.split(), 1)]
    if not keys:
        raise MasterKeysInvalid("holds no key")
    return MasterKeys.of(*keys)


def _read(word: str, number: int) -> bytes:
    bare = word.removesuffix("=").translate(_URL_SAFE)
    try:
        key = base64.b64decode(bare.encode("ascii") + b"=", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        key = b""
    # Written back, because base64 has spare bits: a letter that was changed in transit must not pass.
    if len(key) != KEY_BYTES or base64.b64encode(key).decode("ascii").rstrip("=") != bare:
        # Not `from`: the cause may quote the key.
        raise MasterKeysInvalid(f"key {number} is not {KEY_BYTES} bytes in base64 (43 or 44 characters)")
    return key
