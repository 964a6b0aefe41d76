"""The calls of one worker that others may join, and how one comes to a seat in them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from proxy.pipeline.exchange import Exchange
from proxy.pipeline.flight import Flight, Landing, Line, Seat, Wish, wake_all, wake_one
from proxy.ports import CacheAddress

__all__ = ["Flights"]


class Flights:
    """The calls of one worker that others may join, by the address of what they fetch, and those that are drained.

    `on_draining` is told how many are drained, whenever that changes, and `on_given_up` why one was stopped that was to
    be: `full` or `deadline`.
    """

    __slots__ = ("_draining", "_on_draining", "_under_way", "on_given_up")

    def __init__(
        self, on_draining: Callable[[int], object] = lambda _: None, on_given_up: Callable[[str], None] = lambda _: None
    ) -> None:
        self._under_way: dict[CacheAddress, Flight] = {}
        self._draining: set[Flight] = set()
        self._on_draining = on_draining
        self.on_given_up = on_given_up

    def __len__(self) -> int:
        """Flights that can be joined, or are about to."""
        return len(self._under_way)

    @property
    def draining(self) -> frozenset[Flight]:
        """Those that went on when their last listener had left."""
        return frozenset(self._draining)

    def drain(self, flight: Flight, most: int) -> bool:
        """Let one go on whose last listener has left, unless so many do already."""
        if flight not in self._draining:
            if len(self._draining) >= most:
                self.on_given_up("full")
                return False
            self._draining.add(flight)
            self._on_draining(len(self._draining))
        flight.drain()
        return True

    async def drained(self) -> None:
        """Wait until none is left of those that are drained."""
        while self._draining:
            await next(iter(self._draining)).news()

    async def board(
        self, exchange: Exchange, address: CacheAddress, room_bytes: int, *, join: bool, patience_ms: int = 0
    ) -> tuple[Flight, Seat]:
        """Find the flight to an address and take a seat; where there is none, the request leads one of its own.

        One whose leader is still being admitted is waited for: should it be refused, one of those who wait leads.
        Without `join` the request leads in any case, and so it does where that leader waits for limits to have room
        and it is not ready to wait as long itself: `patience_ms`.
        """
        until_ns = exchange.queued_ns + patience_ms * 1_000_000
        behind: Line = deque()
        flight = self._under_way.get(address)
        while join and flight is not None and not flight.full:
            if flight.departed:
                wake_all(behind)
                return flight, flight.join(Wish.of(exchange.asked))
            left_ms = (until_ns - exchange.queued_ns) // 1_000_000
            if flight.waits and left_ms <= 0:
                break
            behind = await self._line_up(flight, behind, exchange, left_ms)
            flight = self._under_way.get(address)
        own = Flight(exchange, address, room_bytes, behind)
        if flight is None or flight.full:
            self._under_way[address] = own
        return own, own.join(own.wish)

    def end(self, flight: Flight, landing: Landing) -> None:
        """Land a flight; who comes now starts anew."""
        if flight.address is not None and self._under_way.get(flight.address) is flight:
            del self._under_way[flight.address]
        if flight in self._draining:
            self._draining.remove(flight)
            self._on_draining(len(self._draining))
        flight.land(landing)
        wake_one(flight.line)

    async def _line_up(self, flight: Flight, behind: Line, exchange: Exchange, patience_ms: int) -> Line:
        """Wait until a flight departs or its leader is refused; returns who is behind in the latter case.

        One alone is woken then: were it all of them, a refusal of each would cost the square of their number. Behind a
        leader that waits for limits one waits for `patience_ms` at most, which counts as a wait of its own.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[Line] = loop.create_future()
        flight.line.append(waiter)
        flight.line += behind
        leader_waits, begun = flight.waits, loop.time()
        try:
            async with asyncio.timeout(patience_ms / 1_000 if leader_waits else None):
                return await _called(waiter)
        except TimeoutError:
            return deque()
        finally:
            if leader_waits:
                exchange.queued_ns += int((loop.time() - begun) * 1e9)


async def _called(waiter: asyncio.Future[Line]) -> Line:
    try:
        return await waiter
    except asyncio.CancelledError:
        if waiter.done() and not waiter.cancelled():
            # Its turn had come.
            wake_one(waiter.result())
        raise
