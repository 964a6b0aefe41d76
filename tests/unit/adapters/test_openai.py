import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from proxy.adapters.clock import SystemClock
from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.adapters.pacer import Pacer, PacerOptions
from proxy.core.errors import Overloaded, UpstreamFailure, UpstreamFault
from proxy.ports import UpstreamRequest

KEY = "sk-upstream-do-not-tell"
LONG_SECONDS = 60
"""What a machine that stands still for a while does not use up."""
CHAT = UpstreamRequest("POST", "/chat/completions", (("Content-Type", "application/json"),), b'{"a":1}')

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Peer:
    """A server that records what it gets and answers as it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.connections: set[object] = set()
        self.answer: Handler | None = None
        self.cut = asyncio.Event()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.method, request.raw_path, headers, await request.read()))
        self.connections.add(request.transport)
        if self.answer is None:
            return web.Response(body=b"{}", headers={"set-cookie": "a=b"})
        try:
            return await self.answer(request)
        except (asyncio.CancelledError, ConnectionResetError):
            self.cut.set()
            raise


@pytest_asyncio.fixture
async def peer() -> Peer:
    return Peer()


@pytest_asyncio.fixture
async def url(peer: Peer) -> AsyncIterator[str]:
    runner = web.ServerRunner(web.Server(peer.handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    await runner.cleanup()


@pytest.fixture
def idle_seconds() -> float:
    """For how long upstream may be silent."""
    return LONG_SECONDS


@pytest_asyncio.fixture
async def session(idle_seconds: float) -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=idle_seconds) as session:
        yield session


@pytest.fixture
def upstream(url: str, session: aiohttp.ClientSession) -> OpenAIUpstream:
    return OpenAIUpstream("openai", url, KEY, session)


async def whole(upstream: OpenAIUpstream, request: UpstreamRequest) -> bytes:
    answer = await upstream.send(request)
    try:
        return await answer.read()
    finally:
        answer.close()


async def fault_of(upstream: OpenAIUpstream) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as failure:
        await whole(upstream, CHAT)
    assert KEY not in repr(failure.value)
    return failure.value


async def test_a_request_arrives_as_it_was_and_with_our_key(upstream, peer):
    assert await whole(upstream, CHAT) == b"{}"
    ((method, path, headers, body),) = peer.seen
    assert (method, path, body) == ("POST", "/v1/chat/completions", b'{"a":1}')
    assert headers.keys() == {"host", "content-type", "accept-encoding", "authorization", "content-length"}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["accept-encoding"] == "identity"


async def test_without_a_key_there_is_no_authorization(url, session, peer):
    await whole(OpenAIUpstream("local", url, None, session), CHAT)
    assert "authorization" not in peer.seen[0][2]


async def test_a_request_without_a_body_has_none(upstream, peer):
    await whole(upstream, UpstreamRequest("GET", "/models", (("Accept", "application/json"),)))
    ((method, path, headers, body),) = peer.seen
    assert (method, path, body) == ("GET", "/v1/models", b"")
    assert not {"content-type", "content-length", "transfer-encoding"} & headers.keys()


@pytest.mark.parametrize(
    "path", ["/a%2Fb", "/a%2fb?x=%41&y=a+b&z=%C3%A9", "/a/%2e%2e/b", "/a?b=c?d", "/a?", "/ft:gpt-4o:x::y", "/a;b=c"]
)
async def test_paths_go_as_they_were_written(upstream, peer, path):
    await whole(upstream, UpstreamRequest("GET", path, ()))
    assert peer.seen[0][1].removesuffix("?") == f"/v1{path}".removesuffix("?")


async def test_a_slash_at_the_end_of_the_base_is_one(url, session, peer):
    await whole(OpenAIUpstream("x", f"{url}/", KEY, session), CHAT)
    assert peer.seen[0][1] == "/v1/chat/completions"


async def test_cookies_are_not_remembered(url, session, peer):
    # By name: of an address, no cookie is ever remembered.
    upstream = OpenAIUpstream("openai", url.replace("127.0.0.1", "localhost"), KEY, session)
    for _ in range(2):
        await whole(upstream, CHAT)
    assert "cookie" not in peer.seen[1][2]


async def test_redirects_are_answers(upstream, peer, url):
    async def answer(_):
        return web.Response(status=302, headers={"Location": f"{url}/elsewhere"})

    peer.answer = answer
    came = await upstream.send(CHAT)
    assert came.status == 302
    came.close()
    assert len(peer.seen) == 1


async def test_a_connection_that_was_read_to_its_end_is_used_again(upstream, peer):
    for _ in range(5):
        await whole(upstream, CHAT)
    assert len(peer.connections) == 1


async def test_the_key_is_in_no_representation(upstream):
    assert KEY not in repr(upstream)
    assert upstream.identity in repr(upstream)
    private = UpstreamRequest("POST", "/x", (("x-secret", "header of a client"),), b"body of a client")
    assert "of a client" not in repr(private)


async def dripping(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"data: x\n\n")
        await asyncio.sleep(0.01)


async def test_closing_before_the_end_stops_upstream(upstream, peer):
    peer.answer = dripping
    answer = await upstream.send(CHAT)
    async for chunk in answer.chunks():
        assert chunk
        break
    answer.close()
    answer.close()
    async with asyncio.timeout(LONG_SECONDS):
        await peer.cut.wait()


async def test_being_cancelled_before_the_head_stops_upstream(upstream, peer):
    arrived = asyncio.Event()

    async def answer(_):
        arrived.set()
        await asyncio.sleep(600)

    peer.answer = answer
    call = asyncio.create_task(upstream.send(CHAT))
    await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(LONG_SECONDS):
        await peer.cut.wait()


async def test_chunks_come_as_they_come(upstream, peer):
    go_on = asyncio.Event()

    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one")
        await go_on.wait()
        await response.write(b"two")
        return response

    peer.answer = answer
    came = await upstream.send(CHAT)
    chunks = []
    async for chunk in came.chunks():
        chunks.append(chunk)
        go_on.set()
    came.close()
    assert chunks == [b"one", b"two"]


async def test_reading_twice_is_reading_once(upstream):
    answer = await upstream.send(CHAT)
    assert await answer.read() == await answer.read() == b"{}"
    answer.close()


async def silent(_: web.BaseRequest) -> web.StreamResponse:
    await asyncio.sleep(600)
    raise AssertionError


async def half(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 100
    await response.prepare(request)
    await response.write(b"half")
    request.transport.close()
    return response


async def half_and_silent(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"half")
    await asyncio.sleep(600)
    return response


async def hung_up(request: web.BaseRequest) -> web.StreamResponse:
    request.transport.close()
    return web.Response()


async def gibberish(request: web.BaseRequest) -> web.StreamResponse:
    request.transport.write(b"220 mail.example ESMTP\r\n\r\n")
    return web.Response()


@pytest.mark.parametrize(
    ("answer", "idle_seconds", "fault"),
    [
        (silent, 0.3, UpstreamFault.TIMEOUT),
        (half, LONG_SECONDS, UpstreamFault.BROKEN),
        (half_and_silent, 0.3, UpstreamFault.TIMEOUT),
        (hung_up, LONG_SECONDS, UpstreamFault.BROKEN),
        (gibberish, LONG_SECONDS, UpstreamFault.BROKEN),
    ],
)
async def test_faults_after_the_request_was_sent(upstream, peer, answer, fault):
    peer.answer = answer
    failure = await fault_of(upstream)
    assert (failure.fault, failure.upstream) == (fault, "openai")


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:{}", "https://127.0.0.1:{}", "http://upstream.invalid"])
async def test_faults_before_anything_was_sent(session, base_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        upstream = OpenAIUpstream("openai", base_url.format(taken.getsockname()[1]), KEY, session)
        failure = await fault_of(upstream)
    assert failure.fault is UpstreamFault.UNREACHABLE


async def test_tls_on_a_port_that_speaks_none(url, session, peer):
    failure = await fault_of(OpenAIUpstream("openai", url.replace("http:", "https:"), KEY, session))
    assert failure.fault is UpstreamFault.UNREACHABLE
    assert peer.seen == []


async def test_a_turn_is_waited_for_before_and_not_in_the_call(url, session, peer):
    pacer = Pacer(PacerOptions(1, max_waiting=0, deadline_seconds=1), SystemClock(), spawn=lambda _: None)
    upstream = OpenAIUpstream("openai", url, KEY, session, pacer)
    await upstream.turn()
    with pytest.raises(Overloaded):
        await upstream.turn()
    await whole(upstream, CHAT)
    assert len(peer.seen) == 1
