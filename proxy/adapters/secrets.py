"""Secrets that Tollgate makes for itself and keeps outside the database."""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import msgspec

from proxy.adapters.file_owner import give_to_owner
from proxy.core.keys import Peppers
from proxy.core.registry import DataUnusable

__all__ = [
    "PEPPER_FILE",
    "PepperFile",
    "SecretsInvalid",
    "create_once",
    "load_or_create_pepper",
    "replace_file",
    "version_of",
]

PEPPER_FILE = "peppers.json"
_PEPPER_BYTES = 32
_log = logging.getLogger(__name__)


class SecretsInvalid(DataUnusable):
    """The file is there and is not what it should be; the message names the file and nothing in it."""


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    current: int
    peppers: dict[int, str]
    """Version -> 32 bytes or more, in hexadecimal."""


def load_or_create_pepper(data_dir: Path, pepper_file: Path | None = None) -> PepperFile:
    """The peppers in the data directory or in a file of their own, made when there is none.

    Every process gets the same ones; several machines need the same file. Whoever loses it loses every issued key:
    none can be checked without it. Raises `SecretsInvalid` and `OSError`.
    """
    path = pepper_file or data_dir / PEPPER_FILE
    with contextlib.suppress(FileNotFoundError):
        return PepperFile(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    create_once(path, msgspec.json.encode(_Content(current=1, peppers={1: secrets.token_hex(_PEPPER_BYTES)})))
    return PepperFile(path)


class PepperFile:
    """A file of peppers; implements `core.keys.PepperKeeper`. Raises `SecretsInvalid` and `OSError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = version_of(path)
        self._peppers = _decode(path)

    def latest(self) -> Peppers:
        """The peppers in the file; those of before when it has become unreadable, or gives a known version anew."""
        try:
            version = version_of(self._path)
            if version == self._version:
                return self._peppers
            found = _decode(self._path)
        except (OSError, SecretsInvalid) as error:
            _log.error("%s; going on with the peppers there were", error)
            return self._peppers
        self._version = version
        if altered := [each for each in found.secrets if not _is_same(each, found, self._peppers)]:
            _log.error(
                "%s has another pepper of version %d than before; going on with the peppers there were",
                self._path,
                altered[0],
            )
            return self._peppers
        self._peppers = found
        return found

    def add(self, version: int, *, alone: bool = False) -> Peppers:
        """Put a new pepper of this version into the file, as the current one; `alone`: take all others out."""
        with self._alone():
            found = _decode(self._path)
            if version in found.secrets:
                raise SecretsInvalid(f"{self._path} has a pepper of version {version} already")
            kept = {} if alone else found.secrets
            return self._replace(Peppers(version, {**kept, version: secrets.token_bytes(_PEPPER_BYTES)}))

    def remove(self, version: int) -> Peppers:
        """Take a pepper out of the file that is not the current one; again changes nothing."""
        with self._alone():
            found = _decode(self._path)
            if version == found.current_id:
                raise SecretsInvalid(f"version {version} is the current pepper of {self._path}")
            if version not in found.secrets:
                return found
            return self._replace(
                Peppers(found.current_id, {each: found.secrets[each] for each in found.secrets if each != version})
            )

    def _replace(self, peppers: Peppers) -> Peppers:
        texts = {version: pepper.hex() for version, pepper in peppers.secrets.items()}
        replace_file(self._path, msgspec.json.encode(_Content(current=peppers.current_id, peppers=texts)))
        self._version, self._peppers = version_of(self._path), peppers
        return peppers

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others who change the file out; who reads it sees it as it was or as it is."""
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)


def _is_same(version: int, one: Peppers, other: Peppers) -> bool:
    return version not in other.secrets or hmac.compare_digest(one.secrets[version], other.secrets[version])


def version_of(path: Path) -> tuple[int, int, int]:
    """What changes whenever the file is replaced or written to."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def create_once(path: Path, content: bytes) -> None:
    """Make the file whole or not at all; the one who comes second changes nothing."""
    draft = _draft(path, content)
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    _sync_directory(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Put a file of this content in the place of the one there is; who reads it sees the old one or the new one."""
    draft = _draft(path, content)
    try:
        draft.replace(path)
    except BaseException:
        draft.unlink()
        raise
    _sync_directory(path.parent)


def _draft(path: Path, content: bytes) -> Path:
    """A file beside `path` with this content, for the owner alone and safely on disk."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    fd = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            give_to_owner(fd, path)
            file.write(content)
            file.flush()
            os.fsync(fd)
    except BaseException:
        draft.unlink()
        raise
    return draft


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _decode(path: Path) -> Peppers:
    content = path.read_bytes()
    try:
        file = msgspec.json.decode(content, type=_Content)
        peppers = {version: bytes.fromhex(pepper) for version, pepper in file.peppers.items()}
    except ValueError:
        # Neither the error nor its cause is passed on: both may quote the file.
        raise SecretsInvalid(f"{path} is not a file of peppers") from None
    if file.current not in peppers or any(len(pepper) < _PEPPER_BYTES for pepper in peppers.values()):
        raise SecretsInvalid(f"{path} has no current pepper, or one that is too short")
    return Peppers(current_id=file.current, secrets=peppers)
