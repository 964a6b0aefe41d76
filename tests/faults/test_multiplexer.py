"""The multiplexer against real servers that are slow, silent, cut off, killed, busy or demoted."""

import asyncio
import random
import socket
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from proxy.adapters.redis.multiplexer import MultiplexerOptions
from proxy.adapters.redis.outcomes import ConnectionLost, Definite, ErrorReply, Indefinite, NeverSent, TimedOut, Why
from proxy.adapters.redis.topology import route_for
from proxy.adapters.redis.wire import Bounds
from proxy.core.breaker import BreakerPolicy, BreakerState
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import PATIENT, open_route, until_async, until_true
from tests.support.redis_server import RedisServer, all_servers, eventually
from tests.support.tasks import Tasks

HASTY = MultiplexerOptions(
    Bounds(deadline_seconds=0.05, silence_seconds=1.0, max_in_flight=200),
    BreakerPolicy(failures_to_open=1_000, rest_ms=20, max_rest_ms=100),
    first_backoff_seconds=0.01,
    max_backoff_seconds=0.1,
    connect_seconds=10.0,
)
# Gives answers up as soon, and connections not at all.
STEADY = replace(HASTY, bounds=replace(HASTY.bounds, silence_seconds=60.0))


@pytest.fixture(scope="module", params=all_servers())
def server(request):
    with RedisServer(binary=request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server):
    server.ask("FLUSHALL")
    server.ask("CONFIG", "RESETSTAT")


@asynccontextmanager
async def through_proxy(server, options):
    async with run_tcp_proxy(server.socket) as proxy, open_route(f"redis://127.0.0.1:{proxy.port}", options) as route:
        yield proxy, route.route("")


async def outcomes_of(calls):
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)


async def served_again(one, proxy=None):
    await until_async(lambda: one.execute("PING"), "commands are served again")


# Lost replies


async def test_a_command_whose_reply_is_lost_is_indefinite_and_never_sent_again(server):
    async with through_proxy(server, HASTY) as (proxy, one):
        proxy.drops_replies = True
        calls = [one.call("INCR", "n") for _ in range(20)]
        for _ in range(5):
            assert one.post("INCRBY", "n", 100)
        assert {type(outcome) for outcome in await outcomes_of(calls)} == {TimedOut}
        # Nothing at all comes: the connection is given up, and with it what was in flight.
        await until_true(lambda: one.counts.disconnects, "the silent connection is dropped")
        proxy.drops_replies = False
        await served_again(one)
        assert server.ask("GET", "n") == "520"
        assert (server.calls("incr"), server.calls("incrby")) == (20, 5)
        assert one.counts.posts_lost == 5


async def test_a_connection_cut_after_the_write_leaves_nothing_pending_and_nothing_is_sent_again(server):
    async with through_proxy(server, PATIENT) as (proxy, one):
        proxy.hold_replies()
        calls = [one.call("INCR", "n") for _ in range(50)]
        left = [one.call("INCR", "n") for _ in range(10)]
        for call in left:
            call.cancel()
        await until_true(lambda: server.ask("GET", "n") == "60", "all were carried out, those of cancelled callers too")
        proxy.cut()
        assert {type(outcome) for outcome in await outcomes_of(calls)} == {ConnectionLost}
        assert "in flight 0" in repr(one)
        proxy.release_replies()
        await served_again(one)
        assert server.calls("incr") == 60


async def test_late_replies_find_their_own_slots_and_the_connection_stays(server):
    async with through_proxy(server, STEADY) as (proxy, one):
        proxy.hold_replies()
        late = await outcomes_of([one.call("ECHO", f"late-{number}") for number in range(10)])
        assert {type(outcome) for outcome in late} == {TimedOut}
        soon = [one.call("ECHO", f"soon-{number}") for number in range(10)]
        proxy.release_replies()
        for number, outcome in enumerate(await outcomes_of(soon)):
            assert isinstance(outcome, TimedOut) or outcome == b"soon-%d" % number
        assert await until_async(lambda: one.execute("ECHO", "after"), "an answer") == b"after"
        assert (one.counts.connections, proxy.accepted) == (1, 1)


