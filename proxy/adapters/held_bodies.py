"""Bodies of requests that are kept until upstream has answered: in memory while small, then in a file without a name.

A file without a name is gone with the process, however that ends.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO

from proxy.core.errors import Overloaded
from proxy.ports import Body, Patch

__all__ = ["HeldBodies"]

_IN_MEMORY_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_WRITE_BYTES = 1024 * 1024
"""What is written to disk at once."""


class HeldBodies:
    """Makes places for bodies in `directory`, which hold `max_bytes` together; more are refused, not waited for."""

    __slots__ = ("_directory", "_left_bytes")

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self._directory = directory
        self._left_bytes = max_bytes

    def hold(self) -> HeldBody:
        """Make a place for one."""
        return HeldBody(self)

    @property
    def directory(self) -> Path:
        """Where files are made."""
        return self._directory

    def take_room(self, count: int) -> None:
        """Set so many bytes aside. Raises `Overloaded`."""
        if count > self._left_bytes:
            raise Overloaded("too much is being uploaded at once")
        self._left_bytes -= count

    def give_room(self, count: int) -> None:
        """Give them back."""
        self._left_bytes += count


class HeldBody:
    """Keeps the promises of `ports.Holding`."""

    __slots__ = ("_file", "_gathered", "_house", "_length")

    def __init__(self, house: HeldBodies) -> None:
        self._house = house
        self._gathered: bytearray | None = bytearray()
        """What is not in the file yet; all of it while there is none. None: closed."""
        self._file: _File | None = None
        self._length = 0

    async def take(self, data: bytes) -> None:
        """Keep what comes next; waits for the disk off the loop."""
        gathered = self._gathered
        if gathered is None:
            raise LookupError("the body was let go")
        self._house.take_room(len(data))
        self._length += len(data)
        gathered += data
        if len(gathered) > (_IN_MEMORY_BYTES if self._file is None else _WRITE_BYTES):
            self._gathered = bytearray()
            await self._write(bytes(gathered))

    def body(self, patch: Patch | None = None) -> Body:
        """Read it, with `patch` in the place of what that names."""
        return _Whole(self, patch or Patch(self._length, self._length, b""))

    def close(self) -> None:
        """Forget it."""
        self._gathered = None
        self._house.give_room(self._length)
        self._length = 0
        if self._file is not None:
            file, self._file = self._file, None
            # A thread may be at work on it, and what is large takes its time to be forgotten.
            asyncio.get_running_loop().run_in_executor(None, file.close)

    @property
    def length(self) -> int:
        """In bytes."""
        return self._length

    async def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """A part of it, piece by piece."""
        length, tail = self._length, self._gathered
        if tail is None:
            raise LookupError("the body was let go")
        on_disk = length - len(tail)
        while start < min(end, on_disk):
            if self._file is None:
                raise LookupError("the body was let go")
            count = min(_READ_BYTES, min(end, on_disk) - start)
            try:
                piece = await asyncio.to_thread(self._file.read, count, start)
            except OSError:
                raise Overloaded("an upload could not be read from disk") from None
            start += len(piece)
            yield piece
        if start < end:
            yield bytes(tail[start - on_disk : end - on_disk])

    async def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = _File(self._house.directory)
            await asyncio.to_thread(self._file.write, data)
        except OSError:
            raise Overloaded("an upload could not be kept on disk") from None


class _Whole:
    """Keeps the promises of `ports.Body`."""

    __slots__ = ("_held", "_patch")

    def __init__(self, held: HeldBody, patch: Patch) -> None:
        self._held = held
        self._patch = patch

    @property
    def length(self) -> int:
        """With the patch."""
        patch = self._patch
        return self._held.length - (patch.end - patch.start) + len(patch.data)

    @property
    def replayable(self) -> bool:
        """Always, until it is let go."""
        return True

    async def chunks(self) -> AsyncIterator[bytes]:
        """All of it."""
        patch = self._patch
        async for piece in self._held.read(0, patch.start):
            yield piece
        if patch.data:
            yield patch.data
        async for piece in self._held.read(patch.end, self._held.length):
            yield piece


class _File:
    """A file without a name, for threads: one that is at work keeps it open, and none works on it once it is closed."""

    __slots__ = ("_directory", "_file", "_is_closed", "_lock")

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: IO[bytes] | None = None
        self._is_closed = False
        self._lock = threading.Lock()

    def write(self, data: bytes) -> None:
        """Append. Raises `OSError`."""
        with self._lock:
            if self._is_closed:
                return
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115 - closed by `close`
            self._file.write(data)
            self._file.flush()

    def read(self, count: int, at: int) -> bytes:
        """So many bytes from there on, or fewer. Raises `OSError` where there are none."""
        with self._lock:
            piece = b"" if self._file is None or self._is_closed else os.pread(self._file.fileno(), count, at)
        if not piece:
            raise OSError("the file is shorter than what was written, or closed")
        return piece

    def close(self) -> None:
        """Wait for whoever is at work on it, and forget it."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
