"""Answers sealed for a store that others can write to: AES-256-GCM over msgpack, compressed where it pays.

An envelope is a header and the ciphertext with its tag. The tag is over the header and the place, so an envelope that
was moved, changed in any bit or cut does not open. Each team's key is derived from the master key and the team's own
secret (HKDF, RFC 5869): nobody who writes to the store can hand one team another's answer, and forgetting the secret
forgets the answers. Nonces are random, which NIST SP 800-38D allows for 2**32 envelopes under one key: change the
master key before a team has stored so many.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.adapters.cache_keys import KEY_BYTES, MasterKeys
from proxy.core.replay import Form
from proxy.ports import CachedAnswer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ON_LOOP_BYTES", "OVERHEAD_BYTES", "VERSION", "Envelope", "Flaw", "Unopenable"]

VERSION = 1
_MAGIC = b"TG"
_HEADER = struct.Struct(">2sBB8s12sQQI")
"""The fields of `_Header`, in network order."""
_PREFIX = struct.Struct(">2sB")
_NONCE_BYTES = 12
_TAG_BYTES = 16
_COMPRESSED = 1
_COMPRESS_ABOVE_BYTES = 512
_INFO = b"tollgate cache entry 1"
_LARGEST_BYTES = 2**28
"""Half of what Redis takes for a value."""
_SKEW_MS = 10_000
"""How far the clocks of two machines may be apart."""
_TEAM_KEYS = 4_096
"""Derived keys kept at hand; deriving one again takes microseconds."""

OVERHEAD_BYTES = _HEADER.size + _TAG_BYTES
ON_LOOP_BYTES = 262_144
"""More is for a thread: it takes a millisecond and more, which others on the loop would wait."""


class Flaw(StrEnum):
    """Why an envelope does not open; also a label of a metric."""

    GARBAGE = "garbage"
    """It is no envelope, or holds no answer."""
    VERSION = "version"
    """Another version of Tollgate sealed it."""
    UNKNOWN_KEY = "unknown_key"
    """It was sealed under a master key that is not among ours."""
    TAG = "tag"
    """It was changed, or sealed for another place or team."""
    TOO_LARGE = "too_large"
    """It holds more than an entry may."""
    DECOMPRESS = "decompress"
    """What it holds does not decompress to what its header says."""
    CLOCK = "clock"
    """It was sealed later than now: some machine's clock is wrong."""


class Unopenable(Exception):
    """An envelope that says nothing."""

    def __init__(self, flaw: Flaw) -> None:
        super().__init__(flaw.value)
        self.flaw = flaw


class _Header(NamedTuple):
    magic: bytes
    version: int
    flags: int
    key_id: bytes
    nonce: bytes
    created_ms: int
    life_ms: int
    payload_bytes: int
    """Before compression."""


class _Payload(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is sealed; a change of it is a change of `VERSION`."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    model: str
    form: Form
    input_tokens: int
    output_tokens: int
    cost_pico_usd: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Payload).decode


