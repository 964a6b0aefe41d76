"""What the pipeline needs of the world, as Protocols.

Each docstring says what happens when the thing behind the port is away. The adapters that keep these promises are
chosen in `app.py` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from proxy.core.bucket import Cost, Decision, Reservation, Scope, Standing
from proxy.core.budget import Span, Spend
from proxy.core.count import Said
from proxy.core.discreet import Discreet
from proxy.core.event import Dispatch, UsageEvent
from proxy.core.principal import KeyRecord, KeySecret, Team
from proxy.core.record import RequestRecord
from proxy.core.replay import Form
from proxy.ports_upstream import (
    Body,
    Holding,
    Patch,
    QueueWatch,
    Turn,
    Upstream,
    UpstreamAnswer,
    UpstreamRequest,
)

__all__ = [
    "USES_EVERY_MS",
    "Body",
    "Cache",
    "CacheAddress",
    "CachedAnswer",
    "Clock",
    "Downstream",
    "Fill",
    "Holding",
    "KeyStore",
    "Ledger",
    "Limiter",
    "Patch",
    "QueueWatch",
    "Sender",
    "Spawn",
    "SpendLedger",
    "Spent",
    "Telemetry",
    "Tokenizer",
    "Turn",
    "Upstream",
    "UpstreamAnswer",
    "UpstreamRequest",
]

Spawn = Callable[[Coroutine[Any, Any, None]], None]
"""Runs a coroutine in the application's task group: it outlives the request and is awaited at shutdown."""


class Clock(Protocol):
    """The time; cannot be away."""

    def now_ms(self) -> int:
        """Unix time in milliseconds."""
        ...

    def monotonic_ns(self) -> int:
        """A clock for durations, in nanoseconds."""
        ...


USES_EVERY_MS = 60_000
"""How exactly it is known when a key was last used: no key is written for it more often."""


@dataclass(frozen=True, slots=True)
class ChangesSeen:
    """How far the changes of keys and teams have been looked through."""

    revision: int
    serial: int
    """Of the last line of the audit log that tells of keys or teams."""
    ended: frozenset[str] | None
    """Ids of keys of which something was ended since the look before; None: nobody can say which."""
    changed: frozenset[str] | None = None
    """Ids of keys, and names of teams, that are another than at the look before; None: any may be."""
    teams: tuple[str, ...] = ()
    """Names of teams that were made since the look before; at the first look, the newest, so many at most."""
    written_ms: int | None = None
    """When the line of `serial` was written, unix milliseconds: while it stands there, it is the same database."""


class KeyStore(Protocol):
    """Issued keys and their teams, as the request path sees them.

    Away: `StoreAway`; the authenticator goes on with principals it has for a bounded time.
    """

    async def find(self, kid: str) -> tuple[KeyRecord, Team] | None:
        """The key with this id and its team, whatever its state, or None."""
        ...

    async def find_imported(self, hashes: Sequence[bytes]) -> tuple[KeyRecord, Team] | None:
        """The key made elsewhere that has one of these keyed hashes, and its team, whatever their state, or None."""
        ...

    async def imported_under(self) -> frozenset[int]:
        """Versions of the pepper that keys made elsewhere are hashed under; empty when there is no such key."""
        ...

    async def revision(self) -> int:
        """A number that grows with every change of a key or team, by whatever process."""
        ...

    async def changes(self, seen: ChangesSeen | None) -> ChangesSeen:
        """What has changed since `seen`, which is returned when nothing has; None: nothing was seen yet."""
        ...

    async def note_uses(self, used_at_ms: Mapping[str, int]) -> None:
        """Keep when keys were last used, by id, in unix milliseconds; less than `USES_EVERY_MS` after the last is left.

        Is no change, and moves no revision on.
        """
        ...

    async def add_hash(self, kid: str, known: KeySecret, pepper_id: int, secret_hash: bytes) -> None:
        """Have a secret that is known under one pepper be known under another as well; is no change either."""
        ...


