"""Engines a port's contract is held against, and the clock they are driven by."""

from contextlib import ExitStack

import pytest

from tests.support.limiter_engines import HandClock, memory_engine, redis_engine
from tests.support.redis_server import RedisServer, all_servers, eventually


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
async def engine(request, clock, redis_servers):
    """An empty limiter on `clock`, of each engine in turn."""
    if request.param == "memory":
        yield memory_engine(clock)
        return
    if request.param == "cluster":
        server = redis_servers(all_servers()[0], "cluster-enabled yes")
        url = f"redis+cluster://127.0.0.1:{server.port}"
    else:
        server = redis_servers(all_servers()[int(request.param.split()[1])])
        url = server.url
    server.ask("FLUSHALL")
    async with redis_engine(url, clock) as running:
        yield running


@pytest.fixture
def limiter(engine):
    return engine.limiter
