"""Threads of the admin API's own."""

import asyncio
import threading

import pytest

from proxy.core.errors import Overloaded
from proxy.web.admin.lane import Lane


class Gate:
    """A call that goes on until it is let."""

    def __init__(self):
        self.open = threading.Event()
        self.entered = 0
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            self.entered += 1
            self._inside += 1
            self.most = max(self.most, self._inside)
        assert self.open.wait(60)
        with self._lock:
            self._inside -= 1
        return threading.current_thread()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open.set()


async def until(met):
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110 - a thread's doings have no event here
            await asyncio.sleep(0.005)


async def test_off_the_loop_a_few_at_a_time_and_all_in_the_end(gate):
    lane = Lane(2, 10)
    calls = [asyncio.create_task(lane.run(gate)) for _ in range(8)]
    await until(lambda: gate.entered == 2)
    await asyncio.sleep(0.02)  # the loop is free meanwhile
    assert gate.entered == 2
    gate.open.set()
    threads = await asyncio.gather(*calls)
    assert (gate.entered, gate.most) == (8, 2)
    assert all(thread.daemon and thread is not threading.main_thread() for thread in threads)


async def test_too_many_are_told_so_and_room_comes_back(gate):
    lane = Lane(1, 1)
    calls = [asyncio.create_task(lane.run(gate)) for _ in range(2)]
    await until(lambda: gate.entered == 1)
    for _ in range(3):
        with pytest.raises(Overloaded):
            await lane.run(gate)
    gate.open.set()
    await asyncio.gather(*calls)
    assert await lane.run(lambda: 7) == 7


async def test_an_error_is_the_callers_and_no_place_is_lost():
    lane = Lane(1, 1)

    def fail():
        raise LookupError("here")

    for _ in range(3):
        with pytest.raises(LookupError, match="here"):
            await lane.run(fail)
    assert await lane.run(lambda: 7) == 7


async def test_who_leaves_does_not_make_room_for_more_threads(gate):
    lane = Lane(1, 5)
    left = asyncio.create_task(lane.run(gate))
    await until(lambda: gate.entered == 1)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    waiting = asyncio.create_task(lane.run(gate))
    gone = asyncio.create_task(lane.run(gate))
    await asyncio.sleep(0.02)
    gone.cancel()
    assert gate.entered == 1, "the first call goes on"
    gate.open.set()
    assert await waiting
    assert gate.most == 1
    assert await lane.run(lambda: 7) == 7
