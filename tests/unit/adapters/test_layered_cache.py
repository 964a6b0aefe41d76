import pytest
from msgspec.structs import replace

from proxy.adapters.layered_cache import LayeredCache
from proxy.adapters.memory.cache import MemoryCache
from tests.support.cache_build import an_answer as answer
from tests.support.cache_build import at, put

MAX_BYTES = 6_000


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
def behind(clock):
    return MemoryCache(clock, max_bytes=1_000_000)


@pytest.fixture
def cache(behind, clock):
    return LayeredCache(behind, clock, front_seconds=2, max_bytes=MAX_BYTES)


def forget(behind):
    behind._entries.clear()


async def test_what_was_found_behind_is_at_hand_for_so_long_and_not_longer(cache, behind, clock):
    kept = answer(clock)
    await put(behind, at(), kept)
    assert await cache.get(at()) == kept
    forget(behind)
    clock.ms += 1_999
    assert await cache.get(at()) == kept
    clock.ms += 1
    assert await cache.get(at()) is None
    assert cache.size_bytes == 0


async def test_a_find_does_not_prolong(cache, behind, clock):
    await put(cache, at(), answer(clock))
    for _ in range(4):
        await cache.get(at())
        clock.ms += 500
    forget(behind)
    assert await cache.get(at()) is None


async def test_what_was_stored_is_at_hand(cache, behind, clock):
    kept = answer(clock)
    assert await put(cache, at(), kept)
    forget(behind)
    assert await cache.get(at()) == kept


async def test_what_was_not_kept_behind_is_not_at_hand(cache, clock):
    fill = await cache.claim(at())
    await fill.release()
    assert not await fill.store(answer(clock))
    assert cache.size_bytes == 0
    assert await cache.get(at()) is None


async def test_an_answer_at_hand_is_not_good_for_longer_than_it_is(cache, clock):
    await put(cache, at(), answer(clock, ttl_ms=1_000))
    clock.ms += 999
    assert await cache.get(at()) is not None
    clock.ms += 1
    assert await cache.get(at()) is None
    assert cache.size_bytes == 0


async def test_a_new_secret_reaches_neither(cache, clock):
    await put(cache, at(), answer(clock))
    assert await cache.get(replace(at(), secret=b"t" * 32)) is None
    assert await cache.get(at(digest=b"2" * 32)) is None


async def test_the_later_answer_takes_the_place_of_the_earlier(cache, clock):
    await put(cache, at(), answer(clock, b"1" * 100))
    size_bytes = cache.size_bytes
    await put(cache, at(), answer(clock, b"2" * 100))
    assert (await cache.get(at())).body == b"2" * 100
    assert cache.size_bytes == size_bytes


async def test_it_never_outgrows_its_bytes_and_drops_what_came_first(cache, behind, clock):
    for number in range(20):
        await put(cache, at(bytes([number]) * 32), answer(clock, b"x" * 500))
        assert 0 < cache.size_bytes <= MAX_BYTES
    await put(cache, at(b"large" * 6), answer(clock, b"x" * MAX_BYTES))
    assert await behind.get(at(b"large" * 6)) is not None
    forget(behind)
    found = [number for number in range(20) if await cache.get(at(bytes([number]) * 32))]
    assert found == list(range(20 - len(found), 20))
    assert len(found) >= 3
    assert await cache.get(at(b"large" * 6)) is None


async def test_waiting_is_done_behind(clock):
    told = []

    class Behind(MemoryCache):
        async def filled(self, address, timeout_seconds):
            told.append((address, timeout_seconds))

        async def claim(self, address):
            return None

    cache = LayeredCache(Behind(clock, max_bytes=1), clock, front_seconds=1, max_bytes=1)
    await cache.filled(at(), 7)
    assert told == [(at(), 7)]
    assert await cache.claim(at()) is None