@dataclass(frozen=True, slots=True)
class Spent:
    """What the ledger has of one span: an `core.budget.Account` as it begins."""

    base_nano_usd: int
    """Of requests admitted before the boundary."""
    boundary: int
    """A minute, counted from the epoch."""
    minutes: Mapping[int, int]
    """Of requests admitted since, by minute: what has reached the ledger."""


class SpendLedger(Protocol):
    """Reads what was spent out of the ledger. Away: `StoreAway`."""

    async def spent(self, team: str, scope: str, span: Span, boundary: int) -> Spent:
        """What a team (`team`) or one of its keys (`key:<kid>`) has spent in a span."""
        ...


class Limiter(Protocol):
    """Token buckets, one per (team, scope).

    Away: the adapter's policy decides and counts it; no method raises for it except `reserve` (`StoreAway`) under the
    policy `closed`.
    """

    async def reserve(self, team: str, scopes: Sequence[Scope], cost: Cost, spend: Spend | None = None) -> Decision:
        """Charge `cost` to every scope and `spend` to every budget, or nothing to any; scopes[0] is the team's own.

        A reservation of at least one request also takes a place in each scope with a `max_parallel`. An account of a
        budget that is not there yet is made from the ledger first; where the ledger is away, a budget that refuses
        raises `StoreAway`, and one that only warns is passed over and counted.
        """
        ...

    def settle(self, reservation: Reservation, actual: Cost, spent_nano_usd: int = 0) -> None:
        """Put `actual` in the place of the reserved cost: a debt for more, a refund by the V rule for less.

        `spent_nano_usd` takes the place of what was reserved of budgets, in the span and minute that were charged.

        Gives the places back, which is all it does where `actual` is what was reserved. Best effort, once per
        reservation, does not wait: a lost settlement over-charges and decays, and its places end with their lease.
        """
        ...

    def charge(self, team: str, scopes: Sequence[Scope], cost: Cost) -> None:
        """Take `cost` without asking; the buckets may go into debt. Best effort, does not wait."""
        ...

    async def peek(self, team: str, scopes: Sequence[Scope]) -> tuple[Standing, ...]:
        """Where each scope stands now; writes nothing."""
        ...


_BESIDE_THE_TEXT_BYTES = 1_024
"""Of an answer in memory: its objects, its address and its place in a dictionary; measured on CPython 3.11."""


class CachedAnswer(Discreet, frozen=True, gc=False):
    """A complete answer as it is kept.

    The body of a plain one is what upstream sent, byte for byte, or what its stream told; it answers requests in
    either form. A streamed one is upstream's stream, kept only where it tells what a plain answer has no place for.
    """

    hidden = frozenset({"body"})

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    model: str
    stored_at_ms: int
    ttl_ms: int
    input_tokens: int
    output_tokens: int
    cost_pico_usd: int
    """What the answer cost when it was made: what a hit saves."""
    form: Form = Form.PLAIN

    @property
    def size_bytes(self) -> int:
        """What it weighs in a store bounded in bytes."""
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers) + _BESIDE_THE_TEXT_BYTES


class CacheAddress(Discreet, frozen=True, gc=False):
    """Where one team's answer to one request is kept. Cannot be made without a team."""

    hidden = frozenset({"secret", "digest"})

    team: str
    secret: bytes
    """The team's own: what lies outside this process is sealed under a key derived from it. A new one forgets all."""
    digest: bytes
    """32 bytes of `core.fingerprint`; never shown, for it would let a stranger ask what was asked."""


class Fill(Protocol):
    """The right to fill one address, held by one caller of all processes until it stores or lets go."""

    async def store(self, answer: CachedAnswer) -> bool:
        """Keep the answer and give the right back; False when it was not kept, the right having been lost included."""
        ...

    async def release(self) -> None:
        """Give the right back with nothing kept. Idempotent, and nothing after `store`."""
        ...


