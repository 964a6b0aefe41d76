"""Who fills an address: one lease on it for all processes, and those who wait for its end.

The lease lives for seconds and is renewed while it is held, so that a process that dies holds nobody up for longer.
Whoever waits leaves a mark beside it; the end of a lease is published where there is one. A message may be lost, so who
waits also looks again when the lease it saw would have run out.
"""

from __future__ import annotations

import asyncio
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from proxy.adapters.redis.cache_trouble import OddReply, OnTrouble, Operation, Trouble, trouble_of
from proxy.adapters.redis.outcomes import Definite, RedisFailure, Reply
from proxy.adapters.redis.scripts import Script, Scripts, packaged_script

__all__ = ["FILLED_CHANNEL", "LEASE_MS", "FillScripts", "Lease", "Leases", "Waiters"]

FILLED_CHANNEL = "tollgate:filled"
LEASE_MS = 3_000
_RENEWALS = 3
"""Of a lease's life; one may be lost before the lease is."""
_SLACK_SECONDS = 0.02
_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class FillScripts:
    """The five scripts."""

    claim: Script = field(default_factory=lambda: packaged_script("claim"))
    renew: Script = field(default_factory=lambda: packaged_script("claim_renew"))
    wait: Script = field(default_factory=lambda: packaged_script("claim_wait"))
    release: Script = field(default_factory=lambda: packaged_script("claim_release"))
    store: Script = field(default_factory=lambda: packaged_script("store"))

    def all(self) -> tuple[Script, ...]:
        """Each of them, for loading."""
        return self.claim, self.renew, self.wait, self.release, self.store


class Leases:
    """Takes leases, and waits for the end of those that others hold."""

    def __init__(self, scripts: Scripts, on_trouble: OnTrouble, *, lease_ms: int = LEASE_MS) -> None:
        self.scripts = scripts
        self.verbs = FillScripts()
        self.on_trouble = on_trouble
        self.lease_ms = lease_ms
        self.waiters = Waiters()

    async def take(self, place: str, digest: bytes) -> Lease | None:
        """Take the lease on a place; None while another has it. Raises `RedisFailure`, and then holds nothing."""
        lease = Lease(self, place, digest, secrets.token_hex(_TOKEN_BYTES))
        try:
            answer = await self.scripts.run(self.verbs.claim, lease.keys, (lease.token, self.lease_ms))
        except Definite:
            raise
        except BaseException:
            # Whether it was granted nobody knows; who waits shall not wait for the end of its life.
            lease.give_up()
            raise
        if answer == 1:
            lease.renew_later()
            return lease
        if answer != 0:
            raise OddReply
        return None

    async def ended(self, place: str, digest: bytes) -> None:
        """Wait until the lease that is held on a place now has ended. Raises `RedisFailure`."""
        with self.waiters.waiting(digest) as waiter:
            holder: Reply = None
            while not waiter.is_told:
                # After the subscription, so that what ends between a claim and this look is seen here.
                left_ms, token = await self._look(place)
                if not left_ms or (holder is not None and token != holder):
                    return
                holder = token
                await waiter.woken(min(left_ms, self.lease_ms) / 1_000 + _SLACK_SECONDS)

    async def _look(self, place: str) -> tuple[int, Reply]:
        answer = await self.scripts.run(self.verbs.wait, _keys_of(place), (self.lease_ms,))
        match answer:
            case [int(left_ms), token]:
                return left_ms, token
        raise OddReply


class Lease:
    """The right to fill one place, renewed for as long as this object lives and is not done with."""

    __slots__ = ("__weakref__", "_digest", "_leases", "_timer", "keys", "place", "token")

    def __init__(self, leases: Leases, place: str, digest: bytes, token: str) -> None:
        self._leases = leases
        self._digest = digest
        self._timer: asyncio.TimerHandle | None = None
        self.place = place
        self.keys = _keys_of(place)
        self.token = token

    async def store(self, value: bytes, life_ms: int) -> bool:
        """Keep a value at the place and end the lease; False when the lease was lost. Raises `RedisFailure`."""
        verbs, scripts = self._leases.verbs, self._leases.scripts
        args = (self.token, FILLED_CHANNEL, self._digest, value, life_ms)
        return await scripts.run(verbs.store, (*self.keys, self.place), args) == 1

    def end(self) -> None:
        """Renew no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def give_up(self) -> None:
        """End the lease, if it is still ours, and tell who waits; does not wait for the server."""
        self.end()
        args = (self.token, FILLED_CHANNEL, self._digest)
        self._post(self._leases.verbs.release, args, Operation.RELEASE)

    def renew_later(self) -> None:
        """Renew until done with."""
        seconds = self._leases.lease_ms / _RENEWALS / 1_000
        # Nothing else holds it: a caller that was dropped without a word renews no more.
        self._timer = asyncio.get_running_loop().call_later(seconds, _renew, weakref.ref(self))

    def renew(self) -> None:
        """Hold it for another life, if it is still ours."""
        self._post(self._leases.verbs.renew, (self.token, self._leases.lease_ms), Operation.RENEW)

    def _post(self, script: Script, args: tuple[bytes | str | int, ...], operation: Operation) -> None:
        on_trouble = self._leases.on_trouble

        def failed(failure: RedisFailure) -> None:
            on_trouble(operation, trouble_of(failure))

        if not self._leases.scripts.post(script, self.keys, args, failed):
            on_trouble(operation, Trouble.AWAY)


def _renew(ref: weakref.ref[Lease]) -> None:
    lease = ref()
    if lease is not None:
        lease.renew()
        lease.renew_later()


def _keys_of(place: str) -> tuple[str, str]:
    """The lease and the mark of a place."""
    return f"{place}:fill", f"{place}:wait"


class Waiters:
    """Those in this process who wait for the end of a lease, by digest."""

    def __init__(self) -> None:
        self._of: dict[bytes, set[Waiter]] = {}

    def __len__(self) -> int:
        """How many wait."""
        return sum(map(len, self._of.values()))

    @contextmanager
    def waiting(self, digest: bytes) -> Iterator[Waiter]:
        """Be told of a digest within the block."""
        waiter = Waiter()
        self._of.setdefault(digest, set()).add(waiter)
        try:
            yield waiter
        finally:
            others = self._of[digest]
            others.discard(waiter)
            if not others:
                del self._of[digest]

    def tell(self, digest: bytes) -> None:
        """Say that a lease has ended."""
        for waiter in self._of.get(digest, ()):
            waiter.is_told = True
            waiter.wake()

    def wake_all(self) -> None:
        """Have everybody look: messages may have been missed."""
        for waiters in self._of.values():
            for waiter in waiters:
                waiter.wake()


class Waiter:
    """One who waits."""

    __slots__ = ("_wake", "is_told")

    def __init__(self) -> None:
        self._wake = asyncio.Event()
        self.is_told = False
        """Whether a message has come."""

    def wake(self) -> None:
        """Let it look."""
        self._wake.set()

    async def woken(self, seconds: float) -> None:
        """Wait until there is something to look at, or so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
