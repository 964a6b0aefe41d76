import asyncio

import aiohttp
import pytest

from proxy.simulator import start


async def test_a_taken_port_is_an_error():
    async with await start() as first:
        with pytest.raises(OSError, match=str(first.port)):
            await start(port=first.port)


async def test_stopping_breaks_off_what_hangs_and_blames_nobody(simulate):
    harness = await simulate()

    async def ask():
        return await harness.post(hang=1)

    asking = asyncio.create_task(ask())
    await harness.until(lambda: harness.stats.in_flight == 1)
    stats = harness.stats
    await harness.simulator.stop()
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await asking
    assert (stats.in_flight, stats.cut_by_client) == (0, 0)
    await harness.simulator.stop()