async def test_what_is_cut_while_callers_come_and_go_is_counted_at_most_once(server):
    """Acknowledged <= carried out <= not known to have failed: over any number of cuts, delays and cancellations."""
    chance = random.Random(20_260_101)
    acknowledged, definite, sent = 0, 0, 0
    async with through_proxy(server, HASTY) as (proxy, one):

        async def caller():
            nonlocal acknowledged, definite, sent
            tried = 0
            # However long it takes until the connection is there again.
            while tried < 60 or not acknowledged:
                tried += 1
                sent += 1
                try:
                    call = one.call("INCR", "n")
                    if chance.random() < 0.2:
                        await asyncio.sleep(0)
                        call.cancel()
                    await call
                    acknowledged += 1
                except Definite:
                    definite += 1
                    await asyncio.sleep(0.002)
                except (Indefinite, asyncio.CancelledError):
                    pass

        async def trouble():
            for _ in range(8):
                await asyncio.sleep(chance.random() * 0.03)
                proxy.delay_seconds = chance.choice([0.0, 0.01, 0.08])
                if chance.random() < 0.6:
                    proxy.cut()
            proxy.delay_seconds = 0.0

        async with asyncio.TaskGroup() as group:
            group.create_task(trouble())
            for _ in range(20):
                group.create_task(caller())
        await served_again(one)
        assert "in flight 0" in repr(one)
    eventually(lambda: server.ask("INFO")["connected_clients"] == 1, "the server has read what was cut off to its end")
    carried_out = int(server.ask("GET", "n") or 0)
    assert acknowledged <= carried_out <= sent - definite
    assert acknowledged
    assert server.calls("incr") == carried_out


# Bounds and breaker


async def test_more_than_may_be_in_flight_is_refused_before_it_is_written(server):
    async with through_proxy(server, PATIENT_WITH_FEW) as (proxy, one):
        proxy.hold_replies()
        calls = [one.call("INCR", "n") for _ in range(50)]
        with pytest.raises(NeverSent) as caught:
            await one.execute("INCR", "n")
        assert caught.value.why is Why.FULL
        assert not one.post("INCR", "n")
        proxy.release_replies()
        assert await outcomes_of(calls) == list(range(1, 51))
        assert one.counts.posts_refused == 1


PATIENT_WITH_FEW = MultiplexerOptions(Bounds(deadline_seconds=10.0, silence_seconds=20.0, max_in_flight=50))


async def test_a_server_that_takes_no_more_bytes_is_not_fed_any(server):
    few = MultiplexerOptions(Bounds(deadline_seconds=10.0, silence_seconds=20.0, max_queued_bytes=2**20))
    async with open_route(server.url, few) as route:
        one = route.route("")
        with server.frozen():
            calls = []
            refused = None
            while refused is None and len(calls) < 200:
                try:
                    calls.append(one.call("APPEND", "n", b"x" * 100_000))
                except NeverSent as failure:
                    refused = failure
                await asyncio.sleep(0)
            assert refused is not None
            assert refused.why is Why.FULL
        outcomes = await outcomes_of(calls)
        assert outcomes == [100_000 * number for number in range(1, len(calls) + 1)]


async def test_the_breaker_opens_after_a_run_of_stalls_and_closes_after_a_probe(server):
    options = MultiplexerOptions(
        Bounds(deadline_seconds=0.02, silence_seconds=30.0),
        BreakerPolicy(failures_to_open=3, rest_ms=30, max_rest_ms=60, probe_ms=30),
    )
    async with through_proxy(server, options) as (proxy, one):
        proxy.hold_replies()
        for _ in range(100):
            if not one.is_up:
                break
            with pytest.raises((TimedOut, NeverSent)):
                await one.execute("INCR", "n")
        assert one.breaker_state is not BreakerState.CLOSED
        sent = proxy.request_bytes
        with pytest.raises(NeverSent) as caught:
            one.call("INCR", "n")
        assert caught.value.why is Why.RESTING
        assert not one.post("INCR", "n")
        # Probes go out meanwhile, and nothing else.
        await until_true(lambda: proxy.request_bytes >= sent + 2 * len(b"*1\r\n$4\r\nPING\r\n"), "two probes")
        assert not one.is_up
        carried_out = server.calls("incr")
        proxy.release_replies()
        await until_true(lambda: one.is_up, "the breaker closes")
        assert one.breaker_state is BreakerState.CLOSED
        await until_async(lambda: one.execute("INCR", "n"), "commands are served again")
        assert server.calls("incr") > carried_out
        assert proxy.accepted == 1


async def test_a_server_busy_with_a_script_is_left_alone_until_it_is_done():
    options = MultiplexerOptions(
        Bounds(deadline_seconds=10.0, silence_seconds=30.0),
        BreakerPolicy(failures_to_open=3, rest_ms=20, max_rest_ms=40),
    )
    with RedisServer("lua-time-limit 20") as server:
        async with open_route(server.url, options) as route, open_route(server.url) as other:
            one = route.route("")
            endless = other.route("").call("EVAL", "while true do end", 0)
            outcome = None
            while outcome is None:
                (outcome,) = await outcomes_of([one.call("GET", "n")])
            assert (outcome.code, outcome.nothing_done) == ("BUSY", True)
            for _ in range(10):
                if one.is_up:
                    with pytest.raises((ErrorReply, NeverSent)):
                        await one.execute("GET", "n")
            with pytest.raises(NeverSent) as refused:
                await one.execute("GET", "n")
            assert refused.value.why is Why.RESTING
            assert one.away.back_ms is None
            assert server.ask("SCRIPT", "KILL")
            with pytest.raises(ErrorReply):
                await endless
            await until_true(lambda: one.is_up, "the breaker closes")
            assert one.away.back_ms is not None
            assert one.breaker_state is BreakerState.CLOSED
            assert await one.execute("GET", "n") is None


