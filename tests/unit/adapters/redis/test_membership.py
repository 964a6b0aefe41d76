"""Which workers a worker sees, on a real server."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.adapters.redis.membership import GONE_MS, Membership
from proxy.adapters.redis.scripts import Scripts
from proxy.core.share import Part, part_of
from tests.support.redis_route import open_route, until_true
from tests.support.redis_server import RedisServer

KEY = "tollgate:workers"


class Heard:
    def __init__(self):
        self.said = []

    def answered(self):
        self.said.append("answered")

    def silent(self):
        self.said.append("silent")


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
async def join(server):
    """Workers on one server that has forgotten all earlier ones."""
    server.ask("FLUSHALL")
    async with AsyncExitStack() as stack:
        route = await stack.enter_async_context(open_route(server.url))

        def new(name, declared=1):
            return Membership(Scripts(route), name, declared, lambda *_: None, Heard())

        yield new


async def test_ranks_are_those_of_the_names_and_all_differ(join):
    workers = [join(name) for name in ("b", "c", "a")]
    for _ in range(2):
        for worker in workers:
            await worker.beat()
    assert [worker.part for worker in workers] == [Part(1, 3), Part(2, 3), Part(0, 3)]


async def test_workers_that_are_declared_and_not_there_keep_their_parts(join):
    worker = join("a", declared=4)
    await worker.beat()
    assert worker.part == Part(0, 4)


async def test_more_than_are_declared_count(join):
    workers = [join(name, declared=2) for name in ("a", "b", "c")]
    for worker in (*workers, *workers):
        await worker.beat()
    assert {worker.part for worker in workers} == {Part(0, 3), Part(1, 3), Part(2, 3)}


async def test_one_that_is_silent_for_too_long_is_gone(join, server):
    worker = join("a")
    await join("b").beat()
    await worker.beat()
    assert worker.part.workers == 2
    server.ask("ZINCRBY", KEY, -GONE_MS - 1, "b")
    await worker.beat()
    assert worker.part == Part(0, 1)


async def test_nothing_is_left_when_all_are_gone(join, server):
    await join("a").beat()
    assert 0 < server.ask("PTTL", KEY) <= GONE_MS


async def test_who_was_never_heard_holds_the_smallest_part(join):
    assert join("a", declared=3).part == Part(2, 3)


@given(st.integers(0, 10_000), st.integers(1, 300))
def test_those_smallest_parts_add_up_to_no_more_than_the_limit(limit, declared):
    assert declared * part_of(limit, Part(declared - 1, declared)) <= limit


async def test_what_was_seen_last_holds_while_the_server_is_away_and_it_is_told():
    failures, heard = [], Heard()
    with RedisServer() as server:
        async with open_route(server.url) as route:
            other = Membership(Scripts(route), "b", 1, lambda *_: None, Heard())
            worker = Membership(Scripts(route), "a", 1, lambda *failed: failures.append(failed), heard)
            await other.beat()
            await worker.beat()
            server.kill()
            await until_true(lambda: not route.primaries()[0].is_up, "the loss is noticed")
            await worker.beat()
            assert worker.part == Part(0, 2)
            assert failures == [("limiter", "heartbeat")]
            assert heard.said == ["answered", "silent"]
            server.start()
            await until_true(lambda: route.primaries()[0].is_up, "it is back")
            # It has forgotten the other, who may see it back later than we do: as long as one may be silent.
            for _ in range(GONE_MS // 1_000):
                await worker.beat()
                assert (worker.part, heard.said[-1]) == (Part(0, 2), "answered")
            await worker.beat()
            assert worker.part == Part(0, 1)
            await other.beat()
            await worker.beat()
            assert worker.part == Part(0, 2)


async def test_who_joins_while_others_are_missing_counts_at_once(join, server):
    worker = join("a")
    await worker.beat()
    worker._beats_to_wait = 3
    await join("b").beat()
    await worker.beat()
    assert worker.part == Part(0, 2)


async def test_each_coming_and_going_is_told_apart(join, server):
    worker, seen = join("a"), []
    for change in (lambda: None, lambda: None, lambda: server.ask("ZADD", KEY, 10**13, "b"), lambda: None):
        change()
        await worker.beat()
        seen.append(worker.part)
    assert seen[0].still_is(seen[1])
    assert not seen[1].still_is(seen[2])
    server.ask("ZREM", KEY, "b")
    await worker.beat()
    assert worker.part == seen[0]
    assert not worker.part.still_is(seen[0])


async def test_one_that_was_heard_before_the_clock_was_set_back_is_gone_in_its_time(join, server):
    seconds, _ = server.ask("TIME")
    server.ask("ZADD", KEY, (int(seconds) + 3_600) * 1_000, "b")
    worker = join("a")
    await worker.beat()
    assert worker.part.workers == 2
    seconds, micros = server.ask("TIME")
    assert float(server.ask("ZSCORE", KEY, "b")) <= int(seconds) * 1_000 + int(micros) // 1_000
    server.ask("ZINCRBY", KEY, -GONE_MS - 1, "b")
    await worker.beat()
    assert worker.part.workers == 1
