import asyncio
import ssl
from contextlib import asynccontextmanager

import pytest

from proxy.adapters.redis.address import parse_redis_url
from proxy.adapters.redis.connect import ask_once
from proxy.adapters.redis.outcomes import ErrorReply, NeverSent, Why
from proxy.adapters.redis.scripts import Script, Scripts
from proxy.adapters.redis.subscriber import subscribe
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import open_route, until_true
from tests.support.redis_server import CERTIFICATES, RedisServer, all_servers, server_binary, speaks_tls
from tests.support.tasks import Tasks

PASSWORD = "p@ss/w:rd%"
QUOTED = "p%40ss%2Fw%3Ard%25"
INCREMENT = Script("increment", "return redis.call('INCRBY', KEYS[1], ARGV[1])")


@pytest.fixture(scope="module", params=all_servers())
def server(request):
    with RedisServer(binary=request.param) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(request):
    if "server" in request.fixturenames:
        request.getfixturevalue("server").ask("FLUSHALL")


# Ways to reach it


async def test_over_tcp_and_unix_socket_in_any_database(server):
    for url in (f"{server.url}/3", f"redis://localhost:{server.port}?db=3", f"unix://{server.socket}?db=3"):
        async with open_route(url) as route:
            await route.execute("k", "INCR", "k")
    async with open_route(server.url) as route:
        assert await route.execute("k", "GET", "k") is None
        await route.execute("k", "SELECT", 3)
        assert await route.execute("k", "GET", "k") == b"3"


async def test_the_server_knows_us_by_name(server):
    async with open_route(f"{server.url}?client_name=gate-1") as route:
        assert await route.execute("", "CLIENT", "GETNAME") == b"gate-1"


def tls_context(*, client_certificates):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=CERTIFICATES / "ca.pem")
    context.load_cert_chain(CERTIFICATES / "server.pem")
    context.verify_mode = ssl.CERT_REQUIRED if client_certificates else ssl.CERT_NONE
    return context


TRUST = f"ssl_ca_certs={CERTIFICATES}/ca.pem"
SHOW = f"ssl_certfile={CERTIFICATES}/client.pem"


async def test_over_tls(server):
    async with run_tcp_proxy(server.socket, tls_context(client_certificates=False)) as front:
        for host in ("localhost", "127.0.0.1"):
            async with open_route(f"rediss://{host}:{front.port}?{TRUST}") as route:
                assert await route.execute("k", "SET", "k", b"x" * 300_000) == b"OK"
                assert await route.execute("k", "GET", "k") == b"x" * 300_000


@asynccontextmanager
async def asking_for_certificates(binary):
    """Port of a server that speaks TLS itself, or (None) of one behind something that does."""
    if binary is None:
        with RedisServer() as server:
            async with run_tcp_proxy(server.socket, tls_context(client_certificates=True)) as front:
                yield front.port
        return
    options = ("port 0", "tls-port @PORT@", "tls-auth-clients yes", f"tls-ca-cert-file {CERTIFICATES}/ca.pem")
    files = (f"tls-cert-file {CERTIFICATES}/server.pem", f"tls-key-file {CERTIFICATES}/server.pem")
    with RedisServer(*options, *files, binary=binary) as server:
        yield server.port


@pytest.mark.parametrize("binary", [None, *(binary for binary in all_servers() if speaks_tls(binary))])
async def test_over_tls_with_a_certificate_of_our_own(binary):
    async with asking_for_certificates(binary) as port:
        async with open_route(f"rediss://localhost:{port}?{TRUST}&{SHOW}") as route:
            assert await route.execute("k", "PING") == b"PONG"
        with pytest.raises(NeverSent):
            await ask_once(parse_redis_url(f"rediss://localhost:{port}?{TRUST}").addresses[0], "PING")


async def test_a_server_that_cannot_prove_itself_is_not_spoken_to(server):
    async with run_tcp_proxy(server.socket, tls_context(client_certificates=False)) as front:
        with pytest.raises(NeverSent, match="certificate") as caught:
            await ask_once(parse_redis_url(f"rediss://:hunter2@localhost:{front.port}").addresses[0], "PING")
    assert caught.value.why is Why.AWAY
    assert server.calls("auth") == 0


