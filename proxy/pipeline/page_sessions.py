"""Signing in to a page with a key, and who it is that has signed in: looked up each time, remembered by nobody here."""

from __future__ import annotations

import asyncio

from proxy.core.errors import InvalidKey
from proxy.core.keys import PepperKeeper, secret_behind
from proxy.core.page_session import SESSION_MS, PageSession, read_session, signed
from proxy.core.principal import Principal
from proxy.pipeline.principals import Principals
from proxy.ports import Clock, KeyStore

__all__ = ["PageSessions"]


class PageSessions:
    """Makes sessions of keys, and principals of sessions."""

    def __init__(self, principals: Principals, store: KeyStore, peppers: PepperKeeper, clock: Clock) -> None:
        self._principals = principals
        self._store = store
        self._peppers = peppers
        self._clock = clock

    async def begin(self, key: str) -> tuple[str, Principal]:
        """Sign a key in; return what its browser is to keep. Raises as `Principals.of`."""
        principal = await self._principals.of(key)
        peppers = await asyncio.to_thread(self._peppers.latest)
        secret = secret_behind(peppers.hashes(key), principal.key.secrets)
        if secret is None:
            # Rotated since it was looked up, or its pepper is of another process and not read here yet.
            raise InvalidKey
        session = PageSession(principal.key.kid, secret.serial, self._clock.now_ms() + SESSION_MS)
        return signed(session, peppers), principal

    async def of(self, token: str) -> Principal:
        """Return who signed in, as the store has them now. Raises `InvalidKey`, `StoreAway`."""
        peppers = await asyncio.to_thread(self._peppers.latest)
        now_ms = self._clock.now_ms()
        session = read_session(token, peppers, now_ms)
        found = None if session is None else await self._store.find(session.kid)
        if session is None or found is None:
            raise InvalidKey
        record, team = found
        secret = next((each for each in record.secrets if each.serial == session.serial), None)
        if secret is None:
            raise InvalidKey
        principal = Principal(team, record, secret.ends_at_ms)
        if not principal.live_at(now_ms):
            raise InvalidKey
        return principal
