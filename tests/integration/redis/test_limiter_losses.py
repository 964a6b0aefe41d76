"""Whatever is lost on the way, never less is charged than was used."""

import asyncio
import random
from contextlib import asynccontextmanager

import pytest
import redis

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.bucket_state import bucket_key, unpack_state
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import RedisFailure
from proxy.adapters.redis.scripts import Scripts
from proxy.adapters.redis.share import Share
from proxy.adapters.redis.wire import Bounds
from proxy.core.breaker import BreakerPolicy
from proxy.core.bucket import UNITS, Admitted, Cost, Scope
from proxy.core.errors import StoreAway
from proxy.core.share import Part
from proxy.core.tiers import Limits, Schedule
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import open_route, until_true
from tests.support.redis_server import RedisServer, eventually

# So slow that nothing comes back while a test runs.
LIMITS = Limits(1, 1, 100_000, 100_000_000)
SCOPES = (Scope("team", Schedule(LIMITS, LIMITS)),)
HASTY = MultiplexerOptions(
    Bounds(deadline_seconds=0.02, silence_seconds=0.1),
    BreakerPolicy(failures_to_open=1_000),
    first_backoff_seconds=0.005,
    max_backoff_seconds=0.02,
)
STEPS = ("reserve",) * 8 + ("settle",) * 6 + ("leave", "cut", "hold", "release", "release")


def charged(server):
    """Requests and tokens that are used in the bucket, rounded up."""
    with redis.Redis(unix_socket_path=server.socket) as client:
        packed = client.get(bucket_key("a", "team"))
    if packed is None:
        return 0, 0
    state = unpack_state(packed)
    return -(-state[2] // UNITS), -(-state[4] // UNITS)


async def reserve(limiter, cost, *, leave=False):
    """A reservation, or None where there was no answer in time, or nobody waited for it."""
    task = asyncio.create_task(limiter.reserve("a", SCOPES, cost))
    if leave:
        await asyncio.sleep(0)
        task.cancel()
    try:
        decision = await task
    except (StoreAway, asyncio.CancelledError):
        return None
    assert isinstance(decision, Admitted)
    return decision.reservation


async def answers(limiter):
    try:
        await limiter.load()
    except RedisFailure:
        return False
    return True


@asynccontextmanager
async def run_lossy(topology):
    """A server, the proxy before it, and a route that knows no other way to it."""
    is_cluster = topology == "redis+cluster"
    with RedisServer(*(["cluster-enabled yes"] if is_cluster else [])) as server:
        async with run_tcp_proxy(server.socket) as proxy:
            if is_cluster:
                server.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
                server.ask("CLUSTER", "ADDSLOTS", *range(16_384))
                eventually(lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), "a cluster of one")
            async with open_route(f"{topology}://127.0.0.1:{proxy.port}", HASTY) as route:
                assert [primary.address.port for primary in route.primaries()] == [proxy.port]
                yield server, proxy, route


def share_of_one(scripts, decided):
    """The policy that goes on without the store, of a worker without others."""
    return Share(SystemClock(), lambda: Part(0, 1), decided, away=lambda team: scripts.away(bucket_key(team, "team")))


@pytest.mark.parametrize(
    ("topology", "policy", "seed"),
    [
        *(("redis", "closed", seed) for seed in range(8)),
        *(("redis", "share", seed) for seed in range(8)),
        *(("redis+cluster", "closed", seed) for seed in range(3)),
        *(("redis+cluster", "share", seed) for seed in range(3)),
    ],
)
async def test_never_less_is_charged_than_was_used(topology, policy, seed):
    chance = random.Random(seed)
    async with run_lossy(topology) as (server, proxy, route):
        scripts, by_part = Scripts(route), []
        fallback = Closed() if policy == "closed" else share_of_one(scripts, lambda: by_part.append(1))
        async with open_route(server.url) as steady:
            # Who is alone goes on where the bucket was seen, and has to have seen it.
            seeing = RedisLimiter(Scripts(steady), SystemClock(), fallback, lambda *_: None, deny_ms=0)
            assert await reserve(seeing, Cost(0, 0)) is not None
        limiter = RedisLimiter(scripts, SystemClock(), fallback, lambda *_: None, deny_ms=0)
        under_way, requests, tokens = [], 0, 0

        def settle(reservation):
            nonlocal requests, tokens
            actual = chance.choice((0, 100, 300, 2_000))
            limiter.settle(reservation, Cost(1, actual))
            requests, tokens = requests + 1, tokens + actual

        for _ in range(200):
            match chance.choice(STEPS):
                case "cut":
                    proxy.cut()
                    if chance.random() < 0.8:
                        proxy.release_replies()
                        await until_true(lambda: route.primaries()[0].is_up, "it is connected again")
                case "hold":
                    proxy.hold_replies()
                case "release":
                    proxy.release_replies()
                case "settle" if under_way:
                    settle(under_way.pop(chance.randrange(len(under_way))))
                case step:
                    reservation = await reserve(limiter, Cost(1, 300), leave=step == "leave")
                    if reservation is not None:
                        under_way.append(reservation)
        for reservation in under_way:
            settle(reservation)
        proxy.release_replies()
        for _ in range(100):
            # What is owed is sent with the next question.
            if await answers(limiter) and await reserve(limiter, Cost(0, 0)) is not None:
                break
            await asyncio.sleep(0.02)

        def short():
            counted = charged(server)
            return max(requests - counted[0], tokens - counted[1])

        await until_true(lambda: short() <= 0, "no less is charged than was used")
        assert len(by_part) > 10 or policy == "closed"
        assert requests > 10, "a history in which hardly anything passed shows nothing"
