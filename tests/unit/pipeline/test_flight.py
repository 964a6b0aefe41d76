"""What a flight holds, whom it waits for, and whom it leaves behind."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.pipeline.exchange import Reply
from proxy.pipeline.flight import _AHEAD_BYTES, _AT_ONCE_BYTES, Flight, Landing, Wish
from proxy.pipeline.flights import Flights
from proxy.ports import CacheAddress
from tests.support.stage import on_stage

ADDRESS = CacheAddress("growth", b"s" * 32, b"d" * 32)
BARE, COUNTED, PLAIN = Wish(True, False), Wish(True, True), Wish(False, False)
KIB = 1_024


def exchange():
    """As much of one as a flight looks at."""
    return SimpleNamespace(asked=SimpleNamespace(stream=True, include_usage=False, raw=b"{}"), queued_ns=0)


def flight(room_bytes=10_000 * KIB):
    return Flight(exchange(), ADDRESS, room_bytes)


def drained(a_flight, seat):
    taken = b""
    while piece := a_flight.take(seat):
        taken += piece
    return taken


async def written(a_flight, *pieces):
    """Write without waiting for readers; returns whether the last write was done."""
    for piece in pieces:
        task = asyncio.get_running_loop().create_task(a_flight.write(piece))
        await asyncio.sleep(0)
        if not task.done():
            return task
    return None


async def test_pieces_come_as_they_were_and_to_those_who_are_behind_together():
    a_flight = flight()
    quick, late = a_flight.join(BARE), a_flight.join(BARE)
    for piece in (b"a", b"b", b"c"):
        await a_flight.write(piece)
        assert a_flight.take(quick) == piece
        assert a_flight.take(quick) == b""
    assert a_flight.take(late) == b"abc"
    assert drained(a_flight, a_flight.join(BARE)) == b"abc"


async def test_what_is_taken_at_once_is_bounded():
    a_flight = flight()
    seat = a_flight.join(BARE)
    for _ in range(20):
        await a_flight.write(b"x" * 10 * KIB)
    sizes = []
    while piece := a_flight.take(seat):
        sizes.append(len(piece))
    assert sum(sizes) == 200 * KIB
    assert max(sizes) < _AT_ONCE_BYTES + 10 * KIB


async def test_the_call_waits_for_the_fastest_reader_alone():
    a_flight = flight()
    fast, _slow = a_flight.join(BARE), a_flight.join(BARE)
    waiting = await written(a_flight, *[b"x" * 64 * KIB] * 5)
    assert waiting is not None, "nobody has read anything"
    assert a_flight.take(fast)
    await asyncio.sleep(0)
    assert not waiting.done(), "what was taken is not passed on yet"
    a_flight.join(BARE)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done(), "one that has just come has read nothing either"
    assert a_flight.take(fast)
    await asyncio.sleep(0)
    assert waiting.done()


async def test_the_call_goes_on_when_the_one_it_waited_for_is_no_reader_or_has_left():
    a_flight = flight()
    fast, slow = a_flight.join(BARE), a_flight.join(BARE)
    drained(a_flight, fast)
    first = await written(a_flight, b"x" * (_AHEAD_BYTES + 1))
    assert first is not None
    drained(a_flight, fast)
    await asyncio.sleep(0)
    assert first.done()
    assert await written(a_flight, b"y") is None
    a_flight.leave(fast)
    second = await written(a_flight, b"z")
    assert second is not None, "the one that is left has read nothing"
    a_flight.join(PLAIN)
    await asyncio.sleep(0)
    assert second.done(), "who waits for the end is not to wait for who does not read"
    a_flight.leave(slow)


async def test_a_call_that_is_drained_waits_for_nobody_and_holds_next_to_nothing():
    a_flight = flight(room_bytes=0)
    seat = a_flight.join(BARE)
    waiting = await written(a_flight, *[b"x" * 64 * KIB] * 5)
    assert waiting is not None
    a_flight.leave(seat)
    a_flight.drain()
    await asyncio.sleep(0)
    assert waiting.done()
    for _ in range(50):
        assert await written(a_flight, b"x" * 64 * KIB) is None
        assert a_flight.held_bytes <= 64 * KIB


async def test_one_is_read_up_when_all_it_took_is_passed_on():
    a_flight = flight()
    seat = a_flight.join(BARE)
    assert a_flight.is_read_up(seat)
    await a_flight.write(b"a")
    assert not a_flight.is_read_up(seat)
    a_flight.take(seat)
    assert not a_flight.is_read_up(seat), "it is being passed on"
    a_flight.take(seat)
    assert a_flight.is_read_up(seat)


@pytest.mark.parametrize("other", [COUNTED, PLAIN])
async def test_who_wants_another_form_does_not_read(other):
    assert not flight().join(other).reads
    assert flight().join(BARE).reads


async def test_past_its_room_nobody_can_join_and_what_all_have_read_is_dropped():
    room = 600 * KIB
    a_flight, flights = flight(room), Flights()
    flights._under_way[ADDRESS] = a_flight
    a_flight.depart()
    one, other = a_flight.join(BARE), a_flight.join(BARE)
    for _ in range(6):
        await a_flight.write(b"x" * 100 * KIB)
        drained(a_flight, one)
    assert (a_flight.full, a_flight.held_bytes) == (False, room), "all of it is held for who comes late"
    found, seat = await flights.board(exchange(), ADDRESS, room, join=True)
    assert found is a_flight
    a_flight.leave(seat)
    drained(a_flight, other)
    await a_flight.write(b"y" * KIB)
    assert a_flight.full
    assert a_flight.held_bytes == KIB
    found, _ = await flights.board(exchange(), ADDRESS, room, join=True)
    assert found is not a_flight
    assert flights._under_way[ADDRESS] is found
    assert drained(a_flight, one) == drained(a_flight, other) == b"y" * KIB
    flights.end(a_flight, Landing())
    assert flights._under_way[ADDRESS] is found, "the end of the one is not the end of the other"


async def test_one_that_falls_far_behind_is_left_behind_and_the_others_go_on():
    a_flight = flight(600 * KIB)
    fast, slow = a_flight.join(BARE), a_flight.join(BARE)
    heard = b""
    for number in range(30):
        await a_flight.write(bytes([number]) * 100 * KIB)
        heard += drained(a_flight, fast)
        assert a_flight.held_bytes <= 700 * KIB
    assert heard == b"".join(bytes([number]) * 100 * KIB for number in range(30))
    with pytest.raises(ConnectionResetError):
        a_flight.take(slow)


async def test_while_somebody_waits_for_the_end_the_slowest_are_left_behind_and_memory_is_bounded():
    a_flight = flight(100 * KIB)
    slow, _ = a_flight.join(BARE), a_flight.join(PLAIN)
    for _ in range(100):
        assert await written(a_flight, b"x" * 100 * KIB) is None
        assert a_flight.held_bytes <= 2 * _AHEAD_BYTES + 100 * KIB
    assert slow.lost


async def test_a_piece_larger_than_all_the_room_reaches_who_keeps_up():
    a_flight = flight(10)
    seat = a_flight.join(BARE)
    huge = b"x" * 3 * _AHEAD_BYTES
    task = await written(a_flight, b"small", huge)
    assert drained(a_flight, seat) == b"small" + huge
    await task


async def test_the_first_word_on_how_it_ended_holds():
    a_flight = flight()
    a_flight.land(Landing(broken=True))
    a_flight.land(Landing(Reply(200)))
    assert a_flight.landing == Landing(broken=True)


async def test_those_who_wait_for_a_leader_follow_it_once_it_is_admitted():
    flights = Flights()
    lead, first_seat = await flights.board(exchange(), ADDRESS, 1, join=True)
    waiting = [asyncio.ensure_future(flights.board(exchange(), ADDRESS, 1, join=True)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(each.done() for each in waiting)
    lead.depart()
    assert {id(found) for found, _ in await asyncio.gather(*waiting)} == {id(lead)}
    assert first_seat.reads


async def test_of_those_who_waited_for_a_leader_that_was_refused_one_leads_at_a_time():
    flights = Flights()
    lead, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    waiting = [asyncio.ensure_future(flights.board(exchange(), ADDRESS, 1, join=True)) for _ in range(3)]
    for expected in (1, 2, 3):
        await asyncio.sleep(0)
        flights.end(lead, Landing())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done = [each for each in waiting if each.done()]
        assert len(done) == expected
        (lead,) = flights._under_way.values()
    assert len({id(each.result()[0]) for each in waiting}) == 3


class Counting(dict):
    looks = 0

    def get(self, *arguments):
        self.looks += 1
        return super().get(*arguments)


async def test_a_refusal_of_each_of_many_costs_no_more_than_one_look_of_each():
    """A team at its limit that asks the same a thousand times at once takes nobody else's time."""
    flights = Flights()
    flights._under_way = Counting()
    lead, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    waiting = [asyncio.ensure_future(flights.board(exchange(), ADDRESS, 1, join=True)) for _ in range(200)]
    for each in waiting:
        await asyncio.sleep(0)
        flights.end(lead, Landing())
        lead, _ = await each
    flights.end(lead, Landing())
    assert len(flights) == 0
    assert flights._under_way.looks < 5 * len(waiting)


