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
_AT_ONCE = 500
"""Uses that are written in one transaction."""
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

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another hash."""
        return len(self._hashes) >= _MAX_HASHES

    def used(self, kid: str, now_ms: int) -> None:
        """Note that a key has opened something."""
        self._used[kid] = now_ms

    def hashed(self, kid: str, known: KeySecret, pepper_id: int, secret_hash: bytes) -> None:
        """Note the hash of a secret under a pepper under which it is not known yet."""
        if not self.is_full:
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
        due = [(kid, ms) for kid, ms in used.items() if ms - self._written.get(kid, 0) >= USES_EVERY_MS]
        if due:
            newest = max(ms for _, ms in due)
            # What was written longer ago says nothing any more: with it, it would be as many as there ever were.
            self._written = {kid: ms for kid, ms in self._written.items() if newest - ms < USES_EVERY_MS}
        while due:
            # A few at a time: whoever else writes to the database waits for each transaction.
            some = dict(due[-_AT_ONCE:])
            try:
                await self._store.note_uses(some)
            except BaseException:
                self._used = dict(due) | self._used
                raise
            self._written |= some
            del due[-_AT_ONCE:]
        await self._write_hashes()

    async def _write_hashes(self) -> None:
        for secret_hash, each in list(self._hashes.items()):
            await self._store.add_hash(each.kid, each.known, each.pepper_id, each.secret_hash)
            del self._hashes[secret_hash]