# Servers that are away, and how it is told


async def test_an_absence_is_told_from_the_loss_to_the_first_answer_and_a_while_longer():
    with RedisServer() as server:
        async with open_route(server.url) as route:
            one = route.route("")
            await one.execute("PING")
            assert one.away is None
            server.kill()
            await until_true(lambda: not one.is_up, "the loss is noticed")
            assert one.away.back_ms is None
            assert one.away.failing_ms <= one.away.unheard_ms < 60_000
            await until_true(lambda: one.away.proven_ms > 0, "it is looked for, and not there")
            server.start()
            await until_true(lambda: one.is_up, "it is back")
            assert one.away.back_ms is None, "a connection is no answer yet"
            await one.execute("PING")
            assert one.away.back_ms is not None


async def test_a_server_that_was_never_there_was_not_heard_for_ages():
    tasks = Tasks()
    with socket.socket() as taken:
        # So that nobody else listens there.
        taken.bind(("127.0.0.1", 0))
        route = route_for(f"redis://127.0.0.1:{taken.getsockname()[1]}", tasks, PATIENT)
        with pytest.raises(NeverSent):
            await route.open()
        assert route.route("").away.unheard_ms > 3_600_000
        await route.close()
        await tasks.finished()


# Servers that go


async def test_after_a_kill_commands_fail_at_once_and_after_a_restart_they_are_served():
    with RedisServer() as server:
        async with open_route(server.url, PATIENT) as route:
            one = route.route("")
            with server.frozen():
                calls = [one.call("INCR", "n") for _ in range(10)]
                await asyncio.sleep(0)
                server.kill()
            assert {type(outcome) for outcome in await outcomes_of(calls)} == {ConnectionLost}
            with pytest.raises(NeverSent) as caught:
                one.call("INCR", "n")
            assert caught.value.why is Why.AWAY
            assert not one.post("INCR", "n")
            for _ in range(2):
                server.start()
                await served_again(one)
                assert server.calls("incr") == 0
                server.kill()
                await until_true(lambda: not one.is_up, "the loss is noticed")
            assert one.counts.connections == 3


async def test_what_a_frozen_server_was_sent_is_carried_out_once_when_it_thaws(server):
    async with open_route(server.url, STEADY) as route:
        one = route.route("")
        with server.frozen():
            outcomes = await outcomes_of([one.call("INCR", "n") for _ in range(10)])
            assert {type(outcome) for outcome in outcomes} == {TimedOut}
        await served_again(one)
        await until_true(lambda: server.ask("GET", "n") == "10", "each is carried out")
        assert server.calls("incr") == 10


async def test_a_server_that_is_a_replica_now_is_left_and_looked_for_anew(server):
    async with open_route(server.url) as route:
        one = route.route("")
        server.ask("REPLICAOF", "127.0.0.1", 1)
        try:
            reads = [one.call("ECHO", number) for number in range(5)]
            with pytest.raises(ErrorReply) as caught:
                await one.execute("INCR", "n")
            assert caught.value.code == "READONLY"
            assert await outcomes_of(reads) == [b"%d" % number for number in range(5)]
        finally:
            server.ask("REPLICAOF", "NO", "ONE")
        await until_true(lambda: one.counts.connections == 2, "a new connection")
        assert await until_async(lambda: one.execute("INCR", "n"), "writes are taken again") == 1


async def test_closing_does_not_wait_for_a_server_that_says_nothing(server):
    async with run_tcp_proxy(server.socket) as proxy:
        async with open_route(f"redis://127.0.0.1:{proxy.port}", HASTY) as route:
            proxy.hold_replies()
            call = route.route("").call("INCR", "n")
        assert isinstance(call.exception(), Indefinite)
        with pytest.raises(NeverSent) as caught:
            route.route("").call("INCR", "n")
        assert caught.value.why is Why.CLOSED


async def test_a_server_that_takes_connections_and_says_nothing_is_away():
    options = MultiplexerOptions(connect_seconds=0.05)

    async def silent(_reader, writer):
        writer.transport.get_extra_info("socket")
        await closing.wait()
        writer.close()

    closing = asyncio.Event()
    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    try:
        with pytest.raises(NeverSent, match=f"127.0.0.1:{port}") as caught:
            async with open_route(f"redis://127.0.0.1:{port}", options):
                pass
        assert caught.value.why is Why.AWAY
    finally:
        closing.set()
        listener.close()
        await listener.wait_closed()
