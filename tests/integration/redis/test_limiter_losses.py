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
    connect_seconds=10.0,
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


@pytest.fixture(scope="module")
def alone():
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="module")
def cluster_of_one():
    with RedisServer("cluster-enabled yes") as server:
        server.ask("CLUSTER", "ADDSLOTS", *range(16_384))
        eventually(lambda: "cluster_state:ok" in server.ask("CLUSTER", "INFO"), "a cluster of one")
        yield server


@asynccontextmanager
async def run_lossy(server, topology):
    """The proxy before a server that is emptied, and a route that knows no other way to it."""
    server.ask("FLUSHALL")
    async with run_tcp_proxy(server.socket) as proxy:
        if topology == "redis+cluster":
            server.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        async with open_route(f"{topology}://127.0.0.1:{proxy.port}", HASTY) as route:
            assert [primary.address.port for primary in route.primaries()] == [proxy.port]
            yield proxy, route


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
async def test_never_less_is_charged_than_was_used(request, topology, policy, seed):
    server = request.getfixturevalue("cluster_of_one" if topology == "redis+cluster" else "alone")
    chance = random.Random(seed)
    async with run_lossy(server, topology) as (proxy, route):
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

        # On a slow machine little is answered in time: it goes on until enough has been, and enough has not.
        for step_number in range(5_000):
            if step_number >= 200 and requests > 10 and (policy == "closed" or len(by_part) > 10):
                break
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

        def short():
            counted = charged(server)
            return max(requests - counted[0], tokens - counted[1])

        try:
            async with asyncio.timeout(40):
                while short() > 0:
                    # What is owed is sent with the next question.
                    await reserve(limiter, Cost(0, 0))
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"less is charged than was used: {short()}") from None
        assert len(by_part) > 10 or policy == "closed"
        assert requests > 10, "a history in which hardly anything passed shows nothing"
