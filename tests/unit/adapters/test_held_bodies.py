"""Bodies that are kept: read as often as it takes, in memory or from a file that has no name."""

import asyncio
import os
from pathlib import Path

import pytest

from proxy.adapters.held_bodies import HeldBodies
from proxy.core.errors import Overloaded
from proxy.ports import Patch

MEGABYTE = 1024 * 1024
SMALL = bytes(range(256)) * 8
LARGE = os.urandom(1000) * 3_500


async def held(house: HeldBodies, data: bytes, piece: int = 65_536):
    holding = house.hold()
    for at in range(0, len(data), piece):
        await holding.take(data[at : at + piece])
    return holding


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def read(body) -> bytes:
    return b"".join([piece async for piece in body.chunks()])


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_it_is_read_as_it_came_and_again(data, tmp_path):
    holding = await held(HeldBodies(tmp_path, 10 * MEGABYTE), data)
    body = holding.body()
    assert (body.length, body.replayable) == (len(data), True)
    assert await read(body) == data
    one, other = await asyncio.gather(read(body), read(body))
    assert one == other == data
    assert not list(tmp_path.iterdir())
    holding.close()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("at", [0, 1, 0.3, 0.5, 1.0])
async def test_a_part_of_it_is_another(data, at, tmp_path):
    holding = await held(HeldBodies(tmp_path, 10 * MEGABYTE), data)
    start = int(at * len(data)) if isinstance(at, float) else at
    for end in {start, min(start + 9, len(data))}:
        body = holding.body(Patch(start, end, b"whisper-1"))
        assert await read(body) == data[:start] + b"whisper-1" + data[end:]
        assert body.length == len(data) - (end - start) + 9
    holding.close()


async def test_there_is_room_for_so_much_in_all(tmp_path):
    house = HeldBodies(tmp_path, 5_000)
    first = await held(house, SMALL)
    second = await held(house, SMALL)
    with pytest.raises(Overloaded):
        await held(house, SMALL)
    first.close()
    first.close()
    # What was refused in the middle holds nothing once it is closed, and what was closed twice gave back once.
    third = house.hold()
    await third.take(SMALL)
    with pytest.raises(Overloaded):
        await third.take(SMALL)
    second.close()
    third.close()
    await held(house, b"x" * 5_000)


async def test_a_full_disk_is_told_as_what_it_is(tmp_path):
    with pytest.raises(Overloaded):
        await held(HeldBodies(tmp_path / "gone", 10 * MEGABYTE), LARGE)


async def test_the_file_is_forgotten_though_a_thread_was_at_work_on_it(tmp_path):
    before = open_files()
    house = HeldBodies(tmp_path, 100 * MEGABYTE)
    for _ in range(20):
        holding = house.hold()

        async def fill(holding=holding):
            while True:
                await holding.take(b"x" * MEGABYTE)

        task = asyncio.get_running_loop().create_task(fill())
        for _ in range(6):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        holding.close()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert open_files() <= before + 2
    house.take_room(100 * MEGABYTE)


async def test_nothing_is_read_of_what_was_let_go(tmp_path):
    for data in (SMALL, LARGE):
        holding = await held(HeldBodies(tmp_path, 10 * MEGABYTE), data)
        body = holding.body()
        holding.close()
        with pytest.raises(LookupError):
            await holding.take(b"x")
        with pytest.raises(LookupError):
            async for _ in holding.read(0, 5):
                pass
        assert body.replayable
