"""Keys to principals, from a bounded cache in front of the key store.

A positive answer is trusted for `POSITIVE_TTL_MS` after the store was last asked, for it or for what has changed: that
is the published bound on revocation. Of a change that is noticed, what it has changed is asked for again before it is
used, and where nobody can say what, everything is. So the look-ups hang on how much is changed and not on how many keys
are in use. A store that is away does not lock out who was in: principals go on for `STALE_MS`, and a revoked one never
comes back.

Strangers are kept apart from them: what is refused has a cache of its own, and those who are not known yet wait in a
line of their own to be looked up, so that any number of invented keys costs a bounded number of look-ups and of bytes,
and nobody his place.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager

import msgspec

from proxy.core.errors import InvalidKey, Overloaded, StoreAway
from proxy.core.keys import ParsedKey, PepperKeeper, may_be_imported, parse, secret_behind
from proxy.core.principal import KeyRecord, Principal, Team
from proxy.pipeline.key_notes import KeyNotes
from proxy.pipeline.single_flight import SingleFlight
from proxy.ports import Clock, KeyStore

__all__ = ["NEGATIVE_TTL_MS", "POSITIVE_TTL_MS", "STALE_MS", "Principals"]

POSITIVE_TTL_MS = 10 * 1_000
NEGATIVE_TTL_MS = 2 * 1_000
STALE_MS = 300 * 1_000
REREAD_MS = 600 * 1_000
"""When an answer is asked for again though nothing is said to have changed: people change databases by hand, too."""
_NEVER = -1
"""The generation of what was read while a key was being ended: it may be that key."""
MAX_ENTRIES = 100_000
MAX_REFUSED = 10_000
MAX_CHANGED = 10_000
"""Changed keys and teams that are told apart; with more, every answer is asked for again."""
MAX_STRANGERS_AT_ONCE = 4
"""Look-ups for strangers under way at one time: fewer than there are threads, so that some are left for the others."""
MAX_STRANGERS_WAITING = 1_000
_WARN_EVERY_MS = 60 * 1_000
_log = logging.getLogger(__name__)


class _Entry(msgspec.Struct, frozen=True, gc=False):
    principal: Principal
    fetched_ms: int
    """On the monotonic clock."""
    generation: int
    """Of the store, as it was when it was asked."""
    may_last: bool
    """Whether it holds for as long as nothing is said to have changed."""


class Principals:
    """Finds who holds a key."""

    def __init__(self, store: KeyStore, peppers: PepperKeeper, clock: Clock) -> None:
        self._store = store
        self._keeper = peppers
        self._peppers = peppers.latest()
        self._peppers_are_old = False
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._digests_of: dict[str, tuple[bytes, ...]] = {}
        """Where the entries of a key are, by its id: what ends one must not walk over all that are cached."""
        self._refused: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """When it was refused, and in which generation."""
        self._look_ups: SingleFlight[tuple[bytes, int, int], Principal | None] = SingleFlight()
        self._strangers = asyncio.Semaphore(MAX_STRANGERS_AT_ONCE)
        self._waiting = 0
        self._generation = 0
        self._current_since = 0
        """The generation from which on it is known of each change what it has changed."""
        self._changed: dict[str, int] = {}
        """Ids of keys and names of teams that were changed since, and in which generation."""
        self._confirmed_ms = self._clock.monotonic_ns() // 1_000_000 - POSITIVE_TTL_MS
        """Until when, on the monotonic clock, nothing has changed but what is known here."""
        self._ends_known_since = 0
        """The generation from which on it is known of each change which keys it has ended."""
        self._forgotten = 0
        self._imported: frozenset[int] = frozenset()
        self._imported_seen: tuple[int, int] | None = None
        self._warned_ms: dict[int, int] = {}
        self.notes = KeyNotes(store)

    def invalidate(self, ended: Iterable[str] | None = None, changed: Iterable[str] | None = None) -> None:
        """Note that keys or teams have changed: what is cached of them is asked for again before it is used.

        `ended`: ids of the keys of which something was ended, where that is known. While the store cannot be asked
        the others go on; where it is not known, nobody does. `changed`: ids of the keys and names of the teams that are
        another than before, where that is known; else every one of them may be.
        """
        self._generation += 1
        self._peppers_are_old = True
        if ended is None:
            self._ends_known_since = self._generation
        else:
            self.forget(ended)
        if changed is not None:
            self._changed.update(dict.fromkeys(changed, self._generation))
        if changed is None or len(self._changed) > MAX_CHANGED:
            self._changed.clear()
            self._current_since = self._generation

    def confirm(self, ms: int) -> None:
        """Note that the store was asked at `ms`, on the monotonic clock, and has told of every change before it."""
        self._confirmed_ms = ms

    def forget(self, kids: Iterable[str]) -> None:
        """Trust what is cached of these keys no more, not even while the store cannot be asked."""
        gone = frozenset(kids)
        self._forgotten += bool(gone)
        for kid in gone:
            for digest in self._digests_of.pop(kid, ()):
                del self._entries[digest]

    async def of(self, key: str) -> Principal:
        """Return who holds `key`. Raises `InvalidKey`, `StoreAway`, `Overloaded`."""
        # The cache is looked up by a digest, so that no secret is kept and no comparison leaks one. Bytes that are no
        # UTF-8 come as what they were read into; whose key has them is decided below.
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        ms = self._clock.monotonic_ns() // 1_000_000
        entry = self._entries.get(digest)
        principal: Principal | None
        if entry is not None and self._is_good(entry, ms):
            principal = entry.principal  # who is in it has been read before
        else:
            parsed = parse(key)
            is_none = parsed is None and not may_be_imported(key)
            if is_none or (entry is None and self._is_fresh(self._refused.get(digest), ms)):
                raise InvalidKey
            # Whoever comes after a change is not told what was read before it.
            wanted = (digest, self._generation, self._forgotten)
            principal = await self._look_ups.join(wanted, lambda: self._look_up(digest, key, parsed, entry, ms))
        now_ms = self._clock.now_ms()
        if principal is None or not principal.live_at(now_ms):
            raise InvalidKey
        self.notes.used(principal.key.kid, now_ms)
        return principal

    async def _look_up(
        self, digest: bytes, key: str, parsed: ParsedKey | None, old: _Entry | None, ms: int
    ) -> Principal | None:
        generation, forgotten = self._generation, self._forgotten
        if old is not None:
            try:
                principal = await self._ask_store(key, parsed)
            except StoreAway:
                # That a key was unknown a while ago says nothing now: only who was in stays in.
                is_trusted = self._entries.get(digest) is old and old.generation >= self._ends_known_since
                if is_trusted and self._age_ms(old, ms) < STALE_MS:
                    return old.principal
                raise
        else:
            async with self._line_of_strangers():
                # None from elsewhere at all: what is not one of ours is then known to be nobody's.
                if parsed is None and not await self._imported_under(ms):
                    return None
                principal = await self._ask_store(key, parsed)
        self._remember(digest, principal, ms, generation if forgotten == self._forgotten else _NEVER)
        return principal

    def _remember(self, digest: bytes, principal: Principal | None, ms: int, generation: int) -> None:
        self._drop(digest)
        if principal is None:
            self._refused[digest] = (ms, generation)
            self._refused.move_to_end(digest)
            if len(self._refused) > MAX_REFUSED:
                self._refused.popitem(last=False)
            return
        self._refused.pop(digest, None)
        # A hash that found no room among the notes is noted when the key is read again.
        self._entries[digest] = _Entry(principal, ms, generation, may_last=not self.notes.is_full)
        kid = principal.key.kid
        self._digests_of[kid] = (*self._digests_of.get(kid, ()), digest)
        if len(self._entries) > MAX_ENTRIES:
            self._drop(next(iter(self._entries)))

    def _drop(self, digest: bytes) -> None:
        entry = self._entries.pop(digest, None)
        if entry is None:
            return
        kid = entry.principal.key.kid
        others = tuple(each for each in self._digests_of[kid] if each != digest)
        if others:
            self._digests_of[kid] = others
        else:
            del self._digests_of[kid]

    def _is_good(self, entry: _Entry, ms: int) -> bool:
        """Whether what was read of a key has not changed since, as far as anybody may know."""
        if self._age_ms(entry, ms) >= POSITIVE_TTL_MS or ms - entry.fetched_ms >= REREAD_MS:
            return False
        generation, principal = entry.generation, entry.principal
        if generation == self._generation:
            return True
        changed = max(self._changed.get(principal.key.kid, 0), self._changed.get(principal.team.name, 0))
        return generation >= self._current_since and generation >= changed

    def _age_ms(self, entry: _Entry, ms: int) -> int:
        """How long ago the store was asked for it, or for changes, of which it has told none of this key."""
        return ms - (max(entry.fetched_ms, self._confirmed_ms) if entry.may_last else entry.fetched_ms)

    def _is_fresh(self, refused: tuple[int, int] | None, ms: int) -> bool:
        return refused is not None and ms - refused[0] < NEGATIVE_TTL_MS and refused[1] == self._generation

    @asynccontextmanager
    async def _line_of_strangers(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_STRANGERS_WAITING:
            raise Overloaded("too many unknown keys at once")
        self._waiting += 1
        try:
            async with self._strangers:
                yield
        finally:
            self._waiting -= 1

    async def _imported_under(self, ms: int) -> frozenset[int]:
        """The peppers that keys from elsewhere are hashed under; while there are none, nobody needs to look for one."""
        seen = self._imported_seen
        if seen is None or seen[1] != self._generation or ms - max(seen[0], self._confirmed_ms) >= NEGATIVE_TTL_MS:
            generation = self._generation
            self._imported = await self._store.imported_under()
            self._imported_seen = (ms, generation)
        return self._imported

    async def _ask_store(self, key: str, parsed: ParsedKey | None) -> Principal | None:
        needed = self._imported if parsed is None else frozenset[int]()
        if self._peppers_are_old or needed - self._peppers.secrets.keys():
            await self._renew_peppers()
        hashes = self._peppers.hashes(key)
        if parsed is not None:
            found = await self._store.find(parsed.kid)
        else:
            found = await self._store.find_imported(list(hashes.values()))
        principal, missing = self._verified(hashes, found)
        if missing:
            # Made by another process a moment ago, perhaps, and here by now.
            await self._renew_peppers()
            principal, missing = self._verified(self._peppers.hashes(key), found)
        if principal is None:
            self._warn_of(missing | (needed - self._peppers.secrets.keys()))
        return principal

    async def _renew_peppers(self) -> None:
        self._peppers_are_old = False
        self._peppers = await asyncio.to_thread(self._keeper.latest)

    def _verified(
        self, hashes: Mapping[int, bytes], found: tuple[KeyRecord, Team] | None
    ) -> tuple[Principal | None, AbstractSet[int]]:
        """Who holds the key, and, when nobody does, the peppers it would have taken to know."""
        secrets = found[0].secrets if found else ()
        # The same work when nothing was found.
        secret = secret_behind(hashes, secrets)
        if found is None or secret is None:
            return None, {each.pepper_id for each in secrets} - hashes.keys()
        record, team = found
        current = self._peppers.current_id
        if all(each.serial != secret.serial or each.pepper_id != current for each in secrets) and current in hashes:
            self.notes.hashed(record.kid, secret, current, hashes[current])
        return Principal(team, record, secret.ends_at_ms), frozenset()

    def _warn_of(self, versions: AbstractSet[int]) -> None:
        """Say, now and then, that keys are refused for want of a pepper; nobody else will know why."""
        now_ms = self._clock.monotonic_ns() // 1_000_000
        for version in versions:
            if now_ms - self._warned_ms.get(version, -_WARN_EVERY_MS) >= _WARN_EVERY_MS:
                self._warned_ms[version] = now_ms
                _log.warning(
                    "a key was refused that is hashed under pepper %d, which is not here: all machines that share a "
                    "database need the same file of peppers (pepper_file)",
                    version,
                )
