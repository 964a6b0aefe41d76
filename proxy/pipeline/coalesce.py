"""What is asked for several times at once goes upstream once.

The first to ask leads: it is admitted in full, and its call runs in a task of its own, which it may leave like any
other listener. Who comes while the call runs follows: one request, no tokens. When nobody listens any more the call
ends, or is drained: read to its end for the account and the cache. So that it can be, a request that nobody may join
travels in the same way, apart.

Where another process is making the call already the leader, too, is admitted as one who follows, and in full only once
that has brought nothing: tokens given back while others hold some of the same bucket come back in part.
"""

from __future__ import annotations

from functools import partial

from msgspec.structs import replace

from proxy.core.errors import Overloaded, TollgateError
from proxy.core.fingerprint import EXCLUDED_MEMBERS
from proxy.core.record import CacheResult
from proxy.pipeline.admit import admit, patience_ms
from proxy.pipeline.call import call
from proxy.pipeline.drain import give_up, goes_on, report_if_left
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.flight import Flight, Landing, Seat
from proxy.pipeline.keep import stream_room_bytes, tell
from proxy.pipeline.keep_alive import KeepAlive
from proxy.pipeline.lookup import find, too_old, wants_new
from proxy.pipeline.own_headers import own_headers
from proxy.pipeline.relay import replay
from proxy.pipeline.services import Services
from proxy.pipeline.settle import settle_broken, settle_collapsed, settle_hit, step_back
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import CacheAddress, CachedAnswer, Downstream

__all__ = ["travel_apart", "travel_together"]

_MOST_FOLLOWED = 3
"""Flights that may leave a follower without an answer; after them it goes alone. One for each form there is."""
_MOST_WAITS = 8
"""Fills of other processes that are waited for, however short each was."""


