"""Several processes and one address: who fills it, who waits, and what becomes of them when something goes wrong.

Each cache here is what one process has: a connection, a subscription and waiters of its own.
"""

import asyncio
import gc
import subprocess
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
from redis.crc import key_slot

from proxy.adapters.redis.cache import NothingKept, place_of
from proxy.adapters.redis.outcomes import TimedOut
from proxy.core.names import checked_name
from proxy.core.registry import BadName
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.cache_build import an_answer, at, open_cache, put, teach_scripts
from tests.support.redis_route import until_async, until_true
from tests.support.redis_server import RedisServer, all_servers, run_redis_cluster
from tests.support.tollgate_process import ROOT

PLACE = place_of(at())
LEASE, MARK = f"{PLACE}:fill", f"{PLACE}:wait"
LONG_MS = 600_000
"""A lease so long that no test sees it run out: what ends a wait is then a message, or a look for another reason."""
PATIENCE_SECONDS = 60


@pytest.fixture(scope="module", params=all_servers())
def server(request):
    with RedisServer(binary=request.param) as running:
        teach_scripts(running)
        yield running


@pytest.fixture(autouse=True)
def empty(request):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").ask("FLUSHALL")


@asynccontextmanager
async def two(server, **more):
    """Two processes."""
    async with AsyncExitStack() as stack:
        options = {"lease_ms": LONG_MS} | more
        yield [await stack.enter_async_context(open_cache(server.url, **options)) for _ in range(2)]


async def _look_for(cache, key):
    if not await cache._route.execute(key, "EXISTS", key):
        raise TimedOut


@asynccontextmanager
async def waiting(cache, address=None):
    """Somebody who waits in the background, and has looked once; done by the end of the block."""
    address = address or at()
    mark = f"{place_of(address)}:wait"
    await cache._route.execute(mark, "DEL", mark)
    task = asyncio.get_running_loop().create_task(cache.filled(address, PATIENCE_SECONDS))
    try:
        await until_async(partial(_look_for, cache, mark), "it has looked")
        yield task
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            await task
    finally:
        task.cancel()


def test_an_entry_and_what_belongs_to_it_are_in_one_slot_and_those_of_a_team_are_spread():
    places = [place_of(at(bytes([number]) * 32)) for number in range(64)]
    assert places[1] == "c:a:{AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE}"
    slots = [key_slot(place.encode()) for place in places]
    assert slots == [key_slot(f"{place}:fill".encode()) for place in places]
    assert slots == [key_slot(f"{place}:wait".encode()) for place in places]
    assert len(set(slots)) > 60
    for name in ("a{b", "a}b", "{a}"):
        with pytest.raises(BadName):
            checked_name(name)


async def test_one_of_many_fills_and_the_others_find_it(server):
    async with AsyncExitStack() as stack:
        caches = [await stack.enter_async_context(open_cache(server.url, lease_ms=LONG_MS)) for _ in range(4)]
        asked = [(cache, cache.claim(at())) for cache in caches for _ in range(8)]
        fills = await asyncio.gather(*(claim for _, claim in asked))
        winner = next(number for number, fill in enumerate(fills) if fill is not None)
        assert sum(fill is not None for fill in fills) == 1

        async def other(cache):
            await cache.filled(at(), PATIENCE_SECONDS)
            return (await cache.get(at())).body

        others = [other(cache) for number, (cache, _) in enumerate(asked) if number != winner]
        tasks = [asyncio.get_running_loop().create_task(each) for each in others]
        await until_true(lambda: sum(cache.waiting for cache in caches) == 31, "all others wait")
        assert await fills[winner].store(an_answer(body=b"one"))
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            assert await asyncio.gather(*tasks) == [b"one"] * 31
        assert [cache.troubles for cache in caches] == [{}] * 4
    assert server.ask("KEYS", "*") == [PLACE]


