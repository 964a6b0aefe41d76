"""The scripts on a cluster, and on a replica that follows."""

import random
from collections import Counter

import pytest
import redis
from redis.crc import key_slot

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.bucket_state import bucket_key, places_key
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.core.bucket import Admitted, Cost, Refused, Scope
from proxy.core.tiers import Limits, Schedule
from tests.support.redis_route import open_route
from tests.support.redis_server import RedisServer, all_servers, eventually, run_redis_cluster

LIMITS = Limits(1, 1, 5, 1_000)
SCOPES = tuple(Scope(name, Schedule(LIMITS, LIMITS), 9) for name in ("team", "key:k", "model:{m}"))
IDS = [f"server {number}" for number in range(len(all_servers()))]


def limiter_on(route, failures):
    return RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda store, verb: failures.update([verb]), deny_ms=0)


async def test_every_team_has_its_buckets_on_one_node_of_a_cluster_and_teams_spread():
    failures = Counter()
    teams = [f"team {number}" for number in range(30)] + ["", "{", "}", "{}", "a}b{c"]
    with run_redis_cluster() as nodes:
        async with open_route(f"redis+cluster://127.0.0.1:{nodes[0].port}") as route:
            limiter = limiter_on(route, failures)
            await limiter.load()
            for team in teams:
                for _ in range(5):
                    decision = await limiter.reserve(team, SCOPES, Cost(1, 200))
                    assert isinstance(decision, Admitted)
                assert isinstance(await limiter.reserve(team, SCOPES, Cost(1, 1)), Refused)
                limiter.settle(decision.reservation, Cost(0, 100))
                limiter.charge(team, SCOPES, Cost(0, 50))
                for standing in await limiter.peek(team, SCOPES):
                    assert (standing.requests.remaining, standing.tokens.remaining) == (1, 50)
        held = [node.ask("DBSIZE") for node in nodes]
    assert not failures
    assert sum(held) == len(teams) * 2 * len(SCOPES)
    assert min(held) > 0
    slots = {
        team: {key_slot(key(team, scope.name).encode()) for scope in SCOPES for key in (bucket_key, places_key)}
        for team in teams
    }
    assert {len(of_team) for of_team in slots.values()} == {1}
    assert len(set.union(*slots.values())) == len(teams)


@pytest.mark.parametrize("binary", all_servers(), ids=IDS)
async def test_a_replica_holds_what_its_primary_holds(binary):
    chance, failures = random.Random(7), Counter()
    with RedisServer("repl-diskless-sync-delay 0", binary=binary) as primary, RedisServer(binary=binary) as replica:
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        eventually(lambda: replica.ask("INFO", "replication")["master_link_status"] == "up", "it follows")
        async with open_route(primary.url) as route:
            limiter = limiter_on(route, failures)
            for _ in range(500):
                team, scopes = f"team {chance.randrange(9)}", SCOPES[: chance.randint(1, 3)]
                decision = await limiter.reserve(team, scopes, Cost(1, chance.randint(0, 300)))
                if isinstance(decision, Admitted) and chance.random() < 0.95:
                    limiter.settle(decision.reservation, Cost(chance.randint(0, 1), chance.randint(0, 400)))
                elif chance.random() < 0.1:
                    limiter.charge(team, scopes, Cost(0, 10))
            await limiter.peek("team 0", SCOPES)
        primary.ask("WAIT", 1, 10_000)
        eventually(lambda: replica.ask("DBSIZE") == primary.ask("DBSIZE"), "it has caught up")
        eventually(lambda: everything(replica) == everything(primary), "both hold the same")
    assert not failures


def everything(server):
    with redis.Redis(unix_socket_path=server.socket) as client:
        keys = sorted(client.keys())
        assert keys
        leases = {key: client.zrange(key, 0, -1, withscores=True) for key in keys if client.type(key) == b"zset"}
        assert leases
        return dict(zip(keys, client.mget(keys), strict=True)) | leases
