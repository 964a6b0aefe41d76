"""What every cache promises, whatever is behind it."""

import dataclasses

import pytest

from proxy.adapters.memory.cache import MemoryCache
from proxy.ports import CachedAnswer

ONE, OTHER = b"1" * 32, b"2" * 32
MAX_BYTES = 10_000


class Clock:
    def __init__(self):
        self.ms = 1_000_000

    def now_ms(self):
        return self.ms

    def monotonic_ns(self):
        return self.ms * 1_000_000


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock):
    return MemoryCache(clock, max_bytes=MAX_BYTES)


def answer(clock, body=b"{}", ttl_ms=5_000):
    return CachedAnswer(200, (("Content-Type", "application/json"),), body, "m", clock.ms, ttl_ms, 3, 4, 5)


async def test_what_is_put_comes_back_whole(cache, clock):
    assert await cache.get("a", ONE) is None
    assert await cache.put("a", ONE, answer(clock, b"x\x00y"))
    assert await cache.get("a", ONE) == answer(clock, b"x\x00y")


async def test_teams_never_meet(cache, clock):
    await cache.put("a", ONE, answer(clock))
    assert await cache.get("b", ONE) is None
    await cache.purge("b")
    assert await cache.get("a", ONE) is not None


async def test_an_entry_lives_to_the_millisecond(cache, clock):
    await cache.put("a", ONE, answer(clock, ttl_ms=5_000))
    clock.ms += 4_999
    assert await cache.get("a", ONE) is not None
    clock.ms += 1
    assert await cache.get("a", ONE) is None


async def test_the_later_answer_takes_the_place_of_the_earlier(cache, clock):
    await cache.put("a", ONE, answer(clock, b"1"))
    await cache.put("a", ONE, answer(clock, b"2"))
    assert (await cache.get("a", ONE)).body == b"2"


async def test_a_purge_forgets_a_team(cache, clock):
    await cache.put("a", ONE, answer(clock))
    await cache.put("a", OTHER, answer(clock))
    await cache.purge("a")
    assert await cache.get("a", ONE) is None
    assert await cache.get("a", OTHER) is None


async def test_what_is_larger_than_the_whole_is_not_kept(cache, clock):
    assert not await cache.put("a", ONE, answer(clock, b"x" * MAX_BYTES))
    assert await cache.get("a", ONE) is None


async def test_the_embedded_one_never_outgrows_its_bytes_and_drops_the_least_used(cache, clock):
    for number in range(100):
        await cache.put("a", number.to_bytes(32, "big"), answer(clock, b"x" * 1_000))
        await cache.get("a", (0).to_bytes(32, "big"))
        assert cache.size_bytes <= MAX_BYTES
    assert await cache.get("a", (0).to_bytes(32, "big")) is not None
    assert await cache.get("a", (1).to_bytes(32, "big")) is None
    await cache.purge("a")
    assert (cache.size_bytes, len(cache)) == (0, 0)


async def test_a_body_never_shows_in_a_repr(clock):
    assert "secret" not in repr(dataclasses.replace(answer(clock), body=b"secret"))