@pytest.mark.parametrize("newcomer", [False, True], ids=["nobody-comes", "somebody-comes"])
@pytest.mark.parametrize("departs", [False, True], ids=["refused", "admitted"])
async def test_one_that_leaves_as_its_turn_comes_gives_it_to_the_next(newcomer, departs):
    flights = Flights()
    lead, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    first, second, third = (asyncio.ensure_future(flights.board(exchange(), ADDRESS, 1, join=True)) for _ in range(3))
    await asyncio.sleep(0)
    flights.end(lead, Landing())
    first.cancel()
    if newcomer:
        lead, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    await asyncio.wait([first])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert first.cancelled()
    if newcomer:
        assert not second.done()
        if departs:
            lead.depart()
            assert {id(found) for found, _ in await asyncio.gather(second, third)} == {id(lead)}
            return
        flights.end(lead, Landing())
    lead, _ = await second
    assert not third.done()
    if departs:
        lead.depart()
        assert (await third)[0] is lead
    else:
        flights.end(lead, Landing())
        assert (await third)[0] is not lead


async def test_all_in_line_follow_one_that_came_and_was_admitted_in_between():
    flights = Flights()
    lead, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    waiting = [asyncio.ensure_future(flights.board(exchange(), ADDRESS, 1, join=True)) for _ in range(3)]
    await asyncio.sleep(0)
    flights.end(lead, Landing())
    newcomer, _ = await flights.board(exchange(), ADDRESS, 1, join=True)
    newcomer.depart()
    async with asyncio.timeout(60):
        assert {id(found) for found, _ in await asyncio.gather(*waiting)} == {id(newcomer)}


