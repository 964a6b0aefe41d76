"""The ledger: every record goes to the spool first, and from there to the database.

What a crash, a full queue or a database that is away can do to an event: nothing before it is spooled, because then
nothing was sent upstream; delay it afterwards. Taking a slice over again changes nothing, so no step needs to know
whether the one before it was finished.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxy.adapters.spool import Segment, SpoolWriter, Stop, discard_empty, locked, read_slice, remove, segments_in
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.core.errors import Overloaded, StoreAway
from proxy.core.event import Dispatch, Outcome, UsageEvent
from proxy.core.pricing import PriceBook, cost_pico_usd
from proxy.core.usage import Usage
from proxy.ports import Clock, Telemetry

__all__ = ["LedgerState", "SpoolLedger", "interrupted"]

_SYNC_SECONDS = 0.05
_SHIP_SECONDS = 0.25
_FIRST_BACKOFF_SECONDS = 0.25
_MAX_BACKOFF_SECONDS = 10.0
_RECOVER_SECONDS = 60.0
"""A writer may die when nobody starts any more: the old server of two, killed in its drain."""
_MAX_UNWRITTEN = 10_000
_BATCH = 1_000
_BREATH_SECONDS = 0.0005
"""After each slice of a segment, for the event loop: to decode one holds the interpreter for a good half of this."""
_DAMAGED = "damaged"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerState:
    """How the ledger is doing."""

    spool_bytes: int
    lag_ms: int
    """Age of the oldest event that is not in the database."""
    taken_over: int
    """Events this process has put into the database."""
    recovered: int
    """Of these, the ones whose worker died between dispatch and settlement."""


def interrupted(dispatch: Dispatch, prices: PriceBook) -> UsageEvent:
    """The event of a request whose worker died: charged with what was reserved, and marked as estimated."""
    usage = Usage(input_tokens=dispatch.reserved_input_tokens, output_tokens=dispatch.reserved_output_tokens)
    # A table that came with another version may not have the row any more; something holds in its place.
    price = prices.by_id(dispatch.price_id)
    if price is None and dispatch.price_id is not None:
        price = prices.price(dispatch.model, dispatch.at_ms)
    return UsageEvent(
        event_id=dispatch.event_id,
        at_ms=dispatch.at_ms,
        request_id=dispatch.request_id,
        team=dispatch.team,
        key_id=dispatch.key_id,
        endpoint=dispatch.endpoint,
        model=dispatch.model,
        upstream=dispatch.upstream,
        # No status: what the client was given died with the worker.
        status=0,
        outcome=Outcome.INTERRUPTED,
        usage=usage,
        cost_pico_usd=cost_pico_usd(price, usage, dispatch.service_tier) if price else 0,
        price_id=price.price_id if price else dispatch.price_id,
        estimated=True,
    )


@dataclass(slots=True)
class _Recovered:
    """What was found in the directories of dead writers."""

    taken_over: int = 0
    interrupted: int = 0
    left_bytes: int = 0
    away: StoreAway | None = None


class _Progress:
    """How far one writer's segments have been taken over, and which of its requests have no event yet."""

    def __init__(self, store: SqlLedgerStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._offsets: dict[str, int] = {}
        self._finished: set[str] = set()
        self.open: dict[str, tuple[str, Dispatch]] = {}
        """By event id: the segment of the begin record, and the record."""
        self.damaged: set[str] = set()

    def take_over(self, segment: Segment, known: int = 0) -> int:
        """Take over what the segment holds by now; returns how many events were new.

        `known`: how far it has been taken over before, by another. Raises `StoreAway`, `OSError`.
        """
        name = segment.name
        if name in self._finished:
            return 0
        new = 0
        stop = Stop.MORE
        while stop is Stop.MORE:
            ends: list[UsageEvent] = []
            offset = self._offsets.get(name, 0)
            while stop is Stop.MORE and len(ends) < _BATCH:
                part = read_slice(segment, offset)
                for begin in part.begins:
                    self.open[begin.event_id] = name, begin
                ends += part.ends
                offset, stop = part.offset, part.stop
                # The event loop may be waiting for this thread to let go of the interpreter.
                time.sleep(_BREATH_SECONDS)
            if ends and offset > known:
                new += self._store.take_over(ends, name, offset)
            for event in ends:
                self.open.pop(event.event_id, None)
            self._offsets[name] = offset
        if stop is Stop.DAMAGED:
            self.damaged.add(name)
            self._telemetry.store_failed("spool", "read")
            _log.error("spool segment %s is damaged at byte %d", name, self._offsets[name])
        if segment.closed or stop is Stop.DAMAGED:
            self._finished.add(name)
        return new

    def spent(self, segments: Sequence[Segment]) -> list[Segment]:
        """The segments nobody needs any more: closed, taken over, and every request begun in them has its event."""
        needed = {name for name, _ in self.open.values()}
        return [each for each in segments if each.closed and each.name in self._finished and each.name not in needed]


class SpoolLedger:
    """The ledger of one worker; implements `ports.Ledger`.

    `begin` and `end` belong to the event loop's thread. `run` brings events to the database until it is cancelled,
    then `close` brings the rest. `segment_bytes`, `quota_bytes`, `strict`: see `SpoolWriter`.
    """

    def __init__(
        self,
        spool_dir: Path,
        store: SqlLedgerStore,
        prices: PriceBook,
        telemetry: Telemetry,
        clock: Clock,
        *,
        segment_bytes: int = 16 << 20,
        quota_bytes: int = 1 << 30,
        strict: bool = False,
        recover_seconds: float = _RECOVER_SECONDS,
    ) -> None:
        """`recover_seconds`: how often `run` looks for what dead writers have left, beside its start."""
        self._spool_dir = spool_dir
        self._recover_seconds = recover_seconds
        self._store = store
        self._prices = prices
        self._telemetry = telemetry
        self._clock = clock
        self._writer = SpoolWriter(spool_dir, segment_bytes=segment_bytes, quota_bytes=quota_bytes, strict=strict)
        self._progress = _Progress(store, telemetry)
        # A cancelled wait leaves its thread running: the next one waits for it here.
        self._at_work = threading.Lock()
        self._unwritten: deque[UsageEvent] = deque(maxlen=_MAX_UNWRITTEN)
        self._written = asyncio.Event()
        self._ended = asyncio.Event()
        self._waiting_since_ns: int | None = None
        self._on_its_way_since_ns: int | None = None
        self._taken_over = 0
        self._recovered = 0
        self._closing = False

    def begin(self, dispatch: Dispatch) -> None:
        """Append the begin record. Raises `Overloaded`: nothing may then be sent upstream."""
        if self._closing:
            raise Overloaded("shutting down")
        self._writer.begin(dispatch)
        self._written.set()

    def end(self, event: UsageEvent) -> None:
        """Append the event; never raises."""
        try:
            self._writer.end(event)
        except OSError:
            # Kept until the disk takes it; should the process end before that, the begin record stands for it.
            self._unwritten.append(event)
            self._telemetry.store_failed("spool", "end")
        except Exception:  # noqa: BLE001 - whatever it is, the answer has been served
            # The answer has been served: whatever is wrong with its event must not become an error of the request.
            self._telemetry.store_failed("spool", "end")
            _log.exception("event %s has no form in the spool", event.event_id)
        if self._waiting_since_ns is None:
            self._waiting_since_ns = self._clock.monotonic_ns()
        self._written.set()
        self._ended.set()

    def state(self) -> LedgerState:
        """How the ledger is doing, for metrics."""
        since = self._waiting_since_ns if self._on_its_way_since_ns is None else self._on_its_way_since_ns
        return LedgerState(
            spool_bytes=self._writer.used_bytes + self._writer.foreign_bytes,
            lag_ms=0 if since is None else (self._clock.monotonic_ns() - since) // 1_000_000,
            taken_over=self._taken_over,
            recovered=self._recovered,
        )

    async def run(self) -> None:
        """Sync, take over and recover until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sync_forever())
            tasks.create_task(self._ship_forever())
            tasks.create_task(self._recover_forever())

    async def ship_once(self) -> int:
        """Bring what has been spooled so far to the database; returns how many events were new. Raises `StoreAway`."""
        self._write_again()
        # Until it has arrived it is not there: budgets would take the ledger's word without it.
        self._on_its_way_since_ns, self._waiting_since_ns = self._waiting_since_ns, None
        segments = self._writer.segments()
        try:
            new = await asyncio.to_thread(self._ship, segments)
        except BaseException:
            # A cancellation too: what was not shipped goes on waiting from when it began to.
            self._waiting_since_ns = self._on_its_way_since_ns
            raise
        finally:
            self._on_its_way_since_ns = None
        self._taken_over += new
        spent = self._progress.spent(segments)
        for segment in spent:
            self._writer.release(segment)
        if spent:
            await asyncio.to_thread(self._delete, spent)
        return new

    async def recover(self) -> int:
        """Bring over what dead writers have left; returns how many requests were found interrupted.

        Raises `StoreAway`, after having tried each.
        """
        recovered = await asyncio.to_thread(self._recover)
        self._count(recovered)
        self._writer.foreign_bytes = recovered.left_bytes
        if recovered.away is not None:
            raise recovered.away
        return recovered.interrupted

    async def close(self) -> None:
        """Bring everything to the database and sync; what cannot be brought is left for the next start. Never raises.

        A request that has begun and has no event is taken for interrupted.
        """
        self._closing = True
        self._write_again()
        try:
            self._count(await asyncio.to_thread(self._close))
        except (StoreAway, OSError) as error:
            self._telemetry.store_failed("ledger", "close")
            _log.warning(
                "%d bytes of the usage spool wait for the next start: %s", self._writer.used_bytes, _reason(error)
            )

    async def _sync_forever(self) -> None:
        while True:
            await self._written.wait()
            await asyncio.sleep(_SYNC_SECONDS)
            self._written.clear()
            try:
                await asyncio.to_thread(self._writer.sync)
            except OSError as error:
                self._telemetry.store_failed("spool", "sync")
                _log.error("the usage spool could not be synced: %s", _reason(error))

    async def _ship_forever(self) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            await self._ended.wait()
            await asyncio.sleep(_SHIP_SECONDS)
            self._ended.clear()
            try:
                await self.ship_once()
            except (StoreAway, OSError) as error:
                self._telemetry.store_failed("ledger", "ship")
                _log.warning("events wait in the spool: %s", _reason(error))
                self._ended.set()
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            else:
                backoff_seconds = _FIRST_BACKOFF_SECONDS

    async def _recover_forever(self) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                await self.recover()
            except (StoreAway, OSError) as error:
                self._telemetry.store_failed("ledger", "recover")
                _log.warning("recovery of the usage spool waits: %s", _reason(error))
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(2 * backoff_seconds, _MAX_BACKOFF_SECONDS)
            else:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
                await asyncio.sleep(self._recover_seconds)

    def _count(self, recovered: _Recovered) -> None:
        self._taken_over += recovered.taken_over + recovered.interrupted
        self._recovered += recovered.interrupted

    def _write_again(self) -> None:
        while self._unwritten:
            try:
                self._writer.end(self._unwritten[0])
            except OSError:
                return
            self._unwritten.popleft()

    def _ship(self, segments: Sequence[Segment]) -> int:
        with self._at_work:
            return sum(self._progress.take_over(segment) for segment in segments)

    def _recover(self) -> _Recovered:
        recovered = _Recovered()
        for directory in sorted(self._spool_dir.iterdir()):
            if directory == self._writer.directory or directory.name.startswith(".") or directory.name == _DAMAGED:
                continue
            left_bytes = 0
            try:
                with locked(directory) as dead:
                    if dead:
                        left_bytes = sum(segment.size_bytes for segment in segments_in(directory))
                        self._finish(directory, recovered)
                    else:
                        # Nothing in it: whoever removed it died before the end of that.
                        discard_empty(directory)
            except StoreAway as error:
                recovered.left_bytes += left_bytes
                recovered.away = error
            except OSError as error:
                recovered.left_bytes += left_bytes
                self._telemetry.store_failed("spool", "recover")
                _log.warning("spool directory %s cannot be recovered: %s", directory.name, _reason(error))
        return recovered

    def _finish(self, directory: Path, recovered: _Recovered) -> None:
        """Take over everything a dead writer has left, make events of what it did not finish, delete it."""
        progress = _Progress(self._store, self._telemetry)
        segments = segments_in(directory)
        for segment in segments:
            recovered.taken_over += progress.take_over(segment, known=self._store.offset(segment.name))
        orphans = [interrupted(dispatch, self._prices) for _, dispatch in progress.open.values()]
        found = 0
        for start in range(0, len(orphans), _BATCH):
            last = segments[-1]
            found += self._store.take_over(orphans[start : start + _BATCH], last.name, last.size_bytes)
        recovered.interrupted += found
        if found:
            _log.warning("%d requests of writer %s were interrupted; charged as reserved", found, directory.name)
        self._store.forget(directory.name)
        self._set_aside(segment for segment in segments if segment.name in progress.damaged)
        remove(directory)

    def _close(self) -> _Recovered:
        recovered = _Recovered()
        with self._at_work:
            self._writer.close()
            with locked(self._writer.directory) as dead:
                if dead:
                    self._finish(self._writer.directory, recovered)
        return recovered

    def _delete(self, segments: Sequence[Segment]) -> None:
        self._set_aside(segment for segment in segments if segment.name in self._progress.damaged)
        for segment in segments:
            segment.path.unlink(missing_ok=True)

    def _set_aside(self, damaged: Iterable[Segment]) -> None:
        """Keep a segment that could not be read to its end, for a person to look at."""
        for segment in damaged:
            directory = self._spool_dir / _DAMAGED
            directory.mkdir(mode=0o700, exist_ok=True)
            segment.path.rename(directory / segment.name.replace("/", "-"))


def _reason(error: Exception) -> object:
    """What the database or the disk said, without the statement."""
    return getattr(error.__cause__, "orig", None) or error.__cause__ or error
