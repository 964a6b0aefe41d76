"""Append-only segment files between the request path and the database.

A writer has a directory to itself, and holds a lock in it for as long as it lives: whoever can take the lock knows that
the writer is gone. A segment begins with `MAGIC`; a record is its payload's length and a CRC-32 of length and payload,
four bytes each in little endian, then the payload: a letter for its kind and the record in MessagePack.

One record is one `write`, which outlives the process at once and the machine after the next `sync`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from zlib import crc32

import msgspec

from proxy.core.errors import Overloaded
from proxy.core.event import Dispatch, UsageEvent

__all__ = [
    "MAGIC",
    "MAX_RECORD_BYTES",
    "Segment",
    "Slice",
    "SpoolWriter",
    "Stop",
    "discard_empty",
    "locked",
    "read_slice",
    "remove",
    "segments_in",
]

MAGIC = b"TGSPOOL1"
MAX_RECORD_BYTES = 65_536
_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_KIND = _HEADER.size
"""Where in a record its kind stands: the payload begins with it."""
_SLICE_BYTES = 1 << 17
"""Two of the largest records, and no more: a thread that reads holds up the event loop."""
_LOCK_FILE = "lock"
_SUFFIX = ".spool"
_BEGIN = b"B"
_END = b"E"

_pack_header = _HEADER.pack
_pack_length = _LENGTH.pack
_read_header = _HEADER.unpack_from
_encode = msgspec.msgpack.Encoder().encode
_decode_begin = msgspec.msgpack.Decoder(Dispatch).decode
_decode_end = msgspec.msgpack.Decoder(UsageEvent).decode


@dataclass(frozen=True, slots=True)
class Segment:
    """A file of records."""

    path: Path
    size_bytes: int
    """Up to where it holds whole records; in a dead writer's last segment, the size of the file."""
    closed: bool
    """Nothing will be added to it."""

    @property
    def name(self) -> str:
        """The name under which the database knows it: `<writer>/<number>`."""
        return f"{self.path.parent.name}/{self.path.stem}"


class Stop(Enum):
    """Why a slice ends where it does."""

    MORE = "more"
    """A slice is only so long; go on from its offset."""
    END = "end"
    TORN = "torn"
    """The last record is not whole: its writer died, or power went, while it was written."""
    DAMAGED = "damaged"
    """A record in the middle is not what was written."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Records of a segment, in the order in which they were written."""

    begins: list[Dispatch]
    ends: list[UsageEvent]
    offset: int
    """Where the next slice begins."""
    stop: Stop


