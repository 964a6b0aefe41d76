"""What is learned of keys while they are used, written to the store beside the requests; at worst it is lost.

Nothing here waits, and nothing a request needs hangs on it: when a key was last used, to about a minute; and the hash
of a secret under the current pepper, so that the ones before it can be retired one day.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.errors import StoreAway
from proxy.core.principal import KeySecret
from proxy.ports import USES_EVERY_MS, KeyStore

__all__ = ["KeyNotes"]

_EVERY_SECONDS = 10.0
_MAX_HASHES = 1_000
"""Hashes that wait; a key whose hash did not fit comes again."""


@dataclass(frozen=True, slots=True)
class _Hash:
    kid: str
    known: KeySecret
    pepper_id: int
    secret_hash: bytes


class KeyNotes:
    """Notes of one process; belongs to its event loop."""

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._used: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._hashes: dict[bytes, _Hash] = {}

    def used(self, kid: str, now_ms: int) -> None:
        """Note that a key has opened something."""
        self._used[kid] = now_ms

    def hashed(self, kid: str, known: KeySecret, pepper_id: int, secret_hash: bytes) -> None:
        """Note the hash of a secret under a pepper under which it is not known yet."""
        if len(self._hashes) < _MAX_HASHES:
            self._hashes[secret_hash] = _Hash(kid, known, pepper_id, secret_hash)

    async def run(self, failed: Callable[[str, str], None]) -> None:
        """Write, again and again, until cancelled; `failed` is told of store and operation when that went wrong."""
        while True:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                await self.write()
            except StoreAway as error:
                failed(error.store, error.operation)

    async def write(self) -> None:
        """Write what there is to write. Raises `StoreAway`: what was not taken is written the next time."""
        used, self._used = self._used, {}
        due = {kid: ms for kid, ms in used.items() if ms - self._written.get(kid, 0) >= USES_EVERY_MS}
        if due:
            try:
                await self._store.note_uses(due)
            except BaseException:
                self._used = due | self._used
                raise
            self._written |= due
        await self._write_hashes()

    async def _write_hashes(self) -> None:
        for secret_hash, each in list(self._hashes.items()):
            await self._store.add_hash(each.kid, each.known, each.pepper_id, each.secret_hash)
            del self._hashes[secret_hash]
