"""Keys to principals, from a bounded cache in front of the key store.

A positive answer is trusted for `POSITIVE_TTL_MS`, which is therefore the published bound on revocation; a change
noticed in the store empties the cache at once. A store that is away does not lock out who was in: principals go on
for `STALE_MS`, and a revoked one never comes back.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

from proxy.core.errors import InvalidKey, StoreAway
from proxy.core.keys import ParsedKey, Peppers, parse
from proxy.core.principal import KeyRecord, Principal, Team
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, KeyStore

__all__ = ["NEGATIVE_TTL_MS", "POSITIVE_TTL_MS", "STALE_MS", "Principals"]

POSITIVE_TTL_MS = 10 * 1_000
NEGATIVE_TTL_MS = 2 * 1_000
STALE_MS = 300 * 1_000
MAX_ENTRIES = 100_000


@dataclass(slots=True)
class _Entry:
    principal: Principal | None
    fetched_ms: int
    """On the monotonic clock."""
    confirmed: bool = True
    """False from the moment the store was seen to change until it is asked again."""


class Principals:
    """Finds who holds a key."""

    def __init__(self, store: KeyStore, peppers: Peppers, clock: Clock) -> None:
        self._store = store
        self._peppers = peppers
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._look_ups: SingleFlight[bytes, Principal | None] = SingleFlight()
        self._generation = 0

    def invalidate(self) -> None:
        """Note that keys or teams have changed: every cached answer is asked for again before it is used."""
        self._generation += 1
        for entry in self._entries.values():
            entry.confirmed = False

    async def of(self, key: str) -> Principal:
        """Return who holds `key`. Raises `InvalidKey`, `StoreAway`."""
        parsed = parse(key)
        if parsed is None:
            raise InvalidKey
        # The cache is looked up by a digest, so that no secret is kept and no comparison leaks one.
        digest = hashlib.sha256(key.encode()).digest()
        now_ms = self._clock.monotonic_ns() // 1_000_000
        entry = self._entries.get(digest)
        if entry is None or not entry.confirmed or now_ms - entry.fetched_ms >= _ttl_ms(entry):
            principal = await self._look_ups.join(digest, lambda: self._ask_store(digest, parsed, entry, now_ms))
        else:
            principal = entry.principal
        if principal is None or not principal.key.live_at(self._clock.now_ms()):
            raise InvalidKey
        return principal

    async def _ask_store(self, digest: bytes, parsed: ParsedKey, old: _Entry | None, now_ms: int) -> Principal | None:
        generation = self._generation
        try:
            found = await self._store.find(parsed.kid)
        except StoreAway:
            # That a key was unknown a while ago says nothing now: it may have been issued since.
            if old is not None and old.principal and old.confirmed and now_ms - old.fetched_ms < STALE_MS:
                return old.principal
            raise
        principal = self._verified(parsed, found)
        self._entries[digest] = _Entry(principal, now_ms, confirmed=generation == self._generation)
        self._entries.move_to_end(digest)
        while len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)
        return principal

    def _verified(self, parsed: ParsedKey, found: tuple[KeyRecord, Team] | None) -> Principal | None:
        if found is None:
            # The same work as for a key id that is known.
            self._peppers.matches(self._peppers.current_id, parsed.text, b"")
            return None
        record, team = found
        return (
            Principal(team, record)
            if self._peppers.matches(record.pepper_id, parsed.text, record.secret_hash)
            else None
        )


def _ttl_ms(entry: _Entry) -> int:
    return POSITIVE_TTL_MS if entry.principal is not None else NEGATIVE_TTL_MS
