from contextlib import contextmanager

import pytest

from proxy.adapters.redis.address import Address
from proxy.adapters.redis.outcomes import NeverSent, Why
from proxy.adapters.redis.single import OnePrimary, stays_at
from proxy.adapters.redis.subscriber import subscribe
from tests.support.redis_route import PATIENT, open_route, until_async, until_true
from tests.support.redis_server import RedisServer, all_servers, eventually, free_port, give_up_soon, run_sentinel
from tests.support.tasks import Tasks


@contextmanager
def watched(binary):
    """A primary, its replica, and a sentinel that knows both."""
    with (
        RedisServer(binary=binary) as primary,
        RedisServer(f"replicaof 127.0.0.1 {primary.port}", binary=binary) as replica,
    ):
        eventually(lambda: replica.ask("INFO")["master_link_status"] == "up", "the replica follows")
        with run_sentinel(primary) as sentinel:
            eventually(lambda: promotable(sentinel), "the sentinel holds the replica fit to be promoted")
            yield primary, replica, sentinel


def promotable(sentinel):
    for replica in sentinel.ask("SENTINEL", "REPLICAS", "mymaster"):
        said = replica if isinstance(replica, dict) else dict(zip(replica[::2], replica[1::2], strict=True))
        return said["flags"] == "slave" and said["master-link-status"] == "ok"
    return False


@pytest.mark.parametrize("binary", all_servers())
async def test_a_new_primary_is_found_when_the_old_one_dies(binary):
    with watched(binary) as (primary, replica, sentinel):
        tasks, heard, subscribed = Tasks(), [], []
        # The first sentinel of the list is down.
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}/mymaster"
        async with open_route(url, tasks=tasks) as route:
            listener = subscribe(route.locate, "c", heard.append, tasks, on_subscribed=lambda: subscribed.append(1))
            await until_true(lambda: subscribed, "the channel is joined")
            assert await route.execute("k", "SET", "k", "before") == b"OK"
            assert route.route("k").address.port == primary.port
            assert await route.execute("k", "WAIT", 1, 5_000) == 1
            primary.kill()
            give_up_soon(sentinel)
            await until_async(lambda: route.execute("k", "SET", "n", "after"), "a primary takes writes")
            assert route.route("k").address.port == replica.port
            assert await route.execute("k", "GET", "k") == b"before"
            await until_true(lambda: len(subscribed) >= 2, "the channel is joined on the new primary")
            await until_async(lambda: route.execute("k", "PUBLISH", "c", "hello"), "a message is published")
            await until_true(lambda: b"hello" in heard, "the message is heard")
            await listener.close()


@pytest.mark.parametrize("binary", all_servers())
async def test_a_primary_that_is_demoted_and_lives_is_left(binary):
    with watched(binary) as (primary, replica, sentinel):
        async with open_route(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster") as route:
            await route.execute("k", "SET", "k", "before")
            sentinel.ask("SENTINEL", "FAILOVER", "mymaster")

            async def on_the_new_one():
                await route.execute("k", "SET", "k", "after")
                if route.route("k").address.port != replica.port:
                    raise NeverSent(Why.AWAY, "still on the old one")

            await until_async(on_the_new_one, "writes go to the new primary")
            # Nobody has told the old one yet: its connection was left because a sentinel announced the switch.
            assert primary.ask("INFO")["role"] == "master"
            assert await route.execute("k", "GET", "k") == b"after"


async def test_a_replica_is_not_taken_for_a_primary():
    with RedisServer() as primary, RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        tasks = Tasks()
        route = OnePrimary(stays_at(Address(port=replica.port)), tasks, PATIENT, primary_only=True)
        with pytest.raises(NeverSent, match="no primary"):
            await route.open()
        replica.ask("REPLICAOF", "NO", "ONE")
        assert await until_async(lambda: route.execute("k", "SET", "k", 1), "it is taken once it is one") == b"OK"
        await route.close()
        await tasks.finished()


async def test_the_reasons_of_all_sentinels_are_told_when_none_knows():
    with RedisServer() as primary, run_sentinel(primary, "other") as sentinel:
        nobody = free_port()
        with pytest.raises(NeverSent) as caught:
            async with open_route(f"redis+sentinel://127.0.0.1:{nobody},127.0.0.1:{sentinel.port}/mymaster"):
                pass
        assert f"127.0.0.1:{sentinel.port} watches no mymaster" in str(caught.value)
        assert f"127.0.0.1:{nobody}" in str(caught.value)


async def test_primary_and_sentinel_may_know_us_by_different_passwords():
    with RedisServer("requirepass one") as primary:
        watch = f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1"
        with RedisServer(watch, "sentinel auth-pass mymaster one", "requirepass two", sentinel=True) as sentinel:
            url = f"redis+sentinel://:one@127.0.0.1:{sentinel.port}/mymaster/5?sentinel_password=two"
            async with open_route(url) as route:
                await route.execute("k", "SET", "k", 1)
                assert b"db=5" in await route.execute("k", "CLIENT", "LIST", "TYPE", "NORMAL")
