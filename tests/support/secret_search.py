"""Looks for secrets in whatever a server has said, written and stored: plain, in base64 and in hexadecimal."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

__all__ = ["files_in", "forms_of", "leaks", "redis_contents"]

_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_BORROWED = (0, 2, 3)
"""Characters of base64 that hold bits of the one or two bytes before."""


def forms_of(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """How a secret may look, wherever in a longer text it stands."""
    yield "plain", secret
    yield "hex", secret.hex().encode()
    yield "HEX", secret.hex().upper().encode()
    for before, borrowed in enumerate(_BORROWED):
        coded = base64.b64encode(bytes(before) + secret).rstrip(b"=")
        inner = coded[borrowed : len(coded) - ((before + len(secret)) % 3 > 0)]
        yield "base64", inner
        yield "base64url", inner.translate(_URL_SAFE)


def leaks(places: Mapping[str, str | bytes], secrets: Mapping[str, str | bytes]) -> set[str]:
    """Which secrets are in which places, and how."""
    return {
        f"{place} has {name} ({form})"
        for name, secret in secrets.items()
        for form, text in forms_of(secret.encode() if isinstance(secret, str) else secret)
        for place, content in places.items()
        if text in (content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    }


def files_in(directory: Path, *, but: frozenset[str] = frozenset()) -> dict[str, bytes]:
    """Every file below a directory, with its name for content. What goes meanwhile may be missing."""
    found = {}
    for place, _, names in os.walk(directory):
        for path in (Path(place, name) for name in names if name not in but):
            with suppress(FileNotFoundError):
                if not path.is_file():
                    continue
                found[f"file {path.relative_to(directory)}"] = str(path).encode() + b"\0" + path.read_bytes()
    return found


def redis_contents(url: str) -> dict[str, bytes]:
    """Every key of a Redis with all that is in it."""
    import redis

    readers = {
        b"string": lambda client, key: client.get(key),
        b"hash": lambda client, key: client.hgetall(key),
        b"list": lambda client, key: client.lrange(key, 0, -1),
        b"set": lambda client, key: client.smembers(key),
        b"zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
        b"stream": lambda client, key: client.xrange(key),
        b"none": lambda _client, _key: b"expired meanwhile",
    }
    client = redis.Redis.from_url(url)
    try:
        return {
            f"redis {key!r}": key + b"\0" + _flat(readers[client.type(key)](client, key))
            for key in client.scan_iter(count=1_000)
        }
    finally:
        client.close()


def _flat(value: object) -> bytes:
    match value:
        case bytes():
            return value
        case dict():
            return b"\0".join(map(_flat, [*value, *value.values()]))
        case list() | tuple() | set():
            return b"\0".join(map(_flat, value))
        case _:
            return str(value).encode()
