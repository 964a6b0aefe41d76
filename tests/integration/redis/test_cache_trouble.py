"""A cache whose Redis is away, slow, full, busy, or holds what no cache has put there: misses and counts, no errors."""

import asyncio
import dataclasses
import socket
from collections import Counter
from contextlib import asynccontextmanager, suppress

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.adapters.cache_keys import MasterKeys
from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.cache import NothingKept, place_of
from proxy.adapters.redis.room import PART_FOR_ANSWERS, Room
from proxy.core.breaker import BreakerPolicy
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.cache_build import an_answer, at, open_cache, put, teach_scripts
from tests.support.redis_route import PATIENT, in_haste, open_route, until_true
from tests.support.redis_server import RedisServer, all_servers, free_port

PLACE = place_of(at())
LEASE = f"{PLACE}:fill"
LONG_MS = 600_000
# Never rests, so that each call is one that times out.
TIRELESS = dataclasses.replace(PATIENT, breaker=BreakerPolicy(failures_to_open=1_000_000))


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
async def raw(server):
    """A connection for what is not text."""
    async with open_route(server.url) as route:
        yield route


async def everything(cache, patience_seconds=0.1):
    """Ask for everything there is, waiting so long for a fill to end; returns whether something was kept or found."""
    async with asyncio.timeout(60):
        found = await cache.get(at())
        fill = await cache.claim(at())
        await cache.filled(at(), patience_seconds)
        if fill is None:
            return found
        kept = await fill.store(an_answer())
        await fill.release()
        return kept or found


async def connect_anew(cache, gate):
    """Lose the connection and have another."""
    (primary,) = cache._route.primaries()
    before = primary.counts.connections
    gate.cut()
    await until_true(lambda: primary.counts.connections > before and primary.is_up, "another connection")


# Away, slow


async def test_one_that_was_never_there():
    async with open_cache(f"redis://127.0.0.1:{free_port()}", is_listening=False, is_up=False) as cache:
        assert not await everything(cache)
        assert cache.troubles == {("get", "away"): 1, ("claim", "away"): 1, ("filled", "away"): 1}
        assert cache.is_away


async def test_one_that_goes_away_while_somebody_fills_and_somebody_waits_and_comes_back():
    with RedisServer() as server:
        async with open_cache(server.url, lease_ms=LONG_MS) as cache, open_cache(server.url, lease_ms=LONG_MS) as other:
            fill = await cache.claim(at())
            waiter = asyncio.get_running_loop().create_task(other.filled(at(), 60))
            await until_true(lambda: server.ask("EXISTS", f"{PLACE}:wait"), "it has looked")
            assert not cache.is_away
            server.kill()
            await until_true(lambda: cache.is_away, "it is away")
            assert not await fill.store(an_answer())
            assert cache.troubles == {("store", "away"): 1, ("release", "away"): 1}
            server.start()
            # Who waits hears again, looks, and finds that nobody fills.
            async with asyncio.timeout(30):
                await waiter
            await until_true(lambda: not cache.is_away, "it is back")
            assert await put(cache, at(), an_answer())
            assert await cache.get(at()) is not None


async def test_answers_that_do_not_come_are_not_waited_for(server):
    async with (
        run_tcp_proxy(("127.0.0.1", server.port)) as gate,
        open_cache(f"redis://127.0.0.1:{gate.port}", options=TIRELESS, is_listening=False, lease_ms=LONG_MS) as cache,
    ):
        await cache.load()
        fill = await cache.claim(at())
        gate.drops_replies = True
        with in_haste(cache._route):
            assert await cache.get(at()) is None
            assert not await fill.store(an_answer())
        # What was asked had been done all the same.
        gate.drops_replies = False
        await connect_anew(cache, gate)
        assert await cache.get(at()) is not None
        assert not server.ask("EXISTS", LEASE)
        told = Counter({each: count for each, count in cache.troubles.items() if each[0] != "release"})
        assert told == {("get", "timeout"): 1, ("store", "timeout"): 1}


async def test_a_claim_whose_answer_did_not_come_keeps_nothing_and_holds_nobody_up(server):
    async with (
        run_tcp_proxy(("127.0.0.1", server.port)) as gate,
        open_cache(f"redis://127.0.0.1:{gate.port}", options=TIRELESS, is_listening=False, lease_ms=LONG_MS) as cache,
    ):
        await cache.load()
        gate.drops_replies = True
        claims = server.calls("set")
        with in_haste(cache._route):
            assert isinstance(await cache.claim(at()), NothingKept)
            await until_true(lambda: server.calls("set") == claims + 1, "it had been taken")
            await until_true(lambda: not server.ask("EXISTS", LEASE), "the lease is given back")
            await cache.filled(at(), 60)
        gate.cut()
        told = {operation: reason for operation, reason in cache.troubles if operation != "release"}
        assert told == {"claim": "timeout", "filled": "timeout"}


