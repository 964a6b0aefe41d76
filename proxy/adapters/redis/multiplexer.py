"""All of a process's commands to one primary over one connection, which is kept up in the background.

Nothing is ever sent twice: what failed is told apart as definite or indefinite (`outcomes.py`) and the caller decides.
While there is no connection, or the breaker is open, commands fail at once and definitely.

Connecting, AUTH, SELECT, role checks, Sentinel and Cluster discovery are done on the same protocol as the commands
(`connect.py`) rather than by redis-py: its clients resend a command whose reply was lost, and a connection of its kind
cannot be handed over to another reader. redis-py reads URLs and computes hash slots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from proxy.adapters.redis.absence import NEVER_HEARD, Absences
from proxy.adapters.redis.address import Address
from proxy.adapters.redis.connect import connect
from proxy.adapters.redis.outcomes import ConnectionLost, ErrorReply, NeverSent, RedisFailure, Reply, TimedOut, Why
from proxy.adapters.redis.wire import Argument, Bounds, Wire
from proxy.core.breaker import Breaker, BreakerPolicy, BreakerState
from proxy.core.share import Away
from proxy.ports import Spawn

__all__ = ["Counts", "Locate", "Multiplexer", "MultiplexerOptions", "OnFailure"]

Locate = Callable[[], Awaitable[Address]]
"""Where the primary is now; raises `RedisFailure` when nobody knows."""
OnFailure = Callable[[RedisFailure], None]

_UNFIT = frozenset({"BUSY", "LOADING"})
"""Answers of a server that is there and serves nothing: failures for the breaker."""
_DEMOTED = "READONLY"
"""Answer of a replica that was the primary when we connected."""


@dataclass(frozen=True, slots=True)
class MultiplexerOptions:
    """Bounds and times of one multiplexer."""

    bounds: Bounds = field(default_factory=Bounds)
    breaker: BreakerPolicy = field(default_factory=BreakerPolicy)
    connect_seconds: float = 2.0
    first_backoff_seconds: float = 0.05
    max_backoff_seconds: float = 2.0
    primary_only: bool = False
    """Refuse to connect to a replica."""

    @classmethod
    def for_one_look(cls, seconds: float) -> Self:
        """Of who asks once and has so long for all of it.

        One answer may take half of that, as nobody waits behind, and so may a connection: then another node is asked.
        """
        return cls(Bounds(deadline_seconds=seconds / 2, silence_seconds=seconds), connect_seconds=seconds / 2)


@dataclass(slots=True)
class Counts:
    """What has happened so far."""

    posted: int = 0
    """Posts that were answered without an error."""
    posts_refused: int = 0
    """Posts that were answered with an error, or never written."""
    posts_lost: int = 0
    """Posts whose fate is unknown."""
    timed_out: int = 0
    """Commands that passed their deadline."""
    connections: int = 0
    disconnects: int = 0


class Multiplexer:
    """One primary. `call`, `execute` and `post` from the event loop only; `open` before, `close` after."""

    def __init__(
        self,
        locate: Locate,
        spawn: Spawn,
        options: MultiplexerOptions | None = None,
        *,
        on_down: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`on_down` is told when a connection that was up is lost; `jitter` is uniform in [0, 1)."""
        self._locate = locate
        self._spawn = spawn
        self._options = options or MultiplexerOptions()
        self._on_down = on_down
        self._jitter = jitter
        self._breaker = Breaker(self._options.breaker)
        self._wire: Wire | None = None
        self._admitting: Wire | None = None  # the wire, while the breaker is closed: one look for each command
        self._reconnector: asyncio.Task[object] | None = None
        self._prober: asyncio.TimerHandle | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._create_future = self._loop.create_future
        self._connected = asyncio.Event()
        self.address: Address | None = None
        """Where it is, or was last, connected to."""
        self.counts = Counts()
        self._absences = Absences()

    def __repr__(self) -> str:
        return f"Multiplexer({self.address}, {self._why_not() or 'up'}, in flight {len(self._wire or ())})"

    # Commands

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Queue a command; its reply, or how it failed, is in the future, which may be cancelled at any time.

        Raises `NeverSent` at once when it cannot be written.
        """
        wire = self._admitting
        if wire is None:
            raise self._refusal()
        future: asyncio.Future[Reply] = self._create_future()
        wire.send(future, args)
        return future

    async def execute(self, *args: Argument) -> Reply:
        """Send a command and wait for its reply. Raises `RedisFailure`."""
        return await self.call(*args)

    def post(self, *args: Argument, on_failure: OnFailure | None = None) -> bool:
        """Queue a command whose reply nobody waits for; False when it was not even queued.

        How it went is in `counts`; `on_failure` is told when it was queued and failed.
        """
        wire = self._admitting
        if wire is not None:
            try:
                wire.send(_Post(self, on_failure), args)
            except NeverSent:
                pass
            else:
                return True
        self.counts.posts_refused += 1
        return False

    @property
    def is_up(self) -> bool:
        """Whether a command would be written now."""
        return self._admitting is not None

    @property
    def away(self) -> Away | None:
        """Its latest absence, as long as that matters."""
        return self._absences.latest(self._loop.time())

    @property
    def breaker_state(self) -> BreakerState:
        """Where the breaker stands."""
        return self._breaker.state

    # Life

    async def open(self) -> None:
        """Connect. Raises what the first attempt ends in, and goes on trying in the background all the same."""
        began_at = self._loop.time()
        try:
            await self._connect()
        except RedisFailure:
            self._absences.missed(NEVER_HEARD, began_at, self._loop.time())
            self._reconnect_later()
            raise

    async def open_later(self) -> None:
        """Connect, however often it takes; returns after the first attempt."""
        with suppress(RedisFailure):
            await self.open()

    async def connected(self, seconds: float) -> None:
        """Wait for a connection, at most so long. Raises `NeverSent`."""
        try:
            async with asyncio.timeout(seconds):
                await self._connected.wait()
        except TimeoutError:
            raise self._refusal() from None

    def leave(self) -> None:
        """Take nothing new, hang up after the last answer due, and look anew for the primary."""
        self._admitting = None
        if self._wire is not None:
            self._wire.retire()

    async def close(self) -> None:
        """Take nothing new, wait for the answers still due as long as a command may take, and hang up. Idempotent."""
        self._closed = True
        self._admitting = None
        if self._prober is not None:
            self._prober.cancel()
        if self._reconnector is not None:
            self._reconnector.cancel()
            await asyncio.wait([self._reconnector])
        if (wire := self._wire) is not None:
            wire.retire()
            try:
                async with asyncio.timeout(self._options.bounds.deadline_seconds):
                    await wire.gone.wait()
            except TimeoutError:
                wire.abort()
                await wire.gone.wait()

    # What the wire tells (`wire.Owner`)

    def answered(self, wire: Wire) -> None:
        """Note that the server is alive."""
        if self._absences.is_on and wire is self._wire:
            self._absences.heard(self._loop.time())
        # A server that takes our introduction and nothing else is not: only wires in service count.
        if self._breaker.failures and self._breaker.state is BreakerState.CLOSED and wire is self._wire:
            self._breaker.succeeded()

    def refused(self, wire: Wire, reply: ErrorReply) -> None:
        """Leave a server that is no primary any more; count one that serves nothing."""
        if wire is not self._wire:
            return
        if reply.code in _UNFIT:
            self._absences.missed(NEVER_HEARD, self._loop.time(), self._loop.time())
            self._fail()
        elif reply.code == _DEMOTED:
            self.leave()

    def overdue(self, wire: Wire, commands: int) -> None:
        """Count a stall: once, however many commands were caught in it."""
        if wire is self._wire:
            self.counts.timed_out += commands
            now = self._loop.time()
            self._absences.missed(wire.heard_at, now - wire.deadline_seconds, now)
            self._fail()

    def lost(self, wire: Wire) -> None:
        """Connect anew."""
        if wire is not self._wire:
            return
        self._wire = self._admitting = None
        self._connected.clear()
        self.counts.disconnects += 1
        if not self._closed:
            self._absences.missed(wire.heard_at, self._loop.time(), self._loop.time())
            self._fail()
            self._reconnect_later()
            self._on_down()

    # The connection

    async def _connect(self) -> None:
        options = self._options
        address = await self._locate()
        wire = await connect(
            address,
            lambda: Wire(self, options.bounds, self._loop),
            primary_only=options.primary_only,
            seconds=options.connect_seconds,
        )
        if self._closed or wire.is_lost:
            wire.abort()
            raise NeverSent(Why.CLOSED if self._closed else Why.AWAY, str(address))
        self.address = address
        self.counts.connections += 1
        self._wire = wire
        self._connected.set()
        if self._breaker.state is BreakerState.CLOSED:
            self._admitting = wire
        else:
            self._probe_later()

    def _reconnect_later(self) -> None:
        if not self._closed and self._reconnector is None:
            self._spawn(self._reconnect())

    async def _reconnect(self) -> None:
        self._reconnector = asyncio.current_task()
        attempts = 0
        try:
            while not self._closed and self._wire is None:
                ceiling = min(self._options.first_backoff_seconds * 2.0**attempts, self._options.max_backoff_seconds)
                # At least half: clients that lost one server together come back apart, and none at once.
                await asyncio.sleep(ceiling * (1 + self._jitter()) / 2)
                attempts = min(attempts + 1, 16)
                began_at = self._loop.time()
                try:
                    await self._connect()
                except RedisFailure:
                    self._absences.missed(NEVER_HEARD, began_at, self._loop.time())
        finally:
            self._reconnector = None

    # The breaker

    def _now_ms(self) -> int:
        return int(self._loop.time() * 1_000)

    def _fail(self) -> None:
        before = self._breaker.state
        self._breaker.failed(self._now_ms())
        if self._breaker.state is BreakerState.OPEN and before is not BreakerState.OPEN:
            self._admitting = None
            self._probe_later()

    def _probe_later(self) -> None:
        if self._prober is not None:
            self._prober.cancel()
        wait_ms = max(1, self._breaker.until_ms - self._now_ms())
        self._prober = self._loop.call_later(wait_ms / 1_000, self._probe)

    def _probe(self) -> None:
        self._prober = None
        # Without a connection there is nothing to ask; the next connection asks for the next probe.
        if self._wire is None or self._breaker.state is BreakerState.CLOSED:
            return
        if not self._breaker.admits(self._now_ms()):
            self._probe_later()
            return
        probe = self._create_future()
        probe.add_done_callback(self._probed)
        try:
            self._wire.send(probe, ("PING",))
        except NeverSent as failure:
            probe.set_exception(failure)

    def _probed(self, probe: asyncio.Future[Reply]) -> None:
        error = None if probe.cancelled() else probe.exception()
        if self._breaker.state is not BreakerState.HALF_OPEN:
            return
        if error is None or (isinstance(error, ErrorReply) and error.code not in _UNFIT):
            self._breaker.succeeded()
            if not self._closed and self._wire is not None:
                self._admitting = self._wire
        else:
            self._fail()

    def _why_not(self) -> Why | None:
        if self._closed:
            return Why.CLOSED
        if self._wire is None:
            return Why.AWAY
        return Why.RESTING if self._admitting is None else None

    def _refusal(self) -> NeverSent:
        return NeverSent(self._why_not() or Why.AWAY, str(self.address or ""))


class _Post:
    """The slot of a command nobody waits for."""

    __slots__ = ("_done", "_on_failure", "_owner")

    def __init__(self, owner: Multiplexer, on_failure: OnFailure | None) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._done = False

    def done(self) -> bool:
        """Whether it is counted."""
        return self._done

    def set_result(self, _result: object, /) -> None:
        """Count a success."""
        self._done = True
        self._owner.counts.posted += 1

    def set_exception(self, exception: RedisFailure, /) -> None:
        """Count a failure and pass it on, in a turn of its own."""
        self._done = True
        if isinstance(exception, TimedOut | ConnectionLost):
            self._owner.counts.posts_lost += 1
        else:
            self._owner.counts.posts_refused += 1
        if self._on_failure is not None:
            self._owner._loop.call_soon(self._on_failure, exception)  # noqa: SLF001 - two halves of one thing
