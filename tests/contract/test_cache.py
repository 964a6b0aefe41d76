"""What every cache promises, whatever is behind it."""

import asyncio
import tracemalloc
from collections import Counter

import pytest
from msgspec.structs import replace

from proxy.adapters.layered_cache import LayeredCache
from proxy.adapters.memory.cache import MemoryCache
from proxy.core.replay import Form
from proxy.ports import CachedAnswer
from tests.support.cache_build import an_answer as answer
from tests.support.cache_build import at, open_cache, put
from tests.support.redis_server import all_servers

ONE, OTHER = b"1" * 32, b"2" * 32
MAX_BYTES = 12_000
ENGINES = ["memory", *[f"redis {number}" for number in range(len(all_servers()))], "cluster", "layered 0"]


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


@pytest.fixture(params=ENGINES)
async def cache(request, clock, redis_servers):
    """An empty cache on `clock`, of each engine in turn."""
    if request.param == "memory":
        yield MemoryCache(clock, max_bytes=MAX_BYTES)
        return
    if request.param == "cluster":
        server = redis_servers(all_servers()[0], "cluster-enabled yes")
        url = f"redis+cluster://127.0.0.1:{server.port}"
    else:
        server = redis_servers(all_servers()[int(request.param.split()[1])])
        url = server.url
    server.ask("FLUSHALL")
    async with open_cache(url, clock, max_payload_bytes=MAX_BYTES) as cache:
        # What is posted is then carried out in its turn.
        await cache.load()
        if "layered" in request.param:
            yield LayeredCache(cache, clock, front_seconds=2, max_bytes=MAX_BYTES)
        else:
            yield cache
        # Tests of what is refused see to it themselves; nothing else went wrong.
        assert not cache.troubles - Counter({("store", "too_large"): 1, ("get", "tag"): 1})


@pytest.mark.parametrize("body", [b"", b"x\x00y", b"z" * 9_000], ids=["empty", "bytes", "large"])
@pytest.mark.parametrize("form", Form)
async def test_what_is_put_comes_back_whole(cache, clock, body, form):
    whole = replace(answer(clock, body), form=form, headers=(("A", "1"), ("a", "é")), cost_pico_usd=2**63, model="µ")
    assert await cache.get(at(ONE)) is None
    assert await put(cache, at(ONE), whole)
    assert await cache.get(at(ONE)) == whole
    clock.ms += 2_000
    assert await cache.get(at(ONE)) == whole


async def test_teams_never_meet(cache, clock):
    await put(cache, at(ONE), answer(clock))
    assert await cache.get(at(ONE, team="b")) is None
    await put(cache, at(ONE, team="b"), answer(clock, b"other"))
    assert (await cache.get(at(ONE))).body == b"{}"


async def test_an_entry_lives_to_the_millisecond(cache, clock):
    await put(cache, at(ONE), answer(clock, ttl_ms=60_000))
    clock.ms += 59_999
    assert await cache.get(at(ONE)) is not None
    clock.ms += 1
    assert await cache.get(at(ONE)) is None


async def test_the_later_answer_takes_the_place_of_the_earlier(cache, clock):
    await put(cache, at(ONE), answer(clock, b"1"))
    await put(cache, at(ONE), answer(clock, b"2"))
    assert (await cache.get(at(ONE))).body == b"2"


async def test_a_new_secret_forgets_a_team(cache, clock):
    await put(cache, at(ONE), answer(clock))
    assert await cache.get(at(ONE, secret=b"t" * 32)) is None


async def test_what_began_under_an_old_secret_is_not_found_under_the_new_one(cache, clock):
    fill = await cache.claim(at(ONE))
    # Digests are made under the secret, so that a new one changes both.
    purged = at(OTHER, secret=b"t" * 32)
    assert await put(cache, purged, answer(clock, b"new"))
    assert await fill.store(answer(clock, b"old"))
    assert (await cache.get(purged)).body == b"new"


async def test_a_right_that_was_given_back_keeps_nothing(cache, clock):
    fill = await cache.claim(at(ONE))
    await fill.release()
    await fill.release()
    assert not await fill.store(answer(clock))
    assert await cache.get(at(ONE)) is None


async def test_a_right_that_was_given_back_is_free(cache, clock):
    await (await cache.claim(at(ONE))).release()
    assert await put(cache, at(ONE), answer(clock, b"1"))
    assert await put(cache, at(ONE), answer(clock, b"2"))


async def test_a_right_is_good_for_one_answer(cache, clock):
    fill = await cache.claim(at(ONE))
    assert await fill.store(answer(clock, b"1"))
    assert not await fill.store(answer(clock, b"2"))
    await fill.release()
    assert (await cache.get(at(ONE))).body == b"1"


async def test_nobody_waits_for_a_fill_that_has_ended(cache, clock):
    await put(cache, at(ONE), answer(clock))
    async with asyncio.timeout(60):
        await cache.filled(at(ONE), 3_600)
        await cache.filled(at(OTHER), 3_600)


async def test_what_is_larger_than_the_whole_is_not_kept(cache, clock):
    assert not await put(cache, at(ONE), answer(clock, b"x" * MAX_BYTES))
    assert await cache.get(at(ONE)) is None


async def test_the_embedded_one_never_outgrows_its_bytes_and_drops_the_least_used(clock):
    cache = MemoryCache(clock, max_bytes=MAX_BYTES)
    for number in range(100):
        await put(cache, at(number.to_bytes(32, "big")), answer(clock, b"x" * 1_000))
        await cache.get(at((0).to_bytes(32, "big")))
        assert cache.size_bytes <= MAX_BYTES
    assert await cache.get(at((0).to_bytes(32, "big"))) is not None
    assert await cache.get(at((1).to_bytes(32, "big"))) is None
    clock.ms += 60_000
    for number in range(100):
        await cache.get(at(number.to_bytes(32, "big")))
    assert (cache.size_bytes, len(cache)) == (0, 0)


@pytest.mark.parametrize("body_bytes", [0, 700, 20_000])
async def test_the_embedded_one_takes_about_the_memory_that_it_says(clock, body_bytes):
    """Short answers are mostly what they are wrapped in: a bound on their text alone would be none on memory."""
    headers = (("Content-Type", "application/json"), ("openai-version", "2020-10-01"))
    cache, count = MemoryCache(clock, max_bytes=10**9), 500
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(count):
            # Each with texts and figures of its own, as they are when they have come over a wire.
            own = tuple(("".join(list(name)), "".join(list(value))) for name, value in headers)
            kept = CachedAnswer(
                200, own, bytes(body_bytes), "".join(list("gpt-4o")), 10**12 + number, 10**9, 10**6 + number,
                10**7 + number, 10**10 + number,
            )  # fmt: skip
            assert cache.keep(at(number.to_bytes(32, "big")), kept)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert 0.7 * cache.size_bytes < taken < 1.15 * cache.size_bytes


async def test_the_embedded_one_does_not_trust_what_it_kept_later_than_now(clock):
    cache = MemoryCache(clock, max_bytes=MAX_BYTES)
    await put(cache, at(ONE), answer(clock))
    clock.ms -= 10_000
    assert await cache.get(at(ONE)) is not None
    clock.ms -= 1
    assert await cache.get(at(ONE)) is None
    assert cache.size_bytes == 0


async def test_a_body_never_shows_in_a_repr(clock):
    assert "secret" not in repr(replace(answer(clock), body=b"secret"))