class Cache(Protocol):
    """Complete answers by address.

    Away, slow, full or holding garbage: `get` returns None, `claim` a right that keeps nothing, `filled` returns at
    once; all count it, none raises.
    """

    async def get(self, address: CacheAddress) -> CachedAnswer | None:
        """The live entry at this address."""
        ...

    async def claim(self, address: CacheAddress) -> Fill | None:
        """The right to fill this address, or None while another process has it."""
        ...

    async def filled(self, address: CacheAddress, timeout_seconds: float) -> None:
        """Wait until whoever fills this address has stored or let go, or has died, or the time is up."""
        ...


class Ledger(Protocol):
    """One event for every dispatched request, whatever happens.

    A record that was appended survives `kill -9`. Away or at its disk quota: `begin` raises `Overloaded`, so that
    nothing is sent upstream unmetered; `end` never raises (the begin record is recovered as an estimated event).
    """

    def begin(self, dispatch: Dispatch) -> None:
        """Append the begin record; returns once it is written, does not wait for the disk."""
        ...

    def end(self, event: UsageEvent) -> None:
        """Append the event; for a dispatched request its id is the dispatch's."""
        ...


class Telemetry(Protocol):
    """Counters and the request log. Never raises, never waits."""

    def started(self) -> None:
        """Note that a request has come in."""
        ...

    def finished(self, record: RequestRecord) -> None:
        """Count and log a request; called exactly once for each `started`."""
        ...

    def retried(self, upstream: str, reason: str) -> None:
        """Count a call that is about to be made again."""
        ...

    def upstream_failed(self, upstream: str, kind: str) -> None:
        """Count a call that gave no usable answer; `kind` is an `UpstreamFault` or `status_<code>`."""
        ...

    def retry_refused(self, upstream: str) -> None:
        """Count a call that was not made again, for the sake of the upstream's retry budget."""
        ...

    def key_refused(self, upstream: str, key: int, reason: str) -> None:
        """Count a call that was refused to one of our keys, by its number: `refused`, `quota` or `rate`."""
        ...

    def upstream_remaining(self, upstream: str, key: int, dimension: str, remaining: int) -> None:
        """Note what is left of an upstream's own limit, `requests` or `tokens`, for one of our keys, by its number."""
        ...

    def store_failed(self, store: str, operation: str) -> None:
        """Count an operation a store did not carry out."""
        ...


class Tokenizer(Protocol):
    """Counts tokens as the models do; for one event loop.

    Away (no vocabulary can be loaded) or overrun: `count` is None, `count_later` tells None, and who asked goes by
    characters.
    """

    def count(self, encoding: str, said: Sequence[Said]) -> tuple[int, ...] | None:
        """Tokens of each, at once; None where that would take long: the texts are, or nothing is loaded yet."""
        ...

    def count_later(self, encoding: str, said: Sequence[Said], then: Callable[[tuple[int, ...] | None], None]) -> None:
        """Count in a thread, and call `then` on this one, exactly once."""
        ...

    async def close(self) -> None:
        """Finish what is being counted, for a moment; every `then` has been called when it returns."""
        ...


class Downstream(Protocol):
    """The client's side of one exchange.

    Gone: every method but `abort` raises `ConnectionResetError`, or the task is cancelled.
    """

    async def receive(self) -> bytes:
        """Read the request's body, decompressed. Raises `BodyTooLarge`, `InvalidRequest`."""
        ...

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send the head of a streamed answer."""
        ...

    async def write(self, data: bytes) -> None:
        """Send bytes of a streamed answer at once; waits while the client does not read."""
        ...

    async def close(self) -> None:
        """End a streamed answer as complete."""
        ...

    def abort(self) -> None:
        """Break the connection, so that what was sent cannot pass for a whole answer."""
        ...


class Sender(Downstream, Protocol):
    """A client whose request's body is still to be read."""

    def stream(self, max_bytes: int) -> Body:
        """The body as it comes and as it is, compressed or not: once, and no faster than it is taken.

        One whose length is known to be over `max_bytes` raises `BodyTooLarge` here, any other where it exceeds it.
        """
        ...
