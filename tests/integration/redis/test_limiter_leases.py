"""Places in the store: whose they are, for how long, and what becomes of them when something goes wrong."""

import asyncio
import os
import socket
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis import limiter as limiter_module
from proxy.adapters.redis.bucket_state import bucket_key, places_key
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.leases import LEASE_MS
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.app import open_database
from proxy.app.worker import serving
from proxy.core.bucket import Admitted, Cost, Dimension, Refused, Scope
from proxy.core.errors import StoreAway
from proxy.core.tiers import Limits, Schedule
from proxy.settings import load
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.limiter_build import FAR_AHEAD_MS, clock_command, on_hand_clock, scripts_with
from tests.support.redis_route import in_haste, open_route, until_true
from tests.support.redis_server import RedisServer, all_servers

NONE = Schedule(Limits(), Limits())
SCOPES = (Scope("team", NONE, 1), Scope("key:k", NONE, 2))
PLACES = [places_key("a", scope.name) for scope in SCOPES]
ONE = Cost(1, 10)
IDS = [f"server {number}" for number in range(len(all_servers()))]


@pytest.fixture(params=all_servers(), ids=IDS)
def server(request):
    with RedisServer(binary=request.param) as running:
        yield running


class HandTime:
    """The server's clock."""

    def __init__(self, server):
        self.server = server
        self.now_ms = FAR_AHEAD_MS
        self.go_on(0)

    def go_on(self, by_ms):
        self.now_ms += by_ms
        self.server.ask(*clock_command(self.now_ms))


@asynccontextmanager
async def workers(server, number=2, verbs=None, url=None):
    """Limiters of as many processes, which ask the store every time; what failed is counted for all of them."""
    failures = Counter()
    async with AsyncExitStack() as stack:
        limiters = []
        for _ in range(number):
            route = await stack.enter_async_context(open_route(url or server.url))
            limiter = RedisLimiter(
                Scripts(route),
                SystemClock(),
                Closed(),
                lambda _, verb: failures.update([verb]),
                verbs=verbs or scripts_with(on_hand_clock),
                deny_ms=0,
                worker="host:1",
            )
            await limiter.load()
            limiters.append(limiter)
        yield (*limiters, failures)


async def admit(limiter):
    decision = await limiter.reserve("a", SCOPES, ONE)
    assert isinstance(decision, Admitted)
    return decision.reservation


async def is_full(limiter):
    decision = await limiter.reserve("a", SCOPES, ONE)
    if isinstance(decision, Refused):
        assert (decision.scope, decision.dimension) == ("team", Dimension.PARALLEL)
        return True
    limiter.settle(decision.reservation, ONE)
    await limiter.peek("a", SCOPES)
    return False


async def test_who_dies_keeps_its_place_until_its_lease_expires(server):
    time = HandTime(server)
    async with workers(server) as (dying, other, failures):
        await admit(dying)
        time.go_on(LEASE_MS - 1)
        assert await is_full(other)
        time.go_on(1)
        assert not await is_full(other)
    assert not failures


async def test_who_lives_keeps_its_place_for_as_long_as_its_request_takes(server):
    time = HandTime(server)
    async with workers(server) as (living, other, failures):
        reservation = await admit(living)
        for _ in range(5):
            time.go_on(LEASE_MS - 1)
            living.renew_leases()
            await living.peek("a", SCOPES)
            assert await is_full(other)
        living.settle(reservation, ONE)
        living.renew_leases()
        await living.peek("a", SCOPES)
        assert not await is_full(other)
        assert server.ask("EXISTS", *PLACES) == 0
    assert not failures


async def test_places_live_as_long_as_their_last_lease(server):
    time = HandTime(server)
    async with workers(server, 1) as (limiter, failures):
        await admit(limiter)
        before_ms = server.ask("PTTL", PLACES[0])
        time.go_on(LEASE_MS - 1)
        limiter.renew_leases()
        await limiter.peek("a", SCOPES)
        # A little of it has passed meanwhile, by the clock that keys expire by.
        assert before_ms + LEASE_MS - 20_000 < server.ask("PTTL", PLACES[0]) < before_ms + LEASE_MS
    assert not failures