class Envelope:
    """Seals and opens under the keys of one deployment. Safe to use from several threads."""

    def __init__(
        self, keys: MasterKeys, *, max_payload_bytes: int, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        """`max_payload_bytes`: more is neither sealed nor opened, however small it is when compressed."""
        self._keys = keys
        self._max_payload_bytes = min(max_payload_bytes, _LARGEST_BYTES)
        self._random_bytes = random_bytes
        self._team_key = lru_cache(_TEAM_KEYS)(self._derived_key)
        # Making one takes three times as long as what it does for an entry.
        self._compressor = zstd.ZstdCompressor(level=1)
        # A window larger than any payload would be allocated before a byte of it is seen.
        window_log = max(10, self._max_payload_bytes.bit_length())
        self._decompression: dict[int, int] = {zstd.DecompressionParameter.window_log_max: window_log}

    @property
    def max_sealed_bytes(self) -> int:
        """Size of the largest envelope that is made or opened."""
        return self._max_payload_bytes + OVERHEAD_BYTES

    def seal(self, place: str, secret: bytes, answer: CachedAnswer) -> bytes | None:
        """Seal an answer for a place in the store, under the key of the team that has this secret.

        None for one that is larger than an entry may be, or has numbers that no envelope holds.
        """
        try:
            payload = _encode(
                _Payload(
                    answer.status,
                    answer.headers,
                    answer.body,
                    answer.model,
                    answer.form,
                    answer.input_tokens,
                    answer.output_tokens,
                    answer.cost_pico_usd,
                )
            )
            if len(payload) > self._max_payload_bytes:
                return None
            flags, packed = self._packed(payload)
            nonce, key_id = self._random_bytes(_NONCE_BYTES), self._keys.sealing.id
            header = _HEADER.pack(
                *_Header(_MAGIC, VERSION, flags, key_id, nonce, answer.stored_at_ms, answer.ttl_ms, len(payload))
            )
        except (OverflowError, struct.error, UnicodeEncodeError):
            return None
        return header + self._team_key(key_id, secret).encrypt(nonce, packed, place.encode() + header)

    def open(self, place: str, secret: bytes, sealed: bytes, now_ms: int) -> CachedAnswer | None:
        """Open what was sealed for this place and team; None when its time is over. Raises `Unopenable`."""
        header = self._read_header(sealed)
        bound_to = place.encode() + sealed[: _HEADER.size]
        try:
            packed = self._team_key(header.key_id, secret).decrypt(header.nonce, sealed[_HEADER.size :], bound_to)
        except InvalidTag:
            raise Unopenable(Flaw.TAG) from None
        # From here on a holder of the keys has said it; it is held to its bounds all the same.
        if header.created_ms > now_ms + _SKEW_MS:
            raise Unopenable(Flaw.CLOCK)
        if now_ms >= header.created_ms + header.life_ms:
            return None
        try:
            said = _decode(self._unpacked(header, packed))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise Unopenable(Flaw.GARBAGE) from None
        return CachedAnswer(
            status=said.status,
            headers=said.headers,
            body=said.body,
            model=said.model,
            stored_at_ms=min(header.created_ms, now_ms),
            ttl_ms=header.life_ms,
            input_tokens=said.input_tokens,
            output_tokens=said.output_tokens,
            cost_pico_usd=said.cost_pico_usd,
            form=said.form,
        )

    @staticmethod
    def weight_bytes(sealed: bytes) -> int:
        """What opening would have to handle, as the envelope says itself; for choosing where to open it."""
        claimed = _HEADER.unpack_from(sealed)[-1] if len(sealed) >= _HEADER.size else 0
        return max(len(sealed), claimed)

    def _read_header(self, sealed: bytes) -> _Header:
        if len(sealed) < _PREFIX.size:
            raise Unopenable(Flaw.GARBAGE)
        magic, version = _PREFIX.unpack_from(sealed)
        if magic != _MAGIC:
            raise Unopenable(Flaw.GARBAGE)
        if version != VERSION:
            raise Unopenable(Flaw.VERSION)
        if len(sealed) < OVERHEAD_BYTES:
            raise Unopenable(Flaw.GARBAGE)
        if len(sealed) > self.max_sealed_bytes:
            raise Unopenable(Flaw.TOO_LARGE)
        header = _Header._make(_HEADER.unpack_from(sealed))
        if header.key_id not in self._keys.by_id:
            raise Unopenable(Flaw.UNKNOWN_KEY)
        return header

    def _packed(self, payload: bytes) -> tuple[int, bytes]:
        """Flags, and the payload as it is sealed: compressed where that makes it smaller."""
        if len(payload) > ON_LOOP_BYTES:
            # One of its own: the shared one locks, and the loop would wait for this thread.
            packed = zstd.compress(payload, 1)
        elif len(payload) > _COMPRESS_ABOVE_BYTES:
            packed = self._compressor.compress(payload, zstd.ZstdCompressor.FLUSH_FRAME)
        else:
            return 0, payload
        return (_COMPRESSED, packed) if len(packed) < len(payload) else (0, payload)

    def _unpacked(self, header: _Header, packed: bytes) -> bytes:
        if header.payload_bytes > self._max_payload_bytes:
            raise Unopenable(Flaw.TOO_LARGE)
        if header.flags == 0:
            payload, is_whole = packed, True
        elif header.flags == _COMPRESSED:
            frame = zstd.ZstdDecompressor(options=self._decompression)
            try:
                # One byte more than promised is enough to see that a frame holds more.
                payload = frame.decompress(packed, max_length=header.payload_bytes + 1)
            except zstd.ZstdError:
                raise Unopenable(Flaw.DECOMPRESS) from None
            is_whole = frame.eof and not frame.unused_data
        else:
            raise Unopenable(Flaw.GARBAGE)
        if not is_whole or len(payload) != header.payload_bytes:
            raise Unopenable(Flaw.DECOMPRESS)
        return payload

    def _derived_key(self, key_id: bytes, secret: bytes) -> AESGCM:
        """The key of the team that has this secret, under one of the master keys."""
        return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=secret, info=_INFO).derive(self._keys.by_id[key_id].key))
