"""Calls upstream without a session of aiohttp's client: what that did for them, and what of aiohttp they lean on."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import client_proto, connector

from proxy.adapters.certificates import client_context
from proxy.adapters.openai import CompatibleUpstream, OpenAIUpstream, open_session
from proxy.adapters.upstream_connector import Destination, UpstreamConnector
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.ports import UpstreamRequest
from tests.support.certificates import Authority, server_context

KEY = "sk-upstream-do-not-tell"
LONG_SECONDS = 60
"""What a machine that stands still for a while does not use up."""
IDLE_SECONDS = 0.3
"""By a clock that is set by hand, or where silence is all there is."""
GET = UpstreamRequest("GET", "/models", (("Accept", "*/*"),))
POST = UpstreamRequest("POST", "/chat/completions", (("Content-Type", "application/json"),), b'{"a":1}')
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """A server that does what a script says on each connection, and remembers what it was sent."""

    def __init__(self) -> None:
        self.connections = 0
        self.left = asyncio.Event()
        self.script: Script | None = None
        self.heads: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self.script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request whose body has a length; returns the body."""
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return await reader.readexactly(length)

    def answers(self, *answers: bytes, then_ends: bool = False) -> None:
        """Give each connection these answers in turn; the last to all that follow, or the end."""

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for answer in answers:
                await self.request(reader)
                writer.write(answer)
                await writer.drain()
            while not then_ends:
                await self.request(reader)
                writer.write(answers[-1])

        self.script = script


@pytest_asyncio.fixture
async def peer() -> Peer:
    return Peer()


