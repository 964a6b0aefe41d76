"""Engines a port's contract is held against, and the clock they are driven by."""

from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import pytest

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command, on_hand_clock, scripts_with
from tests.support.redis_route import open_route
from tests.support.redis_server import RedisServer, all_servers, eventually


@dataclass
class HandClock:
    """A clock that moves when it is told to, and tells a server that goes by it."""

    wall_ms: int = FAR_AHEAD_MS
    monotonic_ms: int = 5_000_000
    on_change: Callable[[int], None] = field(default=lambda now_ms: None, repr=False)

    def now_ms(self):
        return self.wall_ms

    def monotonic_ns(self):
        return self.monotonic_ms * 1_000_000

    def advance(self, passed_ms):
        """Let time pass."""
        self.monotonic_ms += passed_ms
        self.step(passed_ms)

    def step(self, by_ms):
        """Set the wall clock, as an operator or a time daemon does."""
        self.wall_ms += by_ms
        self.on_change(self.wall_ms)


@pytest.fixture
def clock():
    return HandClock()


@pytest.fixture(scope="session")
def redis_servers():
    """One server of each binary there is, started when it is first asked for."""
    with ExitStack() as stack:
        servers = {}

        def server(binary, *options):
            if (binary, options) not in servers:
                running = stack.enter_context(RedisServer(*options, binary=binary))
                if "cluster-enabled yes" in options:
                    running.ask("CLUSTER", "ADDSLOTS", *range(16_384))
                    eventually(lambda: "cluster_state:ok" in running.ask("CLUSTER", "INFO"), "a cluster of one")
                servers[binary, options] = running
            return servers[binary, options]

        yield server


ENGINES = ["memory", *[f"redis {number}" for number in range(len(all_servers()))], "cluster"]


@pytest.fixture(params=ENGINES)
async def limiter(request, clock, redis_servers):
    """An empty limiter on `clock`, of each engine in turn."""
    if request.param == "memory":
        yield MemoryLimiter(clock)
        return
    failures = Counter()
    async with AsyncExitStack() as stack:
        yield await redis_limiter(stack, request.param, clock, redis_servers, failures)
    assert not failures


async def redis_limiter(stack, engine, clock, redis_servers, failures):
    if engine == "cluster":
        server = redis_servers(all_servers()[0], "cluster-enabled yes")
        url = f"redis+cluster://127.0.0.1:{server.port}"
    else:
        server = redis_servers(all_servers()[int(engine.split()[1])])
        url = f"redis://127.0.0.1:{server.port}"
    server.ask("FLUSHALL")
    route = await stack.enter_async_context(open_route(url))

    def tell(now_ms):
        # Queued behind what was posted before, so that this is still carried out at its own time.
        assert route.post("hand", *clock_command(now_ms))

    clock.on_change = tell
    tell(clock.now_ms())
    limiter = RedisLimiter(
        Scripts(route),
        clock,
        Closed(),
        lambda store, operation: failures.update([(store, operation)]),
        verbs=scripts_with(on_hand_clock),
    )
    await limiter.load()
    return limiter
