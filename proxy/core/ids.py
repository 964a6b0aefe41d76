"""Event identifiers: UUID version 7, sortable by the millisecond they were made."""

from __future__ import annotations

__all__ = ["RANDOM_BYTES", "uuid7", "uuid7_ms"]

RANDOM_BYTES = 10
"""Random bytes one identifier takes; 74 of their 80 bits are used."""

_VERSION = 0x7000
_VARIANT = 0x8000


def uuid7(now_ms: int, random_bytes: bytes) -> str:
    """A UUIDv7 in canonical form (RFC 9562, section 5.7).

    `now_ms` is unix time in milliseconds and fills the first 48 bits; `random_bytes` are ten random bytes. Raises
    `ValueError` for any other number of bytes and for a time that does not fit.
    """
    if len(random_bytes) != RANDOM_BYTES:
        raise ValueError(f"a UUIDv7 takes {RANDOM_BYTES} random bytes, not {len(random_bytes)}")
    if not 0 <= now_ms < 1 << 48:
        raise ValueError("the time does not fit a UUIDv7")
    rand = int.from_bytes(random_bytes, "big")
    # 48 bits of time; four of version and twelve of rand_a; two of variant and 62 of rand_b, the lowest.
    return "%08x-%04x-%04x-%04x-%012x" % (  # noqa: UP031 - three quarters of an f-string's time, for every request
        now_ms >> 16,
        now_ms & 0xFFFF,
        _VERSION | rand >> 62 & 0xFFF,
        _VARIANT | rand >> 48 & 0x3FFF,
        rand & 0xFFFFFFFFFFFF,
    )


def uuid7_ms(text: str) -> int:
    """The unix time in milliseconds a canonical UUIDv7 was made at; raises `ValueError` for anything else."""
    if len(text) != 36 or text[14] != "7" or text[8] != "-" or text[13] != "-":
        raise ValueError("not a UUIDv7")
    return int(text[:8] + text[9:13], 16)