class SpoolWriter:
    """One worker's segments. `begin` and `end` are for one thread, `sync` for any.

    `segment_bytes`: a segment that has reached it is closed. `quota_bytes`: with that much on disk `begin` refuses.
    `strict`: each record is forced to disk before the call returns, instead of by the next `sync`.
    """

    def __init__(
        self,
        spool_dir: Path,
        *,
        segment_bytes: int = 16 << 20,
        quota_bytes: int = 1 << 30,
        strict: bool = False,
    ) -> None:
        self.directory, self._lock_fd = _claim(spool_dir)
        self.foreign_bytes = 0
        """What other, dead writers have left on the same disk; counts towards the quota."""
        self._segment_bytes = segment_bytes
        self._quota_bytes = quota_bytes
        self._strict = strict
        self._closed: list[Segment] = []
        self._closed_bytes = 0
        self._number = 0
        self._path: Path
        self._fd: int
        self._size: int
        self._full: bool
        self._retired: deque[int] = deque()
        self._sync_lock = threading.Lock()
        self._open_segment()

    @property
    def used_bytes(self) -> int:
        """What this writer has on disk."""
        return self._closed_bytes + self._size

    def begin(self, dispatch: Dispatch) -> None:
        """Append a begin record. Raises `Overloaded` at the quota and when the disk takes no more."""
        payload = _BEGIN + _encode(dispatch)
        if len(payload) > MAX_RECORD_BYTES // 2:
            raise Overloaded("the ledger's record would be too large")
        used_bytes = self._closed_bytes + self._size + self.foreign_bytes
        if used_bytes + len(payload) + _HEADER.size > self._quota_bytes:
            raise Overloaded("the usage spool is at its quota")
        try:
            self._append(payload)
        except OSError as error:
            raise Overloaded("the usage spool cannot be written") from error

    def end(self, event: UsageEvent) -> None:
        """Append an event, whatever the quota. Raises `OSError`, and `ValueError` for an event that has no form."""
        payload = _END + _encode(event)
        if len(payload) > MAX_RECORD_BYTES:
            raise ValueError("the event is too large for a record")
        self._append(payload)

    def sync(self) -> None:
        """Force to disk what has been appended. Raises `OSError`."""
        with self._sync_lock:
            self._sync()

    def segments(self) -> list[Segment]:
        """Every segment, oldest first, as far as it has been written."""
        return [*self._closed, Segment(self._path, self._size, closed=False)]

    def release(self, segment: Segment) -> None:
        """Forget a closed segment; its file is the caller's to delete."""
        self._closed.remove(segment)
        self._closed_bytes -= segment.size_bytes

    def close(self) -> None:
        """Sync, and let go of the directory; nothing can be appended from here on."""
        with self._sync_lock:
            try:
                self._sync()
            finally:
                os.close(self._fd)
                os.close(self._lock_fd)
                self._fd = -1

    def _sync(self) -> None:
        while self._retired:
            fd = self._retired.popleft()
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
        if self._fd >= 0:
            os.fdatasync(self._fd)

    def _append(self, payload: bytes) -> None:
        if self._full or self._size >= self._segment_bytes:
            self._rotate()
        length = len(payload)
        record = _pack_header(length, crc32(payload, crc32(_pack_length(length)))) + payload
        try:
            if os.write(self._fd, record) != len(record):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._strict:
                os.fdatasync(self._fd)
        except OSError:
            self._undo()
            raise
        self._size += len(record)

    def _undo(self) -> None:
        """Take back half a record; where that fails, leave it as the torn tail of a closed segment."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._full = True

    def _rotate(self) -> None:
        retired, full = self._fd, Segment(self._path, self._size, closed=True)
        self._open_segment()
        self._closed.append(full)
        self._closed_bytes += full.size_bytes
        # Closed by the next `sync`, which may be at work on it now.
        self._retired.append(retired)

    def _open_segment(self) -> None:
        path = self.directory / f"{self._number + 1:08d}{_SUFFIX}"
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            if os.write(fd, MAGIC) != len(MAGIC):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            _sync_directory(self.directory)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        self._number += 1
        self._path, self._fd, self._size, self._full = path, fd, len(MAGIC), False


def read_slice(segment: Segment, offset: int) -> Slice:
    """Whole records from `offset` on, 128 KiB at most. Raises `OSError`."""
    with segment.path.open("rb", buffering=0) as file:
        if offset < len(MAGIC):
            if segment.size_bytes < len(MAGIC):
                return Slice([], [], offset, Stop.TORN)
            if file.read(len(MAGIC)) != MAGIC:
                return Slice([], [], offset, Stop.DAMAGED)
            offset = len(MAGIC)
        data = os.pread(file.fileno(), min(_SLICE_BYTES, segment.size_bytes - offset), offset)
    begins: list[Dispatch] = []
    ends: list[UsageEvent] = []
    at = 0
    whole = offset + len(data) >= segment.size_bytes
    while (end := _end_of(data, at)) is not None:
        record = data[at + _KIND + 1 : end]
        try:
            if data[at + _KIND] == _BEGIN[0]:
                begins.append(_decode_begin(record))
            else:
                ends.append(_decode_end(record))
        except msgspec.MsgspecError:
            return Slice(begins, ends, offset + at, Stop.DAMAGED)
        at = end
    return Slice(begins, ends, offset + at, _why(data, at, whole=whole))


def _end_of(data: bytes, at: int) -> int | None:
    """Where the record ends that stands there; None: there is none, or not the whole of one."""
    start = at + _HEADER.size
    if start > len(data):
        return None
    length, checksum = _read_header(data, at)
    end: int = start + length
    if not 0 < length <= MAX_RECORD_BYTES or end > len(data):
        return None
    # Copies cost less than views of what is this short.
    return end if crc32(data[start:end], crc32(data[at : at + _LENGTH.size])) == checksum else None


def _why(data: bytes, at: int, *, whole: bool) -> Stop:
    """Tell what stands where no further record does."""
    rest = len(data) - at
    if rest == 0 and whole:
        return Stop.END
    if rest < _HEADER.size:
        return Stop.TORN if whole else Stop.MORE
    length, _ = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + length
    if 0 < length <= MAX_RECORD_BYTES and end >= len(data):
        # Reaches to the end or beyond: cut off, unless more can be read.
        return Stop.TORN if whole else Stop.MORE
    # A file system that lost its last writes in a power cut may show zeros in their place.
    return Stop.TORN if whole and not any(data[at:]) else Stop.DAMAGED


def segments_in(directory: Path) -> list[Segment]:
    """The segments of a dead writer, oldest first."""
    return [Segment(path, path.stat().st_size, closed=True) for path in sorted(directory.glob(f"*{_SUFFIX}"))]


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[bool]:
    """Hold the lock of a writer's directory; False when its writer lives, or another recovers it, or it is gone."""
    try:
        fd = os.open(directory / _LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        yield False
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            # Whoever held it before may have deleted it meanwhile.
            yield os.fstat(fd).st_nlink > 0
    finally:
        os.close(fd)


def remove(directory: Path) -> None:
    """Delete a writer's directory, the lock last, so that what is left after a crash can be found again."""
    for segment in segments_in(directory):
        segment.path.unlink(missing_ok=True)
    (directory / _LOCK_FILE).unlink(missing_ok=True)
    directory.rmdir()


def discard_empty(directory: Path) -> None:
    """Delete a directory that holds nothing, not even the lock that every writer's has; leave any other alone."""
    with contextlib.suppress(OSError):
        directory.rmdir()


def _claim(spool_dir: Path) -> tuple[Path, int]:
    """Make a writer's directory, locked before anyone can see it under its name."""
    spool_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = secrets.token_hex(8)
    draft = spool_dir / f".{name}"
    draft.mkdir(mode=0o700)
    fd = os.open(draft / _LOCK_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    directory = draft.rename(spool_dir / name)
    _sync_directory(spool_dir)
    return directory, fd


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