@asynccontextmanager
async def served(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    server = await asyncio.start_server(peer.serve, "127.0.0.1", 0, ssl=tls)
    try:
        scheme = "http" if tls is None else "https"
        yield f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Of a server, and of who trusts it."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    return server_context(authority.issue("upstream")), client_context(authority.file)


@pytest.fixture
def tls() -> bool:
    """Whether upstream is spoken to by TLS: not, where a test does not ask for both."""
    return False


@pytest.fixture
def idle_seconds() -> float:
    """For how long upstream may be silent."""
    return LONG_SECONDS


@dataclass(eq=False)
class HandTimer:
    """What `call_at` gives."""

    when: float
    look: Callable[[], None]
    loop: HandLoop

    def cancel(self) -> None:
        self.loop.timers.discard(self)


class HandLoop:
    """The loop, but for its time, which passes when it is told to: no connection is silent for longer by chance."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._seconds = 0.0
        self.timers: set[HandTimer] = set()

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self._seconds

    def call_at(self, when: float, look: Callable[[], None]) -> HandTimer:
        timer = HandTimer(when, look, self)
        self.timers.add(timer)
        return timer

    def pass_seconds(self, seconds: float) -> None:
        self._seconds += seconds
        while due := [timer for timer in self.timers if timer.when <= self._seconds]:
            for timer in due:
                timer.cancel()
                timer.look()


@pytest_asyncio.fixture
async def clock(upstream: OpenAIUpstream) -> HandLoop:
    """What connections measure silence by; they are given `IDLE_SECONDS` of it."""
    loop = HandLoop(asyncio.get_running_loop())
    pool = upstream._session.connector
    pool._factory = partial(pool._factory.func, loop=loop)
    pool._expected["read_timeout"] = IDLE_SECONDS
    return loop


async def until(holds: Callable[[], object]) -> None:
    """Wait for what aiohttp, or the system, tells nobody of."""
    async with asyncio.timeout(LONG_SECONDS):
        while not holds():  # noqa: ASYNC110 - as said
            await asyncio.sleep(0.001)


BOTH_WAYS = pytest.mark.parametrize("path", ["/models", "/models#"], ids=["itself", "by a session"])
BOTH = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@pytest_asyncio.fixture
async def upstream(
    peer: Peer, tls: bool, idle_seconds: float, contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> AsyncIterator[OpenAIUpstream]:
    theirs, ours = contexts if tls else (None, None)
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(served(peer, theirs))
        session = open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=idle_seconds, tls=ours)
        await stack.enter_async_context(session)

        async def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the session was asked")

        session._request = refuse
        yield OpenAIUpstream("openai", url, KEY, session)


async def whole(upstream: OpenAIUpstream, request: UpstreamRequest) -> bytes:
    async with asyncio.timeout(LONG_SECONDS):
        answer = await upstream.send(request)
        try:
            return await answer.read()
        finally:
            answer.close()


async def fault_of(upstream: OpenAIUpstream, request: UpstreamRequest) -> UpstreamFault:
    with pytest.raises(UpstreamFailure) as failure:
        await whole(upstream, request)
    assert KEY not in repr(failure.value)
    assert KEY not in repr(failure.value.__cause__)
    return failure.value.fault


def test_aiohttp_is_still_what_this_was_written_for():
    """A new version of aiohttp: look through `upstream_connector.py` and what its docstring names, then come here."""
    assert aiohttp.__version__.startswith("3.14.")
    of_protocol = client_proto.ResponseHandler
    for name in [
        "set_response_params", "read", "start_timeout", "data_received", "feed_data", "set_exception", "force_close",
        "connection_lost", "close", "resume_reading", "resume_writing", "writing_paused", "_reschedule_timeout",
        "_drop_timeout", "_on_read_timeout",
    ]:  # fmt: skip
        assert hasattr(of_protocol, name), name
    assert {"skip_payload", "read_until_eof", "auto_decompress", "read_timeout", "read_bufsize", "max_line_size",
            "max_field_size"} <= inspect.signature(of_protocol.set_response_params).parameters.keys()  # fmt: skip
    assert list(inspect.signature(connector.BaseConnector.connect).parameters) == ["self", "req", "traces", "timeout"]
    assert list(inspect.signature(connector.BaseConnector._get).parameters) == ["self", "key", "traces"]
    of_tunnels = inspect.signature(connector.TCPConnector._create_proxy_connection)
    assert list(of_tunnels.parameters) == ["self", "req", "traces", "timeout"]
    assert list(inspect.signature(of_protocol.resume_reading).parameters) == ["self", "resume_parser"]
    assert {"release", "close", "protocol"} <= set(dir(connector.Connection))


async def test_a_connection_is_what_it_is_taken_for():
    protocol = client_proto.ResponseHandler(asyncio.get_running_loop())
    for name in ("_read_timeout", "_read_timeout_handle", "_reading_paused", "_payload", "_loop", "transport"):
        assert hasattr(protocol, name), name
    async with open_session(max_connections=1, connect_seconds=1, idle_seconds=1) as session:
        made = session.connector._factory()
        assert isinstance(made, client_proto.ResponseHandler)
        assert type(made) is not client_proto.ResponseHandler


async def test_both_ways_say_the_same_to_the_same_pool(peer):
    peer.answers(OK)
    headers = (("Accept", "*/*"), ("X-Own", "caf\xe9 \udce9"), ("x-stainless-lang", "python"))
    async with (
        served(peer) as url,
        open_session(max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        for kind in (OpenAIUpstream, CompatibleUpstream):
            upstream = kind("openai", url, KEY, session)
            for method, body in [("GET", b""), ("POST", b"{}"), ("POST", b""), ("DELETE", b""), ("GET", b"x")]:
                request = UpstreamRequest(method, "/a%2Fb?x=%41", headers, body, as_it_is=method == "GET")
                assert await whole(upstream, request) == b"{}"
                answer = await upstream._send_by_session(request, "/v1/a%2Fb?x=%41")
                assert await answer.read() == b"{}"
                answer.close()
                ours, theirs = ((head.split(b"\r\n")[0], sorted(head.split(b"\r\n"))) for head in peer.heads[-2:])
                assert ours == theirs
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("request_", "connections"), [(GET, 2), (UpstreamRequest("DELETE", "/files/1", ()), 2), (POST, 1)]
)
async def test_what_may_be_said_twice_is_where_an_idle_connection_ended(upstream, peer, request_, connections):
    async def once(reader, writer):
        await peer.request(reader)
        writer.write(OK)
        await reader.readexactly(10)  # of the next request, which has no answer

    async def never(reader, writer):
        await peer.request(reader)

    peer.script = once
    assert await whole(upstream, request_) == b"{}"
    if connections == 1:
        assert await fault_of(upstream, request_) is UpstreamFault.BROKEN
    else:
        assert await whole(upstream, request_) == b"{}"
    assert peer.connections == connections
    peer.script = never
    assert await fault_of(upstream, request_) is UpstreamFault.BROKEN
    assert peer.connections == connections + 1, "twice and no more"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["100", "103", "chunked", "1.0 kept"],
)
async def test_answers_after_which_the_connection_goes_on(upstream, peer, answer):
    peer.answers(answer)
    for _ in range(3):
        assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["to the end", "1.0 to the end", "1.0", "close"],
)
async def test_answers_after_which_it_does_not(upstream, peer, answer):
    peer.answers(answer, then_ends=True)
    for _ in range(2):
        assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 2


@BOTH_WAYS
@pytest.mark.parametrize("status", [b"000", b"007", b"099", b"101"])
async def test_a_status_below_all_answers_is_none_and_ends_the_connection(peer, status, path):
    """What is said behind it is nobody's."""
    strange = b"HTTP/1.1 %s Odd\r\nContent-Length: 0\r\n\r\n" % status

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(strange if peer.connections == 1 else OK)
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(OK.replace(b"{}", b"[]"))
        await reader.read()

    peer.script = script
    async with (
        served(peer) as url,
        open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        upstream = OpenAIUpstream("openai", url, KEY, session)
        assert await fault_of(upstream, UpstreamRequest("POST", path, (), b"{}")) is UpstreamFault.BROKEN
        assert not session.connector._acquired
        assert not session.connector._conns
        assert await whole(upstream, POST) == b"{}"


@BOTH_WAYS
@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nContent-Type: a/b\r\n\r\n"])
async def test_a_body_to_the_end_of_a_connection_that_breaks_is_not_whole(peer, head, path):
    async def script(reader, writer):
        await peer.request(reader)
        writer.write(head + b"half")
        await go_on.wait()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    peer.script, go_on = script, asyncio.Event()
    async with (
        served(peer) as url,
        open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        answer = await OpenAIUpstream("openai", url, KEY, session).send(UpstreamRequest("POST", path, (), b"{}"))
        chunks = answer.chunks()
        assert await anext(chunks) == b"half"
        go_on.set()
        with pytest.raises(UpstreamFailure) as failure:
            await anext(chunks)
        assert failure.value.fault is UpstreamFault.BROKEN
        answer.close()
        assert not session.connector._acquired


async def test_heads_alone_and_answers_without_a_body_leave_the_connection_as_it_was(upstream, peer):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    peer.answers(
        head, b"HTTP/1.1 204 No Content\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", OK
    )
    assert await whole(upstream, UpstreamRequest("HEAD", "/files/1", ())) == b""
    assert await whole(upstream, GET) == b""
    assert await whole(upstream, GET) == b""
    assert await whole(upstream, GET) == b"{}"
    assert peer.connections == 1


@BOTH
async def test_an_answer_before_the_body_was_taken_ends_the_connection(upstream, peer):
    gone = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 No\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        await upstream_done.wait()
        try:
            while await reader.read(2**20):
                pass
        except ConnectionError:
            pass
        gone.set()

    upstream_done = asyncio.Event()
    peer.script = script
    large = UpstreamRequest("POST", "/x", (), b"x" * 30_000_000)
    assert await whole(upstream, large) == b"{}"
    upstream_done.set()
    async with asyncio.timeout(LONG_SECONDS):
        await gone.wait()
    peer.answers(OK)
    assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 2


@BOTH
async def test_silence_is_not_measured_while_a_body_is_being_taken(upstream, peer, clock):
    size = 50_000_000

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        (protocol,) = upstream._session.connector._acquired
        await until(lambda: protocol.writing_paused)
        clock.pass_seconds(IDLE_SECONDS * 2)
        await reader.readexactly(size)
        writer.write(OK)
        await reader.readexactly(1)

    peer.script = script
    assert await whole(upstream, UpstreamRequest("POST", "/x", (), b"x" * size)) == b"{}"


@BOTH
async def test_nor_behind_a_head_that_announces_another(upstream, peer, clock):
    """On a connection that has been used before."""
    size = 50_000_000

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        (protocol,) = upstream._session.connector._acquired
        await until(lambda: protocol.writing_paused)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await until(lambda: protocol in heard)
        clock.pass_seconds(IDLE_SECONDS * 2)
        await reader.readexactly(size)
        writer.write(OK)
        await reader.readexactly(1)

    peer.script, heard = script, []
    assert await whole(upstream, POST) == b"{}"
    ((protocol, _),) = next(iter(upstream._session.connector._conns.values()))
    feed = protocol.feed_data
    protocol.feed_data = lambda *head: (feed(*head), heard.append(protocol))
    assert await whole(upstream, UpstreamRequest("POST", "/x", (), b"x" * size)) == b"{}"


@BOTH
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 3_000_001])
async def test_a_body_of_any_size_arrives_as_it_was(upstream, peer, size):
    body, bodies = bytes(range(251)) * (size // 251 + 1), []

    async def script(reader, writer):
        while True:
            bodies.append(await peer.request(reader))
            writer.write(OK)

    peer.script = script
    for _ in range(2):
        assert await whole(upstream, UpstreamRequest("POST", "/x", (), body[:size])) == b"{}"
    assert bodies == [body[:size]] * 2
    assert peer.connections == 1


@BOTH
@pytest.mark.parametrize("idle_seconds", [IDLE_SECONDS])
async def test_silence_is_measured_once_it_is(upstream, peer):
    async def script(reader, writer):
        await peer.request(reader)
        await reader.readexactly(1)

    peer.script = script
    assert await fault_of(upstream, UpstreamRequest("POST", "/x", (), b"x" * 30_000_000)) is UpstreamFault.TIMEOUT
    async with asyncio.timeout(LONG_SECONDS):
        await peer.left.wait()


@BOTH
async def test_whoever_leaves_ends_a_call_of_which_nothing_is_taken(upstream, peer):
    arrived = asyncio.Event()
    ended: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await asyncio.wait([call])
        size = 0
        try:
            while piece := await reader.read(2**20):
                size += len(piece)
        except ConnectionError:
            pass
        ended.set_result(size)

    peer.script = script
    call = asyncio.create_task(upstream.send(UpstreamRequest("POST", "/x", (), b"x" * 50_000_000)))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(LONG_SECONDS):
        assert await ended < 50_000_000


@BOTH
async def test_a_call_ends_for_an_upstream_that_takes_nothing_at_all(upstream, peer):
    arrived, over = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await over.wait()

    peer.script = script
    call = asyncio.create_task(upstream.send(UpstreamRequest("POST", "/x", (), b"x" * 50_000_000)))
    await arrived.wait()
    (protocol,) = upstream._session.connector._acquired
    lost = protocol.closed
    await until(lambda: protocol.writing_paused)
    call.cancel()
    async with asyncio.timeout(LONG_SECONDS):
        await asyncio.wait([lost])
    over.set()


async def test_an_upload_ends_of_which_nothing_is_taken(peer):
    """The session writes it, and would have the connection closed once the rest was taken."""
    arrived, over = asyncio.Event(), asyncio.Event()

    class Endless:
        length, replayable = None, False

        async def chunks(self) -> AsyncIterator[bytes]:
            while True:
                yield b"x" * 100_000

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await over.wait()

    peer.script = script
    async with (
        served(peer) as url,
        open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        upstream = OpenAIUpstream("openai", url, KEY, session)
        assert await whole(upstream, POST) == b"{}"
        ((protocol, _),) = next(iter(session.connector._conns.values()))
        # More than the system takes, whatever that is.
        protocol.transport.set_write_buffer_limits(high=30_000_000)
        call = asyncio.create_task(upstream.send(UpstreamRequest("POST", "/files", (), Endless())))
        await arrived.wait()
        lost = protocol.closed
        await until(lambda: protocol.writing_paused)
        call.cancel()
        async with asyncio.timeout(LONG_SECONDS):
            await asyncio.wait([lost])
        over.set()


async def test_a_call_ends_whose_last_bytes_are_not_taken(upstream, peer):
    """Of a body little may be left, less than has the loop say that it is too much."""
    arrived, over = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(OK)
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await over.wait()

    peer.script = script
    assert await whole(upstream, POST) == b"{}"
    ((protocol, _),) = next(iter(upstream._session.connector._conns.values()))
    protocol.transport.set_write_buffer_limits(high=100_000_000)
    call = asyncio.create_task(upstream.send(UpstreamRequest("POST", "/x", (), b"x" * 50_000_000)))
    await arrived.wait()
    lost = protocol.closed
    assert protocol.transport.get_write_buffer_size()
    assert not protocol.is_writing
    call.cancel()
    async with asyncio.timeout(LONG_SECONDS):
        await asyncio.wait([lost])
    over.set()


async def test_silence_is_measured_from_the_last_word(upstream, peer, clock):
    words: asyncio.Queue[bytes] = asyncio.Queue()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"

    async def script(reader, writer):
        while True:
            await peer.request(reader)
            said = 0
            while said < len(head) + 6:
                word = await words.get()
                writer.write(word)
                said += len(word)

    peer.script = script
    words.put_nowait(head)
    answer = await upstream.send(POST)
    for count in range(1, 7):
        clock.pass_seconds(IDLE_SECONDS * 0.6)
        words.put_nowait(b"x")
        await until(lambda count=count: answer._content.total_bytes == count)
    assert await answer.read() == b"xxxxxx"
    answer.close()
    words.put_nowait(head + b"xx")
    reading = asyncio.create_task(whole(upstream, POST))
    (protocol,) = {each for each, _ in next(iter(upstream._session.connector._conns.values()))}
    await until(lambda: protocol._payload is not None and protocol._payload.total_bytes == 2)
    clock.pass_seconds(IDLE_SECONDS * 0.9)
    await asyncio.sleep(0)
    assert not reading.done()
    clock.pass_seconds(IDLE_SECONDS * 0.2)
    with pytest.raises(UpstreamFailure) as failure:
        await reading
    assert failure.value.fault is UpstreamFault.TIMEOUT
    assert peer.connections == 1
    words.put_nowait(b"xxxx")
    async with asyncio.timeout(LONG_SECONDS):
        await peer.left.wait()


async def test_an_idle_connection_is_measured_by_nobody(upstream, peer, clock):
    peer.answers(OK)
    assert await whole(upstream, POST) == b"{}"
    ((protocol, _),) = next(iter(upstream._session.connector._conns.values()))
    assert clock.timers
    clock.pass_seconds(IDLE_SECONDS * 1.5)
    assert not clock.timers, "the timer was up and not set again"
    assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 1
    assert clock.timers
    lost = protocol.closed
    protocol.close()
    async with asyncio.timeout(LONG_SECONDS):
        await asyncio.wait([lost])
    assert not clock.timers, "a connection that ended is held by no timer"


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", b"HTTP/1.1 200 " + b"x" * 70_000, b"220 smtp\r\n\r\n"],
    ids=["field", "line", "no http"],
)
@pytest.mark.parametrize("request_", [GET, POST], ids=["GET", "POST"])
async def test_a_head_that_cannot_be_read_is_asked_for_once(upstream, peer, head, request_):
    peer.answers(head)
    assert await fault_of(upstream, request_) is UpstreamFault.BROKEN
    assert peer.connections == len(peer.heads) == 1


async def test_a_head_of_sixty_thousand_characters_can(upstream, peer):
    peer.answers(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 60_000 + b"\r\nContent-Length: 2\r\n\r\n{}")
    assert await whole(upstream, POST) == b"{}"


@BOTH
async def test_of_a_body_that_nobody_takes_little_is_read(upstream, peer, clock):
    size, drained = 64_000_000, asyncio.Event()

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            writer.write(b"x" * (size // 64))
            await writer.drain()
        drained.set()
        await reader.readexactly(1)

    peer.script = script
    answer = await upstream.send(POST)
    await until(lambda: answer._content._protocol._reading_paused)
    before = answer._content.total_bytes
    clock.pass_seconds(IDLE_SECONDS * 2)  # it is not silence that we wait for ourselves
    for _ in range(100):
        await asyncio.sleep(0.001)
    assert answer._content.total_bytes == before < 2_000_000
    assert not drained.is_set()
    got = 0
    async for chunk in answer.chunks():
        got += len(chunk)
    answer.close()
    assert got == size


async def test_an_answer_that_has_come_holds_no_connection(upstream, peer):
    peer.answers(OK)
    answers = [await upstream.send(POST) for _ in range(3)]
    assert peer.connections == 1
    for answer in answers:
        answer.close()
        assert answer.arrived() in {b"{}", None}
    assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 1


async def test_an_answer_of_a_session_that_has_come_holds_none_either(peer):
    peer.answers(OK)
    async with (
        served(peer) as url,
        open_session(max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        upstream = OpenAIUpstream("openai", url, KEY, session)
        answer = await upstream._send_by_session(POST, "/v1/x")
        answer.close()
        assert answer.arrived() is None, "it was let go of"
        assert await whole(upstream, POST) == b"{}"
    assert peer.connections == 1


@pytest.mark.parametrize("path", ["/a b", "/a#b", "/a\r\nX-Evil: 1", "/a HTTP/1.1\r\n\r\nGET /b", "/\xe9", "/\0"])
async def test_what_is_no_plain_path_is_left_to_the_session(upstream, peer, path):
    peer.answers(OK)
    with pytest.raises(AssertionError, match="session"):
        await whole(upstream, UpstreamRequest("GET", path, ()))
    assert peer.heads == []


async def test_what_has_arrived_is_known_without_waiting(upstream, peer):
    go_on = asyncio.Event()

    async def script(reader, writer):
        await peer.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await go_on.wait()
        writer.write(b"cd")
        await peer.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")

    peer.script = script
    answer = await upstream.send(POST)
    assert answer.arrived() is None
    go_on.set()
    assert await answer.read() == b"abcd" == answer.arrived()
    answer.close()
    half = await upstream.send(POST)
    with pytest.raises(UpstreamFailure):
        await half.read()
    assert half.arrived() is None, "half an answer is none"
    half.close()


async def test_who_reads_on_while_it_is_closed_is_told(upstream, peer):
    async def script(reader, writer):
        await peer.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nab")
        await reader.readexactly(1)

    peer.script = script
    answer = await upstream.send(POST)
    reading = asyncio.create_task(answer.read())
    await asyncio.sleep(0)
    answer.close()
    with pytest.raises(UpstreamFailure):
        await asyncio.wait_for(reading, LONG_SECONDS / 2)
    async with asyncio.timeout(LONG_SECONDS):
        await peer.left.wait()


@pytest.mark.parametrize("as_it_is", [True, False])
async def test_answers_are_undone_unless_they_are_wanted_as_they_are(upstream, peer, as_it_is):
    packed = zlib.compress(b"deep" * 100_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(packed)
    peer.answers(head + packed)
    for _ in range(2):
        got = await whole(upstream, UpstreamRequest("POST", "/x", (), b"{}", as_it_is))
        assert got == (packed if as_it_is else b"deep" * 100_000)
    assert peer.connections == 1


async def test_a_header_that_would_be_two_is_sent_nowhere(upstream, peer):
    peer.answers(OK)
    for headers in ((("X", "1\r\nX-Evil: 2"),), (("X\r\nX-Evil", "2"),), (("Content-Length", "0"),)):
        with pytest.raises(ValueError, match="header"):
            await whole(upstream, UpstreamRequest("POST", "/x", headers, b"{}"))
    with pytest.raises(ValueError, match="header"):
        await whole(OpenAIUpstream("x", upstream._base_url, f"{KEY}\r\nX: 1", upstream._session), POST)
    assert (peer.connections, peer.heads) == (0, [])


@BOTH
async def test_more_calls_than_connections_wait_for_one(upstream, peer):
    peer.answers(OK)
    assert await asyncio.gather(*(whole(upstream, POST) for _ in range(40))) == [b"{}"] * 40
    assert peer.connections <= 4


async def test_where_a_session_has_to_make_the_calls():
    async with open_session(max_connections=1, connect_seconds=1, idle_seconds=1) as session:
        direct = session.connector
        assert isinstance(direct.destination("http://h/v1"), Destination)
        for url in ("ftp://h", "http://u:p@h", "http://h/?x=1", "http://h/#x", "http://h:99999", "h", "http://"):
            assert direct.destination(url) is None, url
    proxied = {"max_connections": 1, "connect_seconds": 1, "idle_seconds": 1, "proxy": "http://127.0.0.1:9"}
    async with open_session(**proxied) as session:
        assert session.connector.destination("http://h") is None
        assert isinstance(session.connector.destination("https://h"), Destination)
        assert isinstance(session.connector, UpstreamConnector)