# Who we are


@pytest.fixture(scope="module", params=all_servers())
def guarded(request):
    users = (
        f"requirepass {PASSWORD}",
        f"user gate on >{PASSWORD} ~gate:* +get +set +ping +evalsha +eval +script|load",
        "user open on nopass ~* +@all",
    )
    with RedisServer(*users, binary=request.param) as running:
        yield running


async def test_with_a_password_and_as_a_user(guarded):
    async with open_route(f"redis://:{QUOTED}@127.0.0.1:{guarded.port}") as route:
        assert await route.execute("", "ACL", "WHOAMI") == b"default"
    async with open_route(f"redis://open@127.0.0.1:{guarded.port}") as route:
        assert await route.execute("", "ACL", "WHOAMI") == b"open"


async def test_a_user_with_few_rights_gets_what_they_allow(guarded):
    async with open_route(f"redis://gate:{QUOTED}@127.0.0.1:{guarded.port}") as route:
        assert await route.execute("gate:a", "SET", "gate:a", 1) == b"OK"
        for command in (("SET", "other", 1), ("FLUSHALL",), ("INFO",)):
            with pytest.raises(ErrorReply) as caught:
                await route.execute("", *command)
            assert (caught.value.code, caught.value.nothing_done) == ("NOPERM", True)


@pytest.mark.parametrize("credentials", ["", ":wrong-word@", "gate:wrong-word@", "nobody:wrong-word@"])
async def test_who_is_not_known_is_told_and_no_password_with_it(guarded, credentials):
    tasks = Tasks()
    with pytest.raises(ErrorReply) as caught:
        async with open_route(f"redis://{credentials}127.0.0.1:{guarded.port}", tasks=tasks):
            pass
    assert caught.value.code == ("WRONGPASS" if credentials else "NOAUTH")
    assert "wrong-word" not in f"{caught.value} {caught.value!r} {caught.value.__context__}"


# Facts


async def test_facts_for_the_warnings_at_start(server):
    async with open_route(server.url) as route:
        (facts,) = await route.facts()
        assert (facts.server, facts.role, facts.is_cluster) == ("redis", "master", False)
        assert facts.version == server.ask("INFO")["redis_version"]
        assert facts.address == f"127.0.0.1:{server.port}"
        assert not facts.evicts
        server.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        try:
            (facts,) = await route.facts()
            assert (facts.maxmemory_policy, facts.evicts) == ("allkeys-lru", True)
        finally:
            server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


# Order


async def test_replies_go_to_their_callers_whoever_leaves(server):
    async with open_route(server.url) as route:
        route.route("").post("SET", "size", "x" * 50_000)

        async def caller(number):
            for turn in range(20):
                word = f"{number}-{turn}"
                call = (
                    route.route("").call("ECHO", word)
                    if turn % 3
                    else route.route("").call("GETRANGE", "size", 0, number)
                )
                if (number + turn) % 7 == 0:
                    await asyncio.sleep(0)
                    call.cancel()
                    continue
                assert await call == (word.encode() if turn % 3 else b"x" * (number + 1))

        async with asyncio.TaskGroup() as group:
            for number in range(100):
                group.create_task(caller(number))


async def test_posts_are_carried_out_and_counted(server):
    async with open_route(server.url) as route:
        failures = []
        for _ in range(10):
            assert route.post("n", "INCR", "n")
        route.post("n", "LPUSH", "n", 1, on_failure=failures.append)
        assert await route.execute("n", "GET", "n") == b"10"
        counts = route.route("n").counts
        assert (counts.posted, counts.posts_refused, counts.posts_lost) == (10, 1, 0)
        await until_true(lambda: failures, "the failure is told")
        assert [failure.code for failure in failures] == ["WRONGTYPE"]