async def test_leases_of_two_processes_of_one_name_are_two(server):
    HandTime(server)
    async with workers(server, 3) as (first, second, other, failures):
        wide = (Scope("team", NONE, 2),)
        reservations = [(await worker.reserve("a", wide, ONE)).reservation for worker in (first, second)]
        assert server.ask("ZCARD", PLACES[0]) == 2
        assert isinstance(await other.reserve("a", wide, ONE), Refused)
        first.settle(reservations[0], ONE)
        await first.peek("a", wide)
        assert server.ask("ZCARD", PLACES[0]) == 1
    assert not failures


@pytest.mark.parametrize("lost", ["expired", "forgotten"])
async def test_a_lease_that_was_lost_is_held_again_while_its_request_goes_on(server, lost):
    time = HandTime(server)
    async with workers(server) as (living, other, failures):
        await admit(living)
        if lost == "expired":
            time.go_on(3 * LEASE_MS)
            assert not await is_full(other)
        else:
            server.ask("FLUSHALL")
            time.go_on(0)
        living.renew_leases()
        await living.peek("a", SCOPES)
        assert await is_full(other)
    assert not failures


async def test_a_clock_that_was_set_back_does_not_keep_the_places_of_who_died(server):
    time = HandTime(server)
    async with workers(server) as (dying, other, failures):
        await admit(dying)
        time.go_on(-86_400_000)
        assert await is_full(other)
        time.go_on(LEASE_MS - 1)
        assert await is_full(other)
        time.go_on(1)
        assert not await is_full(other)
    assert not failures


async def test_leases_survive_a_server_that_forgets_the_scripts(server):
    time = HandTime(server)
    async with workers(server) as (living, other, failures):
        server.ask("SCRIPT", "FLUSH")
        reservation = await admit(living)
        time.go_on(LEASE_MS - 1)
        server.ask("SCRIPT", "FLUSH")
        renewed_ms = server.ask("ZSCORE", PLACES[0], lease_of(server)) + LEASE_MS - 1
        living.renew_leases()
        await until_true(lambda: server.ask("ZSCORE", PLACES[0], lease_of(server)) == renewed_ms, "renewed")
        time.go_on(LEASE_MS - 1)
        assert await is_full(other)
        server.ask("SCRIPT", "FLUSH")
        living.settle(reservation, ONE)
        await until_true(lambda: server.ask("EXISTS", *PLACES) == 0, "given back")
        assert not await is_full(other)
    assert not failures


def lease_of(server):
    [lease] = server.ask("ZRANGE", PLACES[0], 0, -1)
    return lease


async def test_a_reservation_without_an_answer_gives_its_places_back(server):
    HandTime(server)
    async with workers(server, 1) as (slow, failures), workers(server, 1) as (other, _):
        with server.frozen(), in_haste(slow._scripts._route), pytest.raises(StoreAway):
            await slow.reserve("a", SCOPES, ONE)
        await until_true(lambda: server.calls("zrem") == len(PLACES), "it says so as soon as it is heard")
        assert server.ask("EXISTS", *PLACES) == 0
        assert server.calls("zadd") == len(PLACES), "they had been taken"
        assert not await is_full(other)
    assert failures == {"reserve": 1}


async def test_a_caller_that_leaves_before_the_answer_gives_its_places_back(server):
    HandTime(server)
    async with workers(server) as (limiter, other, failures):
        asking = asyncio.create_task(limiter.reserve("a", SCOPES, ONE))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await limiter.peek("a", SCOPES)
        assert server.calls("zadd") == len(PLACES), "they had been taken"
        assert not await is_full(other)
    assert not failures


