import asyncio
import socket
from contextlib import contextmanager

import pytest
from redis.crc import key_slot

from proxy.adapters.redis.cache import place_of
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent
from proxy.adapters.redis.scripts import Script, Scripts
from proxy.adapters.redis.subscriber import subscribe
from proxy.app import limiting
from tests.support.cache_build import an_answer, at, open_cache
from tests.support.redis_route import open_route, until_async, until_true
from tests.support.redis_server import all_servers, free_port, run_redis_cluster, server_binary
from tests.support.tasks import Tasks

INCREMENT = Script("increment", "return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture(scope="module", params=all_servers())
def nodes(request):
    with run_redis_cluster(request.param) as running:
        yield running


def url_of(nodes):
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


def node_at(nodes, multiplexer):
    return next(node for node in nodes if node.port == multiplexer.address.port)


@contextmanager
def migrating(nodes, key):
    """The slot of a key on its way from its primary to another, which are given; it stays where it was."""
    slot = key_slot(key.encode())
    source = next(n for n in nodes for first, last, (_, port, *_), *_ in n.ask("CLUSTER", "SLOTS")
                  if first <= slot <= last and port == n.port)  # fmt: skip
    target = next(node for node in nodes if node is not source)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))
    try:
        yield source, target
    finally:
        for node in (source, target):
            node.ask("CLUSTER", "SETSLOT", slot, "STABLE")


def hand_over(nodes, key, target):
    # Of two that claim a slot the greater epoch wins, should they hear of each other in between.
    target.ask("CLUSTER", "BUMPEPOCH")
    for node in (target, *nodes):
        node.ask("CLUSTER", "SETSLOT", key_slot(key.encode()), "NODE", target.ask("CLUSTER", "MYID"))