async def test_the_right_that_is_given_back_is_free_and_who_waits_is_told(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        assert await other.claim(at()) is None
        async with waiting(other):
            await fill.release()
        await fill.release()
        assert await other.claim(at()) is not None
        assert await one.claim(at()) is None


async def test_nobody_is_told_where_nobody_waits(server):
    async with two(server) as (one, other):
        before = server.calls("publish")
        assert await put(one, at(), an_answer())
        fill = await one.claim(at())
        await fill.release()
        await one.get(at())
        assert server.calls("publish") == before
        fill = await one.claim(at())
        assert await other.claim(at()) is None
        assert await fill.store(an_answer())
        assert server.calls("publish") == before + 1


@pytest.mark.parametrize("ending", ["store", "release"])
async def test_what_ends_before_anybody_waits_is_not_waited_for(server, ending):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        assert await other.claim(at()) is None
        await (fill.store(an_answer()) if ending == "store" else fill.release())
        await one.get(at())  # what was posted has been carried out
        async with asyncio.timeout(PATIENCE_SECONDS / 2):
            await other.filled(at(), PATIENCE_SECONDS)


async def test_a_wait_has_an_end(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        await other.filled(at(), 0.01)
        await other.filled(at(), 0)
        assert not other.troubles
        await fill.release()


async def test_messages_of_others_and_nonsense_wake_nobody(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        async with waiting(other) as task:
            for message in ("", "x" * 100_000, "2" * 32):
                server.ask("PUBLISH", "tollgate:filled", message)
            looks = server.calls("evalsha")
            await other.filled(at(b"2" * 32), PATIENCE_SECONDS)  # heard after what was published
            assert not task.done()
            assert server.calls("evalsha") == looks + 1
            await fill.release()


async def test_who_misses_the_message_looks_when_it_hears_again(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        async with waiting(other):
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
            # Whether the message or the new subscription comes first, the wait ends.
            assert await fill.store(an_answer())


async def test_who_does_not_hear_at_all_looks_from_time_to_time(server):
    async with open_cache(server.url, is_listening=False, lease_ms=1_500) as cache:
        fill = await cache.claim(at())
        async with waiting(cache):
            server.ask("DEL", MARK)  # nobody would be told either
            await fill.store(an_answer())
        assert await cache.get(at()) is not None


async def test_a_lease_that_another_took_meanwhile_ends_the_wait_for_the_first(server):
    async with open_cache(server.url, is_listening=False, lease_ms=1_500) as cache:
        first = await cache.claim(at())
        async with waiting(cache):
            await until_true(lambda: server.ask("EXISTS", MARK), "it has looked")
            server.ask("SET", LEASE, "another's token", "PX", LONG_MS)
        await first.release()
        assert server.ask("GET", LEASE) == "another's token"


# Leases


async def test_the_right_is_held_for_as_long_as_it_takes(server):
    async with two(server, lease_ms=3_000) as (one, other):
        fill = await one.claim(at())
        assert await other.claim(at()) is None
        token = server.ask("GET", LEASE)
        # More than the third of a life after which one is renewed, and only by that it becomes more again.
        for key in (LEASE, MARK):
            server.ask("PEXPIRE", key, 2_500)
        await until_true(lambda: server.ask("PTTL", LEASE) > 2_500, "a renewal")
        await until_true(lambda: server.ask("PTTL", MARK) > 2_500, "a renewal of the mark of who waits")
        server.ask("PEXPIRE", LEASE, 2_500)
        await until_true(lambda: server.ask("PTTL", LEASE) > 2_500, "another renewal")
        assert server.ask("GET", LEASE) == token
        assert 0 < server.ask("PTTL", MARK) <= 3_000
        assert await other.claim(at()) is None
        assert await fill.store(an_answer())
        assert await other.get(at()) is not None


async def test_a_right_that_was_forgotten_runs_out(server):
    async with two(server, lease_ms=1_500) as (one, other):
        fill = await one.claim(at())
        assert await other.claim(at()) is None
        async with waiting(other):
            del fill
            gc.collect()
        assert not server.ask("EXISTS", LEASE)
        assert await other.claim(at()) is not None


async def test_nobody_waits_long_for_a_process_that_was_killed(server):
    command = [sys.executable, "-m", "tests.support.cache_holder", server.url, "1500"]
    holder = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert await holder.stdout.readline() == b"held\n"
        async with open_cache(server.url, lease_ms=1_500) as cache:
            assert await cache.claim(at()) is None
            async with waiting(cache):
                holder.kill()
            fill = await cache.claim(at())
            assert await fill.store(an_answer())
    finally:
        if holder.returncode is None:
            holder.kill()
        await holder.wait()


async def test_a_lease_without_an_end_is_given_one(server):
    async with two(server) as (one, other):
        server.ask("SET", LEASE, "somebody's")
        assert await one.claim(at()) is None
        assert 0 < server.ask("PTTL", LEASE) <= LONG_MS
        server.ask("PEXPIRE", LEASE, 50)
        await other.filled(at(), PATIENCE_SECONDS)
        assert await other.claim(at()) is not None
        await other.get(at())


async def test_who_lost_the_right_to_another_stores_nothing(server):
    async with two(server) as (one, other):
        slow = await one.claim(at())
        server.ask("DEL", LEASE)
        fast = await other.claim(at())
        assert fast is not None
        assert not await slow.store(an_answer(body=b"slow"))
        assert one.troubles == {("store", "lost"): 1}
        assert await one.get(at()) is None
        assert await fast.store(an_answer(body=b"fast"))
        assert (await one.get(at())).body == b"fast"


async def test_who_lost_the_right_gives_back_nothing_of_anothers(server):
    async with two(server) as (one, other):
        slow = await one.claim(at())
        server.ask("DEL", LEASE)
        fast = await other.claim(at())
        await slow.release()
        await one.get(at())
        assert server.ask("EXISTS", LEASE)
        assert await fast.store(an_answer())


async def test_a_server_that_was_emptied_keeps_nothing_of_what_was_under_way(server):
    async with two(server) as (one, _):
        fill = await one.claim(at())
        server.ask("FLUSHALL")
        assert not await fill.store(an_answer())
        assert one.troubles == {("store", "lost"): 1}
        assert server.ask("DBSIZE") == 0
        assert await put(one, at(), an_answer())


async def test_a_purge_beats_a_fill_under_way(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        purged = at(digest=b"2" * 32, secret=b"t" * 32)
        assert await put(other, purged, an_answer(body=b"new"))
        assert await fill.store(an_answer(body=b"old"))
        assert (await one.get(purged)).body == b"new"
        # Nor does the old one open where somebody puts it in the new one's place.
        server.ask("RENAME", PLACE, place_of(purged))
        assert await one.get(purged) is None
        assert one.troubles == {("get", "tag"): 1}


# Callers that are cancelled


@asynccontextmanager
async def held_back(server):
    """A process whose answers from Redis wait, and the gate that holds them."""
    async with (
        run_tcp_proxy(("127.0.0.1", server.port)) as gate,
        open_cache(f"redis://127.0.0.1:{gate.port}", is_listening=False, lease_ms=LONG_MS) as cache,
    ):
        yield cache, gate


async def cancel(call):
    task = asyncio.get_running_loop().create_task(call)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_claim_that_is_cancelled_leaves_no_lease(server, turns):
    async with held_back(server) as (cache, gate), open_cache(server.url, lease_ms=LONG_MS) as other:
        gate.hold_replies()
        task = asyncio.get_running_loop().create_task(cache.claim(at()))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns:
            await until_true(lambda: server.ask("EXISTS", LEASE), "the claim has been carried out")
            async with waiting(other):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        gate.release_replies()
        await until_true(lambda: not server.ask("EXISTS", LEASE), "the lease is given back")


async def test_a_store_that_is_cancelled_leaves_no_lease(server):
    async with held_back(server) as (cache, gate):
        fill = await cache.claim(at())
        gate.hold_replies()
        await cancel(fill.store(an_answer()))
        gate.release_replies()
        await until_true(lambda: not server.ask("EXISTS", LEASE), "the lease is given back")
        # It had been carried out.
        assert await cache.get(at()) is not None


async def test_a_large_store_that_is_cancelled_while_it_is_sealed_leaves_no_lease(server, monkeypatch):
    async with open_cache(server.url, lease_ms=LONG_MS, is_listening=False) as cache:
        fill = await cache.claim(at())
        seal, is_sealing, is_cancelled = cache.envelope.seal, threading.Event(), threading.Event()

        def seal_in_time(*arguments):
            is_sealing.set()
            assert is_cancelled.wait(PATIENCE_SECONDS)
            return seal(*arguments)

        monkeypatch.setattr(cache.envelope, "seal", seal_in_time)
        task = asyncio.get_running_loop().create_task(fill.store(an_answer(body=b"x" * 1_000_000)))
        await until_true(is_sealing.is_set, "it is sealed")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        is_cancelled.set()
        await cache.get(at())
        assert server.ask("KEYS", "*") == []
        assert not await fill.store(an_answer())


async def test_a_wait_that_is_cancelled_leaves_nobody_waiting(server):
    async with two(server) as (one, other):
        fill = await one.claim(at())
        task = asyncio.get_running_loop().create_task(other.filled(at(), PATIENCE_SECONDS))
        await until_true(lambda: server.ask("EXISTS", MARK), "it has looked")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert other.waiting == 0
        assert await fill.store(an_answer())


async def test_a_large_answer_goes_through_whole(server):
    async with two(server) as (one, other):
        body = bytes(range(256)) * 4_000
        assert await put(one, at(), an_answer(body=body))
        assert (await other.get(at())).body == body


# A cluster


async def test_on_a_cluster_fills_are_heard_of_on_every_node():
    with run_redis_cluster(all_servers()[0]) as nodes:
        url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        async with open_cache(url, lease_ms=LONG_MS) as one, open_cache(url, lease_ms=LONG_MS) as other:
            for number in range(12):
                address = at(bytes([number]) * 32)
                fill = await one.claim(address)
                assert not isinstance(fill, NothingKept)
                assert await other.claim(address) is None
                async with waiting(other, address):
                    assert await fill.store(an_answer(body=bytes([number])))
                assert (await other.get(address)).body == bytes([number])
            assert not one.troubles
            assert not other.troubles
        assert all(node.ask("DBSIZE") for node in nodes)
