"""Changes are told over Redis, with the keys that have ended."""

from __future__ import annotations

import asyncio

import pytest

from proxy.app.background import in_background
from proxy.app.changes import announce, hear
from tests.support.redis_route import open_route
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


async def test_what_is_announced_is_heard_with_the_keys_that_have_ended(redis):
    url = f"redis://127.0.0.1:{redis.port}"
    ended, changes = asyncio.Queue(), asyncio.Queue()
    async with open_route(url) as route, in_background() as spawn:
        hear(route, spawn, ended.put_nowait, lambda: changes.put_nowait("changed"))
        async with asyncio.timeout(10):
            await changes.get()
            assert ended.empty(), "to have subscribed ends no key"
            assert await asyncio.to_thread(announce, url, ["0a1B2c3D4e5F", "000000000000"])
            assert await ended.get() == ["0a1B2c3D4e5F", "000000000000"]
            await changes.get()
            assert await asyncio.to_thread(announce, url)
            assert await ended.get() == []
            await changes.get()


def test_a_redis_that_is_away_is_no_failure():
    with RedisServer() as gone:
        url = f"redis://127.0.0.1:{gone.port}"
    assert not announce(url, ["0a1B2c3D4e5F"])