async def test_after_a_few_that_did_not_come_nobody_waits_for_the_deadline(server):
    policy = BreakerPolicy(failures_to_open=3, rest_ms=600_000, max_rest_ms=600_000)
    breaking = dataclasses.replace(PATIENT, breaker=policy)
    async with (
        run_tcp_proxy(("127.0.0.1", server.port)) as gate,
        open_cache(f"redis://127.0.0.1:{gate.port}", options=breaking, is_listening=False) as cache,
    ):
        gate.drops_replies = True
        with in_haste(cache._route):
            for _ in range(10):
                await cache.get(at())
        assert cache.troubles == {("get", "timeout"): 3, ("get", "away"): 7}
        assert cache.is_away
        gate.cut()


async def test_more_than_may_be_on_its_way_is_not_sent(server):
    narrow = dataclasses.replace(PATIENT, bounds=dataclasses.replace(PATIENT.bounds, max_queued_bytes=500))
    async with open_cache(server.url, is_listening=False) as wide:
        # Scripts that the server does not know yet are sent whole, which would be too much as well.
        fill = await wide.claim(at(b"3" * 32))
        await fill.release()
        await until_true(lambda: not server.ask("EXISTS", f"{place_of(at(b'3' * 32))}:fill"), "it is released")
    async with open_cache(server.url, options=narrow, is_listening=False, lease_ms=LONG_MS) as cache:
        await cache.claim(at(b"2" * 32))
        assert not await put(cache, at(), an_answer(body=bytes(range(256)) * 4))
        assert cache.troubles == {("store", "full"): 1}
        await cache.get(at())
        assert not server.ask("EXISTS", LEASE)


# Full, busy, loading, demoted


@asynccontextmanager
async def full(server):
    """A server that has no memory left, and does not evict."""
    server.ask("CONFIG", "SET", "maxmemory", 1)
    try:
        yield
    finally:
        server.ask("CONFIG", "SET", "maxmemory", 0)


async def test_a_server_without_memory_keeps_nothing_and_holds_nobody_up(server):
    async with open_cache(server.url, lease_ms=LONG_MS) as cache, open_cache(server.url, lease_ms=LONG_MS) as other:
        fill = await cache.claim(at())
        waiter = asyncio.get_running_loop().create_task(other.filled(at(), 60))
        await until_true(lambda: server.ask("EXISTS", f"{PLACE}:wait"), "it has looked")
        async with full(server):
            assert not await fill.store(an_answer())
            async with asyncio.timeout(30):
                await waiter
            assert isinstance(await cache.claim(at()), NothingKept)
            assert await cache.get(at()) is None
        assert cache.troubles == {("store", "out_of_memory"): 1, ("claim", "out_of_memory"): 1}
        assert not other.troubles
        assert await put(cache, at(), an_answer())


async def test_a_server_that_evicts_the_lease_loses_the_answer_and_nothing_else():
    with RedisServer("maxmemory 3mb", "maxmemory-policy allkeys-random") as server:
        async with open_cache(server.url, lease_ms=LONG_MS) as cache, raw(server) as route:
            fill = await cache.claim(at())
            number = 0
            while server.ask("EXISTS", LEASE):
                number += 1
                await route.execute("x", "SET", f"x{number}", bytes(50_000))
            assert not await fill.store(an_answer())
            assert cache.troubles == {("store", "lost"): 1}
            # Or it might evict the next one, too.
            server.ask("CONFIG", "SET", "maxmemory", 0)
            assert await put(cache, at(), an_answer())


async def test_a_server_that_loads_its_data_or_runs_a_long_script_is_as_one_that_is_away():
    # For half a minute, or until it is told to make haste.
    slow_to_load = ("key-load-delay 30000", "loading-process-events-interval-bytes 1024", "rdbcompression no")
    with RedisServer(*slow_to_load) as server:
        async with raw(server) as route:
            await asyncio.gather(*(route.execute("x", "SET", f"x{each}", bytes(1_000)) for each in range(1_000)))
        server.ask("SAVE")
        async with open_cache(server.url, is_listening=False) as cache:
            server.kill()
            starting = asyncio.get_running_loop().run_in_executor(None, server.start)
            # It greets nobody while it loads, so that nothing is asked of it.
            await until_true(lambda: _says(server, b"GET x", b"LOADING"), "it loads")
            assert not await everything(cache)
            assert set(cache.troubles) == {("get", "away"), ("claim", "away"), ("filled", "away")}
            await until_true(lambda: _says(server, b"CONFIG SET key-load-delay 0", b"+OK"), "it makes haste")
            await starting
            await until_true(lambda: not cache.is_away, "it is back")
            cache.troubles.clear()
            server.ask("CONFIG", "SET", "lua-time-limit", 1)
            # Over a connection that stays: every question is answered BUSY.
            loop = asyncio.get_running_loop()
            busy = loop.run_in_executor(None, _run_long, server)
            await until_true(lambda: _says(server, b"GET x", b"BUSY"), "it is busy")
            assert await cache.get(at()) is None
            assert cache.troubles == {("get", "away"): 1}
            await until_true(lambda: _says(server, b"SCRIPT KILL", b"+OK"), "it is free again")
            await busy