async def test_a_seed_that_says_nothing_leaves_time_to_ask_another(nodes, monkeypatch):
    monkeypatch.setattr(limiting, "_PATIENCE_SECONDS", 8.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"redis+cluster://127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{nodes[1].port}"
        facts = []
        await asyncio.to_thread(limiting.probe, url, lambda seen: [facts.extend(seen)])
        assert {fact.address for fact in facts} == {f"127.0.0.1:{node.port}" for node in nodes}


async def test_each_key_goes_to_its_primary_and_a_team_stays_together(nodes):
    # One seed is enough, and one that is down does no harm.
    async with open_route(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{nodes[1].port}") as route:
        keys = [f"{{team-{number}}}:tokens" for number in range(60)]
        assert await asyncio.gather(*(route.execute(key, "SET", key, 1) for key in keys)) == [b"OK"] * 60
        assert len(route.primaries()) == 3
        assert {route.route(key) for key in keys} == set(route.primaries())
        assert all(route.route(key) is route.route(key.replace("tokens", "requests")) for key in keys)
        for key in keys:
            assert node_at(nodes, route.route(key)).ask("GET", key) == "1"


async def test_every_primary_tells_its_facts(nodes):
    async with open_route(url_of(nodes)) as route:
        facts = await route.facts()
    assert {fact.address for fact in facts} == {f"127.0.0.1:{node.port}" for node in nodes}
    assert {(fact.role, fact.is_cluster) for fact in facts} == {("master", True)}


async def test_a_slot_that_has_moved_is_followed_once_and_remembered(nodes):
    key = "{moved}"
    async with open_route(url_of(nodes)) as route:
        assert await route.execute(key, "INCR", key) == 1
        source = node_at(nodes, route.route(key))
        source.ask("DEL", key)
        target = next(node for node in nodes if node is not source)
        hand_over(nodes, key, target)
        assert await route.execute(key, "INCR", key) == 1
        assert route.route(key).address.port == target.port
        assert await route.route(key).execute("INCR", key) == 2
        # Back again, and a post is followed as well.
        target.ask("DEL", key)
        hand_over(nodes, key, source)
        failures = []
        assert route.post(key, "INCRBY", key, 7, on_failure=failures.append)
        await until_true(lambda: source.ask("GET", key) == "7", "the post arrives")
        assert failures == []


async def test_a_slot_that_is_moving_is_asked_for_and_the_map_stays(nodes):
    key = "{moving}"
    async with open_route(url_of(nodes)) as route:
        await route.execute(key, "PING")
        with migrating(nodes, key) as (source, target):
            # Absent at the source, so it is the target's from now on.
            assert await route.execute(key, "INCR", key) == 1
            assert await asyncio.gather(*(route.execute(key, "INCR", key) for _ in range(20))) == list(range(2, 22))
            failures = []
            route.post(key, "INCRBY", key, 100, on_failure=failures.append)
            await until_async(lambda: still(route, key, b"121"), "the post arrives")
            assert failures == []
            assert route.route(key).address.port == source.port
            assert target.calls("asking") >= 22
            assert await route.execute(key, "DEL", key) == 1


async def still(route, key, value):
    if await route.execute(key, "GET", key) != value:
        raise ErrorReply("ERR", "not yet")


async def test_a_script_runs_once_on_whichever_node_it_is_led_to(nodes):
    key = "{script}"
    async with open_route(url_of(nodes)) as route:
        scripts = Scripts(route)
        for node in nodes:
            node.ask("SCRIPT", "FLUSH")
        with migrating(nodes, key):
            assert await scripts.run(INCREMENT, [key], [5]) == 5
            assert await scripts.run(INCREMENT, [key], [5]) == 10
            await route.execute(key, "DEL", key)
        await scripts.load([INCREMENT])
        assert [node.ask("SCRIPT", "EXISTS", INCREMENT.digest) for node in nodes] == [[True]] * 3


async def test_an_answer_is_kept_though_its_slot_has_moved_since_the_claim(nodes):
    address = at(b"moved" * 6)
    place = place_of(address)
    async with open_cache(url_of(nodes)) as cache:
        fill = await cache.claim(address)
        with migrating(nodes, place) as (source, target):
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", f"{place}:fill")
            hand_over(nodes, place, target)
        assert await fill.store(an_answer(body=b"moved"))
        assert (await cache.get(address)).body == b"moved"
        assert target.ask("EXISTS", place) == 1
        assert not cache.troubles


async def test_a_fill_whose_slot_is_half_moved_is_a_miss_and_is_counted(nodes):
    address = at(b"half" * 8)
    place = place_of(address)
    async with open_cache(url_of(nodes), lease_ms=1_000) as cache:
        fill = await cache.claim(address)
        with migrating(nodes, place):
            # The lease is still here; of a command that names absent keys beside it nobody knows where they are.
            assert not await fill.store(an_answer())
            assert await cache.get(address) is None
        assert [operation for operation, _ in cache.troubles if operation == "store"] == ["store"]
        # The lease could not be given back either, and runs out.
        await until_async(lambda: kept(cache, address), "the address is free again")


async def kept(cache, address):
    fill = await cache.claim(address)
    if fill is None or not await fill.store(an_answer(body=b"in the end")):
        raise ErrorReply("ERR", "not yet")


async def test_keys_of_two_slots_in_one_command_are_refused(nodes):
    async with open_route(url_of(nodes)) as route:
        with pytest.raises(ErrorReply) as caught:
            await route.execute("a", "MGET", "a", "b")
        assert caught.value.code == "CROSSSLOT"


async def test_a_message_is_heard_wherever_it_is_published(nodes):
    tasks, heard, subscribed = Tasks(), [], []
    async with open_route(url_of(nodes), tasks=tasks) as route:
        listener = subscribe(route.locate, "c", heard.append, tasks, on_subscribed=lambda: subscribed.append(1))
        await until_true(lambda: subscribed, "the channel is joined")
        for index, node in enumerate(nodes):
            node.ask("PUBLISH", "c", index)
        await until_true(lambda: sorted(heard) == [b"0", b"1", b"2"], "all messages are heard")
        await listener.close()


async def test_without_any_node_the_route_does_not_open_and_says_why():
    port = free_port()
    with pytest.raises(NeverSent, match=f"127.0.0.1:{port}"):
        async with open_route(f"redis+cluster://127.0.0.1:{port}"):
            pass


async def test_a_replica_takes_the_place_of_a_dead_primary():
    with run_redis_cluster(server_binary(), replicas_of_first=1) as nodes:
        first, replica = nodes[0], nodes[3]
        key = next(key for key in map(str, range(100)) if key_slot(key.encode()) < 5_000)
        other = next(key for key in map(str, range(100)) if key_slot(key.encode()) > 11_000)
        async with open_route(url_of(nodes)) as route:
            await route.execute(key, "SET", key, "before")
            assert await route.execute(key, "WAIT", 1, 5_000) == 1
            first.kill()
            # The others' slots are served meanwhile.
            assert await route.execute(other, "SET", other, 1) == b"OK"
            for node in nodes[1:]:
                node.ask("CONFIG", "SET", "cluster-node-timeout", 1_000)
            await until_async(lambda: route.execute(key, "INCR", f"n:{{{key}}}"), "the slots are served again", 30.0)
            assert await route.execute(key, "GET", key) == b"before"
            assert route.route(key).address.port == replica.port
            await until_true(lambda: len(route.primaries()) == 3, "the dead one is forgotten")
