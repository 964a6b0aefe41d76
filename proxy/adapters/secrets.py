"""Secrets that Tollgate makes for itself and keeps outside the database."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

import msgspec

from proxy.core.keys import Peppers
from proxy.core.registry import DataUnusable

__all__ = ["PEPPER_FILE", "SecretsInvalid", "load_or_create_pepper"]

PEPPER_FILE = "peppers.json"
_PEPPER_BYTES = 32


class SecretsInvalid(DataUnusable):
    """The file is there and is not what it should be; the message names the file and nothing in it."""


class _PepperFile(msgspec.Struct, forbid_unknown_fields=True):
    current: int
    peppers: dict[int, str]
    """Version -> 32 bytes or more, in hexadecimal."""


def load_or_create_pepper(data_dir: Path) -> Peppers:
    """The peppers in the data directory, made when it has none; every process gets the same ones.

    Whoever loses the file loses every issued key: none can be checked without it. Raises `SecretsInvalid` and
    `OSError`.
    """
    path = data_dir / PEPPER_FILE
    with contextlib.suppress(FileNotFoundError):
        return _decode(path)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    first = _PepperFile(current=1, peppers={1: secrets.token_hex(_PEPPER_BYTES)})
    _create_once(path, msgspec.json.encode(first))
    return _decode(path)


def _create_once(path: Path, content: bytes) -> None:
    """Make the file whole or not at all; the one who comes second changes nothing."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _decode(path: Path) -> Peppers:
    content = path.read_bytes()
    try:
        file = msgspec.json.decode(content, type=_PepperFile)
        peppers = {version: bytes.fromhex(pepper) for version, pepper in file.peppers.items()}
    except ValueError:
        # Neither the error nor its cause is passed on: both may quote the file.
        raise SecretsInvalid(f"{path} is not a file of peppers") from None
    if file.current not in peppers or any(len(pepper) < _PEPPER_BYTES for pepper in peppers.values()):
        raise SecretsInvalid(f"{path} has no current pepper, or one that is too short")
    return Peppers(current_id=file.current, secrets=peppers)