def _says(server, command, word):
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(command + b"\r\n")
            return word in connection.recv(1_000)
    except OSError:
        return False


def _run_long(server):
    """Until it is killed, or has gone on for half a minute, which its client does not wait for."""
    with suppress(redis.RedisError):
        server.ask(
            "EVAL",
            "local t = redis.call('TIME')[1] + 30 while redis.call('TIME')[1] < string.format('%d', t) do end return 1",
            0,
        )


async def test_a_primary_that_becomes_a_replica_answers_and_takes_nothing(server):
    async with open_cache(server.url, is_listening=False, lease_ms=LONG_MS) as cache:
        assert await put(cache, at(), an_answer())
        fill = await cache.claim(at(b"2" * 32))
        server.ask("REPLICAOF", "127.0.0.1", free_port())
        try:
            assert await cache.get(at()) is not None
            assert not await fill.store(an_answer())
            assert cache.troubles[("store", "refused")] == 1
            # Left, and met again as it is.
            await until_true(lambda: not cache.is_away, "it is back")
            assert isinstance(await cache.claim(at(b"3" * 32)), NothingKept)
            assert cache.troubles[("claim", "refused")] == 1
        finally:
            server.ask("REPLICAOF", "NO", "ONE")


# What no cache has put there


async def test_what_is_no_entry_is_a_miss_and_can_be_filled_over(server):
    async with open_cache(server.url) as cache:
        for value, reason in (
            ("no entry", "garbage"),
            ("TG\2" + "x" * 100, "version"),
            ("TG\1" + "x" * 200, "unknown_key"),
        ):
            server.ask("SET", PLACE, value)
            cache.troubles.clear()
            assert await cache.get(at()) is None
            assert cache.troubles == {("get", reason): 1}
            assert await put(cache, at(), an_answer())
            assert await cache.get(at()) is not None
        server.ask("SET", PLACE, "")
        cache.troubles.clear()
        assert await cache.get(at()) is None
        assert not cache.troubles


@pytest.mark.parametrize("suffix", ["", ":fill", ":wait"])
async def test_a_key_of_another_kind_is_garbage(server, suffix):
    async with open_cache(server.url, is_listening=False, lease_ms=LONG_MS) as cache:
        server.ask("RPUSH", f"{PLACE}{suffix}", "x")
        # Of a lease that is none it is told at once, and of another it is not the end that is shown here.
        await everything(cache, 60 if suffix == ":fill" else 0.1)
        # A list in the place of an entry or of the mark is written over; in that of a lease it is nobody's.
        assert (
            set(cache.troubles) == {"": {("get", "garbage")}, ":fill": {("filled", "garbage")}, ":wait": set()}[suffix]
        )


async def test_no_more_is_read_than_an_entry_can_have(server):
    async with run_tcp_proxy(("127.0.0.1", server.port)) as gate:
        url = f"redis://127.0.0.1:{gate.port}"
        async with open_cache(url, is_listening=False, max_payload_bytes=10_000) as cache:
            server.ask("SETRANGE", PLACE, 20_000_000, "x")
            gate.drops_replies = True
            task = asyncio.get_running_loop().create_task(cache.get(at()))
            await until_true(lambda: gate.dropped_bytes, "an answer")
            assert gate.dropped_bytes < 11_000
            gate.drops_replies = False
            await connect_anew(cache, gate)
            assert await task is None
            cache.troubles.clear()
            assert await cache.get(at()) is None
            assert cache.troubles == {("get", "garbage"): 1}


async def test_an_entry_that_was_moved_to_another_place_or_team_is_a_miss(server):
    async with open_cache(server.url) as cache:
        assert await put(cache, at(), an_answer())
        theft = at(team="b", secret=b"t" * 32)
        for address in (theft, at(digest=b"2" * 32), at(team="b")):
            server.ask("COPY", PLACE, place_of(address))
            cache.troubles.clear()
            assert await cache.get(address) is None
            assert cache.troubles == {("get", "tag"): 1}