async def test_one_that_joins_nobody_takes_nobodys_place():
    flights = Flights()
    lead, _ = await flights.board(exchange(), ADDRESS, 1, join=False)
    own, _ = await flights.board(exchange(), ADDRESS, 1, join=False)
    assert own is not lead
    assert flights._under_way == {ADDRESS: lead}
    flights.end(own, Landing())
    assert len(flights) == 1
    flights.end(lead, Landing())
    assert len(flights) == 0


step = st.one_of(
    st.tuples(st.just("write"), st.binary(min_size=1, max_size=30)),
    st.tuples(st.just("join"), st.sampled_from([BARE, PLAIN])),
    st.tuples(st.just("take"), st.integers(0, 9)),
    st.tuples(st.just("leave"), st.integers(0, 9)),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(step, max_size=80), room_bytes=st.integers(0, 200))
def test_everybody_hears_all_of_it_in_order_or_is_told_otherwise(steps, room_bytes):
    async def play():
        a_flight = flight(room_bytes)
        said, seats = b"", []
        for kind, value in steps:
            if kind == "write":
                await a_flight.write(value)
                said += value
            elif kind == "join" and not a_flight.full:
                seats.append([a_flight.join(value), b""])
            elif seats and kind in {"take", "leave"}:
                entry = seats[value % len(seats)]
                if kind == "leave":
                    a_flight.leave(entry[0])
                    seats.remove(entry)
                elif entry[0].reads:
                    entry[1] += a_flight.take(entry[0])
                    assert said.startswith(entry[1])
            assert a_flight.full == (len(said) > room_bytes)
        for seat, heard in seats:
            if seat.reads:
                assert heard + drained(a_flight, seat) == said

    on_stage(play)