async def travel_together(exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Admit and answer a request whose answer may be kept and was not found. Raises as `admit` and `call` do."""
    address = exchange.address
    if address is None:
        raise LookupError("it has no address to meet others at")
    followed = 0
    while True:
        # One that wants a new answer takes none that was begun before it asked.
        join = followed < _MOST_FOLLOWED and not wants_new(exchange.wishes)
        room_bytes = stream_room_bytes(services.policy)
        patience = patience_ms(exchange, services)
        flight, seat = await services.flights.board(exchange, address, room_bytes, join=join, patience_ms=patience)
        try:
            if flight.leader is exchange:
                return await _lead(flight, seat, client, services)
            reply = await _follow(flight, seat, exchange, client, services)
        finally:
            _leave(flight, seat, exchange, services)
        if reply is not None:
            return reply
        followed += 1


async def travel_apart(exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Admit and answer a request whose answer is nobody else's, by a call that may outlive its client."""
    flight = Flight(exchange, None, 0)
    seat = flight.join(flight.wish)
    try:
        return await _lead(flight, seat, client, services)
    finally:
        _leave(flight, seat, exchange, services)


async def _lead(flight: Flight, seat: Seat, client: Downstream, services: Services) -> Reply:
    """Be admitted, start the call, and listen to it. Until then nobody follows; a refusal is nobody else's."""
    exchange = flight.leader
    if flight.address is not None:
        exchange.fill = await services.cache.claim(flight.address)
        exchange.collapsed = exchange.fill is None and not wants_new(exchange.wishes)
    exchange.on_wait = partial(_hold, flight, services)
    try:
        await _admit(exchange, services)
    except BaseException:
        await _let_go(exchange)
        raise
    exchange.shared = True
    flight.depart()
    services.spawn(_fly(flight, services))
    reply = await _listen(flight, seat, exchange, client, services)
    if reply is None:
        raise LookupError("a leader takes what comes")
    return reply


async def _follow(
    flight: Flight, seat: Seat, exchange: Exchange, client: Downstream, services: Services
) -> Reply | None:
    """Be admitted like a hit, and listen. None: there is no answer for this request in it, and nothing was sent."""
    exchange.collapsed = True
    flight.leader.drained = False
    await _admit(exchange, services)
    exchange.cache = CacheResult.COLLAPSED
    try:
        reply = await _listen(flight, seat, exchange, client, services)
    except BaseException as error:
        settle_broken(exchange, services, error)
        raise
    if reply is None:
        step_back(exchange, services)
        exchange.collapsed, exchange.disappointed, exchange.cache = False, True, CacheResult.MISS
    return reply


async def _admit(exchange: Exchange, services: Services) -> None:
    await admit(exchange, services)
    try:
        await decide_shadow(exchange, services)
    except BaseException as error:
        settle_broken(exchange, services, error)
        raise


def _leave(flight: Flight, seat: Seat, exchange: Exchange, services: Services) -> None:
    """Leave a flight, at its end or before; after the last one it is drained or ends."""
    flight.leave(seat)
    leader = flight.leader
    if flight.landing is not None:
        return
    if not flight.departed:
        services.flights.end(flight, Landing())
    elif flight.heard:
        leader.outlives = leader.outlives or exchange is leader
    elif goes_on(flight, services):
        leader.outlives = leader.drained = True
    else:
        give_up(flight, services)


async def _fly(flight: Flight, services: Services) -> None:
    """Make the call, whoever listens, and tell how it ended."""
    leader = flight.leader
    if not flight.take_off():
        await _let_go(leader)
        return
    landing = Landing(error=Overloaded("shutting down"))
    try:
        found = await _found_elsewhere(leader, services) if flight.address is not None else None
        if found is not None:
            leader.hit, leader.cache = found, CacheResult.COLLAPSED
            settle_hit(leader, services)
            landing = Landing(entry=leader.kept)
        elif (refused := await _refused_in_full(leader, services)) is not None:
            landing = refused
        else:
            reply = await call(leader, flight, services)
            landing = Landing(reply, broken=flight.broken, entry=leader.kept, stored=leader.stored)
    except Exception as error:  # noqa: BLE001 - everybody who listens raises it
        landing = Landing(error=error, place=error.__traceback__)
    finally:
        if flight.landing is None:
            if landing.error is not None:
                settle_broken(leader, services, landing.error)
            services.flights.end(flight, landing)
            report_if_left(leader, services, landing.error)
        await _let_go(leader)


def _hold(flight: Flight, services: Services) -> None:
    """Keep nobody from the answer while the leader waits for limits: it claims its right anew once it is admitted."""
    flight.hold()
    fill, flight.leader.fill = flight.leader.fill, None
    if fill is not None:
        services.spawn(fill.release())


def _nothing() -> None:
    """It waits for nothing any more."""


async def _let_go(exchange: Exchange) -> None:
    # A flight and its leader that held each other would be left to the collector, and the body with them.
    exchange.on_wait = _nothing
    if exchange.fill is not None:
        await exchange.fill.release()


async def _refused_in_full(leader: Exchange, services: Services) -> Landing | None:
    """Admit one that has waited for another process, and in vain, as the leader it is now; None: it is admitted."""
    if not leader.collapsed:
        return None
    step_back(leader, services)
    leader.collapsed = False
    had_claimed = leader.fill is not None
    try:
        await _admit(leader, services)
    except TollgateError as error:
        return Landing(error=error, place=error.__traceback__, refused=True)
    if had_claimed and leader.fill is None:
        leader.fill = await services.cache.claim(_address_of(leader))
    return None


async def _found_elsewhere(exchange: Exchange, services: Services) -> CachedAnswer | None:
    """Come by the right to keep the answer, or return the one that another process has kept meanwhile.

    With neither in time, the answer is fetched all the same and not kept.
    """
    cache, address = services.cache, _address_of(exchange)
    until_ns = services.clock.monotonic_ns() + services.policy.cache_fill_wait_ms * 1_000_000
    for waited in range(_MOST_WAITS):
        if waited or (exchange.fill is None and not exchange.collapsed):
            exchange.fill = await cache.claim(address)
        if wants_new(exchange.wishes):
            return None
        if exchange.fill is None:
            left_ns = until_ns - services.clock.monotonic_ns()
            if left_ns <= 0:
                return None
            await cache.filled(address, left_ns / 1e9)
        # Also with the right: it may have been given back between our look and our asking for it.
        found = await find(exchange, services)
        if found is not None:
            return found
        if exchange.address != address:
            # What is kept there cannot be told in this form.
            if exchange.fill is not None:
                await exchange.fill.release()
            exchange.fill = await cache.claim(_address_of(exchange))
            return None
        if exchange.fill is not None:
            return None
    return None


def _address_of(exchange: Exchange) -> CacheAddress:
    if exchange.address is None:
        raise LookupError("nothing is kept of it")
    return exchange.address


async def _listen(
    flight: Flight, seat: Seat, exchange: Exchange, client: Downstream, services: Services
) -> Reply | None:
    """Give the client what is heard, as it is heard. None: there is nothing in it for this request."""
    follows = exchange is not flight.leader
    while (landing := flight.landing) is None and (flight.head is None or not seat.reads):
        await _news(flight, exchange, services, follows=follows)
    if landing is not None:
        if landing.refused and follows:
            return None
        landing.check()
        if flight.head is None or not seat.reads:
            return await _whole(flight, landing, seat, exchange, services)
        if landing.broken and follows:
            return None
    if not services.policy.keep_alive_seconds:
        return await _read_along(flight, seat, exchange, client, services)
    return await _read_kept_alive(flight, seat, exchange, client, services)


async def _read_kept_alive(
    flight: Flight, seat: Seat, exchange: Exchange, client: Downstream, services: Services
) -> Reply:
    def may_speak() -> bool:
        between_events = flight.leader.between_events
        return between_events is not None and flight.is_read_up(seat) and between_events()

    kept = KeepAlive(client, services.policy.keep_alive_seconds, may_speak, services.spawn)
    try:
        return await _read_along(flight, seat, exchange, kept, services)
    finally:
        kept.end()


async def _read_along(flight: Flight, seat: Seat, exchange: Exchange, client: Downstream, services: Services) -> Reply:
    """Pass a stream on, from its beginning to however it ends."""
    follows = exchange is not flight.leader
    exchange.status, headers = flight.head or (0, ())
    exchange.error_event = flight.leader.error_event
    await client.open(exchange.status, (*headers, *own_headers(exchange)))
    while True:
        landing = flight.landing
        try:
            piece = flight.take(seat)
        except ConnectionResetError:
            client.abort()
            raise
        if piece:
            if follows:
                _note_piece(exchange, flight.leader, services)
            await client.write(piece)
        elif landing is None:
            await _news(flight, exchange, services, follows=follows)
        else:
            break
    landing.check()
    if follows:
        settle_collapsed(exchange, flight.leader, services)
    if landing.broken:
        client.abort()
    else:
        await client.close()
    return Reply(exchange.status, body=None)


def _note_piece(exchange: Exchange, leader: Exchange, services: Services) -> None:
    exchange.first_byte_ns = exchange.first_byte_ns or services.clock.monotonic_ns()
    if leader.settled:
        # As for the leader: the account comes before [DONE].
        settle_collapsed(exchange, leader, services)


async def _news(flight: Flight, exchange: Exchange, services: Services, *, follows: bool) -> None:
    begun_ns = services.clock.monotonic_ns()
    await flight.news()
    if follows:
        exchange.upstream_ns += services.clock.monotonic_ns() - begun_ns


async def _whole(flight: Flight, landing: Landing, seat: Seat, exchange: Exchange, services: Services) -> Reply | None:
    """Answer with the whole of what a flight brought; None where that is nothing for this request."""
    leader, reply = flight.leader, landing.reply
    if exchange is leader:
        return replay(exchange) if reply is None else _with_own_headers(reply, exchange, stored=landing.stored)
    if reply is not None and reply.body is not None and (seat.reads or reply.status >= 400):
        if 400 <= reply.status < 500 and reply.status != 429 and _differ(exchange, leader):
            return None
        settle_collapsed(exchange, leader, services)
        return _with_own_headers(reply, exchange)
    entry = landing.entry
    # The leader may have found one elsewhere that is good enough for itself alone.
    told = None if entry is None or too_old(exchange, entry) else await tell(entry, exchange)
    if told is None:
        return None
    exchange.hit = told
    settle_hit(exchange, services)
    return replay(exchange)


def _with_own_headers(reply: Reply, exchange: Exchange, *, stored: bool = False) -> Reply:
    return replace(reply, headers=(*reply.headers, *own_headers(exchange, stored=stored)))


def _differ(one: Exchange, other: Exchange) -> bool:
    """Whether upstream may have refused one request for what the other does not say."""
    here, there = one.asked.body, other.asked.body
    return any(here.get(name) != there.get(name) for name in (*EXCLUDED_MEMBERS, "stream_options"))