async def test_closing_carries_out_what_was_posted(server):
    async with open_route(server.url) as route:
        route.post("n", "INCR", "n")
    assert server.ask("GET", "n") == "1"
    assert not route.post("n", "INCR", "n")
    with pytest.raises(NeverSent) as caught:
        await route.execute("n", "GET", "n")
    assert caught.value.why is Why.CLOSED


# Scripts


async def test_a_script_the_server_does_not_know_is_loaded_and_run_once(server):
    async with open_route(server.url) as route:
        scripts = Scripts(route)
        server.ask("SCRIPT", "FLUSH")
        assert await scripts.run(INCREMENT, ["n"], [5]) == 5
        assert await scripts.run(INCREMENT, ["n"], [5]) == 10
        assert server.ask("SCRIPT", "EXISTS", INCREMENT.digest) == [True]


async def test_many_callers_of_an_unknown_script_each_run_it_once(server):
    async with open_route(server.url) as route:
        scripts = Scripts(route)
        server.ask("SCRIPT", "FLUSH")
        results = await asyncio.gather(*(scripts.run(INCREMENT, ["n"], [1]) for _ in range(50)))
        assert sorted(results) == list(range(1, 51))


async def test_a_posted_script_the_server_does_not_know_is_run_all_the_same(server):
    async with open_route(server.url) as route:
        failures = []
        server.ask("SCRIPT", "FLUSH")
        assert Scripts(route).post(INCREMENT, ["n"], [5], failures.append)
        await until_true(lambda: server.ask("GET", "n") == "5", "the script is run")
        server.ask("SET", "n", "no number")
        assert Scripts(route).post(INCREMENT, ["n"], [5], failures.append)
        await until_true(lambda: failures, "its failure is told")
        assert not failures[0].nothing_done


async def test_loaded_scripts_are_known_to_the_server(server):
    async with open_route(server.url) as route:
        server.ask("SCRIPT", "FLUSH")
        await Scripts(route).load([INCREMENT])
        assert await route.execute("n", "EVALSHA", INCREMENT.digest, 1, "n", 2) == 2


async def test_inside_a_script_memory_and_role_are_told_as_outside(server):
    async with open_route(server.url) as route:
        server.ask("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(ErrorReply) as caught:
                await Scripts(route).run(Script("set", "return redis.call('SET', KEYS[1], 'x')"), ["n"], [])
        finally:
            server.ask("CONFIG", "SET", "maxmemory", 0)
        assert (caught.value.code, caught.value.nothing_done) == ("OOM", True)
        server.ask("REPLICAOF", "127.0.0.1", 1)
        try:
            with pytest.raises(ErrorReply) as caught:
                await Scripts(route).run(INCREMENT, ["n"], [1])
        finally:
            server.ask("REPLICAOF", "NO", "ONE")
        assert (caught.value.code, caught.value.nothing_done) == ("READONLY", True)
        assert server.ask("EXISTS", "n") == 0


# Messages


async def test_messages_are_heard_and_heard_again_after_a_restart():
    with RedisServer() as server:
        tasks, heard, subscribed = Tasks(), [], []
        async with open_route(server.url, tasks=tasks) as route:
            listener = subscribe(
                route.locate, "revoked", heard.append, tasks, on_subscribed=lambda: subscribed.append(True)
            )
            await until_true(lambda: subscribed, "the channel is joined")
            server.ask("PUBLISH", "revoked", "a")
            server.ask("PUBLISH", "other", "x")
            await until_true(lambda: heard == [b"a"], "the message is heard")
            server.kill()
            server.start()
            await until_true(lambda: len(subscribed) >= 2, "the channel is joined again")
            server.ask("PUBLISH", "revoked", "b")
            await until_true(lambda: heard == [b"a", b"b"], "the next message is heard")
            await listener.close()
            await until_true(lambda: server.ask("PUBLISH", "revoked", "c") == 0, "nobody listens any more")


def test_both_servers_take_part_where_there_are_two():
    assert server_binary() in all_servers()
    assert len(set(all_servers())) == len(all_servers())