async def test_any_bit_that_is_flipped_there_is_a_miss(server):
    async with open_cache(server.url) as cache, raw(server) as route:
        assert await put(cache, at(), an_answer(body=b"word " * 200))
        whole = await route.execute(PLACE, "GET", PLACE)
        for index in range(len(whole)):
            changed = bytearray(whole)
            changed[index] ^= 1 << index % 8
            await route.execute(PLACE, "SET", PLACE, bytes(changed))
            assert await cache.get(at()) is None
        assert sum(cache.troubles.values()) == len(whole)
        assert {operation for operation, _ in cache.troubles} == {"get"}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_bytes_of_any_kind_are_a_miss(server, content):
    async def look():
        async with open_cache(server.url, is_listening=False) as cache, raw(server) as route:
            await route.execute(PLACE, "SET", PLACE, content)
            assert await cache.get(at()) is None
            assert sum(cache.troubles.values()) == bool(content)

    asyncio.run(look())


async def test_keys_are_rotated_without_a_miss_and_one_that_is_gone_is_a_miss(server):
    old, new = bytes(range(32)), bytes(range(1, 33))
    async with (
        open_cache(server.url, keys=MasterKeys.of(old)) as before,
        open_cache(server.url, keys=MasterKeys.of(new, old)) as during,
        open_cache(server.url, keys=MasterKeys.of(new)) as after,
    ):
        assert await put(before, at(), an_answer(body=b"old"))
        assert (await during.get(at())).body == b"old"
        assert await after.get(at()) is None
        assert after.troubles == {("get", "unknown_key"): 1}
        assert await put(during, at(), an_answer(body=b"new"))
        assert (await after.get(at())).body == b"new"
        assert await before.get(at()) is None
        assert before.troubles == {("get", "unknown_key"): 1}


# Time and size


async def test_an_entry_leaves_redis_when_its_time_is_over_or_up_to_a_tenth_earlier(server):
    for jitter, least_ms, most_ms in ((0.0, 990_000, 1_000_000), (0.5, 940_000, 950_000), (1.0, 890_000, 900_000)):
        async with open_cache(server.url, is_listening=False, jitter=lambda jitter=jitter: jitter) as cache:
            assert await put(cache, at(), an_answer(ttl_ms=1_000_000))
            assert least_ms < server.ask("PTTL", PLACE) <= most_ms
            assert (await cache.get(at())).ttl_ms == most_ms


async def test_an_entry_whose_server_kept_it_too_long_is_a_miss_by_our_clock(server):
    class Clock(SystemClock):
        ahead_ms = 0

        def now_ms(self):
            return super().now_ms() + self.ahead_ms

    clock = Clock()
    async with open_cache(server.url, clock, is_listening=False) as cache:
        assert await put(cache, at(), an_answer(clock))
        server.ask("PERSIST", PLACE)
        clock.ahead_ms = 60_000
        assert await cache.get(at()) is None
        assert not cache.troubles
        clock.ahead_ms = -60_000
        assert await cache.get(at()) is None
        assert cache.troubles == {("get", "clock"): 1}


async def test_an_answer_that_came_too_late_or_is_too_large_is_not_kept(server):
    async with open_cache(server.url, is_listening=False, max_payload_bytes=10_000, lease_ms=LONG_MS) as cache:
        old = an_answer()
        assert not await put(cache, at(), msgspec.structs.replace(old, stored_at_ms=old.stored_at_ms - 60_000))
        assert not cache.troubles
        assert not await put(cache, at(), an_answer(body=b"x" * 10_000))
        assert cache.troubles == {("store", "too_large"): 1}
        await cache.get(at())
        assert server.ask("KEYS", "*") == []


# A server that holds limits as well


async def test_answers_leave_the_limits_their_memory(server):
    async with raw(server) as route:
        room = Room(route)
        async with open_cache(server.url, is_listening=False, has_room=room.at) as cache:
            await room.look()
            assert await put(cache, at(), an_answer())
            used = int(server.ask("INFO", "memory")["used_memory"])
            try:
                # More than is used, which changes with the connections that there are, and not by the part for others.
                server.ask("CONFIG", "SET", "maxmemory", int(used * (1 + 1 / PART_FOR_ANSWERS) / 2))
                await room.look()
                assert not await put(cache, at(), an_answer())
                assert cache.troubles == {("store", "out_of_memory"): 1}
                server.ask("CONFIG", "SET", "maxmemory", used * 4)
                await room.look()
                assert await put(cache, at(), an_answer())
            finally:
                server.ask("CONFIG", "SET", "maxmemory", 0)


async def test_what_is_known_of_its_memory_stays_while_it_does_not_say():
    with RedisServer("maxmemory 1mb") as server:
        async with raw(server) as route:
            room = Room(route)
            await room.look()
            assert not room.at(PLACE)
            server.kill()
            await until_true(lambda: not route.primaries()[0].is_up, "it is away")
            await room.look()
            assert not room.at(PLACE)