async def test_places_that_nobody_can_give_back_are_renewed_by_nobody(server):
    time = HandTime(server)
    async with run_tcp_proxy(server.socket) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        async with workers(server, 1, url=url) as (cut_off, failures), workers(server, 1) as (other, _):
            proxy.hold_replies()
            asking = asyncio.create_task(cut_off.reserve("a", SCOPES, ONE))
            await until_true(lambda: server.ask("EXISTS", *PLACES) == len(PLACES), "they are taken")
            proxy.refuses = True
            proxy.cut()
            with pytest.raises(StoreAway):
                await asking
            assert await is_full(other)
            time.go_on(LEASE_MS - 1)
            proxy.refuses = False
            proxy.release_replies()
            await until_true(lambda: cut_off._scripts.reaches(PLACES[0]), "it is back")
            cut_off.renew_leases()
            assert await is_full(other)
            time.go_on(1)
            assert not await is_full(other)
    assert failures["reserve"] == 1


async def test_a_renewal_that_fails_is_counted(server):
    HandTime(server)
    async with workers(server, 1) as (limiter, failures):
        await admit(limiter)
        server.kill()
        limiter.renew_leases()
        await until_true(lambda: failures == {"renew": len(PLACES)}, "the loss is noticed")


async def test_renewals_go_on_until_they_are_cancelled(server, monkeypatch):
    time = HandTime(server)
    monkeypatch.setattr(limiter_module, "RENEW_SECONDS", 0.0)
    async with workers(server, 1) as (limiter, failures):
        await admit(limiter)
        renewing = asyncio.ensure_future(limiter.renew())
        for _ in range(3):
            time.go_on(1_000)
            expires_ms = time.now_ms + LEASE_MS
            await until_true(lambda at=expires_ms: server.ask("ZSCORE", PLACES[0], lease_of(server)) == at, "renewed")
        renewing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await renewing
    assert not failures


async def test_a_worker_renews_what_it_has_under_way(server, tmp_path, monkeypatch):
    monkeypatch.setattr(limiter_module, "RENEW_SECONDS", 0.0)
    patient = {"limits.redis_deadline_ms": 5_000, "redis_url": server.url, "data_dir": str(tmp_path)}
    settings = load(None, {}, {"server.port": 0, "server.admin_port": 0} | patient)
    with open_database(settings) as engine:
        async with serving(settings, engine) as worker:
            reservation = await admit(worker.services.limiter)
            first_ms = server.ask("ZSCORE", PLACES[0], lease_of(server))
            await until_true(lambda: server.ask("ZSCORE", PLACES[0], lease_of(server)) > first_ms, "renewed")
            assert lease_of(server).startswith(f"{socket.gethostname()}:{os.getpid()}:")
            worker.services.limiter.settle(reservation, ONE)
            await until_true(lambda: server.ask("EXISTS", *PLACES) == 0, "given back")


async def test_what_is_stored_of_places_goes_by_itself_and_only_where_there_are_some(server):
    async with workers(server, 1, verbs=scripts_with()) as (limiter, failures):
        reservation = await admit(limiter)
        for place in PLACES:
            assert LEASE_MS - 20_000 < server.ask("PTTL", place) <= LEASE_MS
            assert server.ask("ZRANGE", place, 0, -1)[0].startswith("host:1:")
        limiter.settle(reservation, ONE)
        free = await limiter.reserve("a", SCOPES, Cost(0, 10))
        assert isinstance(free, Admitted)
        unlimited = await limiter.reserve("a", (Scope("team", NONE), Scope("key:k", NONE)), ONE)
        assert isinstance(unlimited, Admitted)
        assert server.ask("DBSIZE") == 0
        limiter.settle(unlimited.reservation, ONE)
        limiter.settle(free.reservation, ONE)
        await limiter.peek("a", SCOPES)
        assert server.ask("DBSIZE") == 0
    assert not failures


async def test_a_reservation_without_room_for_one_scope_takes_a_place_in_none(server):
    HandTime(server)
    narrow = Schedule(Limits(1), Limits(1))
    scopes = (SCOPES[0], Scope("key:k", narrow, 2))
    async with workers(server, 1) as (limiter, failures):
        assert isinstance(await limiter.reserve("a", (Scope("key:k", narrow),), ONE), Admitted)
        assert server.ask("EXISTS", bucket_key("a", "key:k")) == 1
        refused = await limiter.reserve("a", scopes, ONE)
        assert (refused.scope, refused.dimension) == ("key:k", Dimension.REQUESTS)
        assert server.ask("EXISTS", *PLACES) == 0
    assert not failures
