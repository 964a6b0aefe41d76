"""Bodies that go upstream as they come: framed as they are, never ended as whole when they are not."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aiohttp import web

from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.core.errors import BodyTooLarge, InvalidRequest, UpstreamFailure, UpstreamFault
from proxy.ports import UpstreamRequest

LONG_SECONDS = 60
"""What a machine that stands still for a while does not use up."""
IDLE_SECONDS = 0.3
"""Where silence is all there is, or time passes by hand."""


class Script:
    """A body that yields bytes, waits for seconds, and raises errors."""

    def __init__(self, steps: Sequence[bytes | float | Exception], *, sized: bool = False) -> None:
        self.steps = steps
        self.length = sum(len(step) for step in steps if isinstance(step, bytes)) if sized else None
        self.replayable = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for step in self.steps:
            match step:
                case bytes():
                    yield step
                case Exception():
                    raise step
                case _:
                    await asyncio.sleep(step)


class Peer:
    """Reads what it gets unless it is told not to."""

    def __init__(self) -> None:
        self.bodies: list[bytes | None] = []
        self.headers: list[dict[str, str]] = []
        self.reads = True
        self.answer: web.StreamResponse | None = None

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if not self.reads:
            await asyncio.sleep(600)
        try:
            self.bodies.append(await request.read())
        except BaseException:
            self.bodies.append(None)
            raise
        return self.answer or web.Response(body=b"{}")


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def idle_seconds() -> float:
    """For how long upstream may be silent."""
    return LONG_SECONDS


@asynccontextmanager
async def served(peer: Peer, idle_seconds: float) -> AsyncIterator[OpenAIUpstream]:
    runner = web.ServerRunner(web.Server(peer.handle, handler_cancellation=True), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        async with open_session(max_connections=4, connect_seconds=LONG_SECONDS, idle_seconds=idle_seconds) as session:
            yield OpenAIUpstream("openai", url, "sk-x", session)
    finally:
        await runner.cleanup()


@pytest_asyncio.fixture
async def upstream(peer: Peer, idle_seconds: float) -> AsyncIterator[OpenAIUpstream]:
    async with served(peer, idle_seconds) as upstream:
        yield upstream


async def send(upstream: OpenAIUpstream, body: Script, **more: object) -> bytes:
    answer = await upstream.send(UpstreamRequest("POST", "/files", (), body, **more))
    try:
        return await answer.read()
    finally:
        answer.close()


@pytest.mark.parametrize("sized", [True, False])
async def test_it_arrives_as_it_is_with_its_length_where_that_is_known(upstream, peer, sized):
    assert await send(upstream, Script([b"ab", b"", b"cde" * 50_000], sized=sized)) == b"{}"
    assert peer.bodies == [b"ab" + b"cde" * 50_000]
    assert peer.headers[0].get("content-length") == ("150002" if sized else None)
    assert peer.headers[0].get("transfer-encoding") == (None if sized else "chunked")
    assert "content-type" not in peer.headers[0]


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("error", [BodyTooLarge(5), InvalidRequest("no"), ConnectionResetError("gone")])
async def test_what_breaks_it_off_is_told_as_what_it_is(upstream, peer, sized, error):
    with pytest.raises(type(error)):
        await send(upstream, Script([b"abc", 0.05, error, b"x"], sized=sized))
    async with asyncio.timeout(LONG_SECONDS):
        while not peer.bodies:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)
    assert peer.bodies == [None]


class HandLoop(asyncio.SelectorEventLoop):
    """One whose time passes when it is told to."""

    seconds = 0.0

    def time(self) -> float:
        return self.seconds


class Slow(Script):
    """A body whose steps take their time by the loop's clock, and none by any other."""

    async def chunks(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for step in self.steps:
            if isinstance(step, bytes):
                yield step
                continue
            loop.seconds += step
            for _ in range(20):
                await asyncio.sleep(0)


def test_a_client_may_take_longer_than_upstream_may(peer):
    async def run() -> None:
        async with served(peer, IDLE_SECONDS) as upstream:
            assert await send(upstream, Slow([b"a", IDLE_SECONDS * 2, b"b"])) == b"{}"
            assert peer.bodies == [b"ab"]

    with asyncio.Runner(loop_factory=HandLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("idle_seconds", [IDLE_SECONDS])
async def test_an_upstream_that_takes_nothing_is_given_up(upstream, peer):
    peer.reads = False
    with pytest.raises(UpstreamFailure) as caught:
        await asyncio.wait_for(send(upstream, Script([b"x" * 1_000_000] * 50)), LONG_SECONDS)
    assert caught.value.fault is UpstreamFault.TIMEOUT


@pytest.mark.parametrize("idle_seconds", [IDLE_SECONDS])
async def test_an_upstream_that_has_taken_all_and_keeps_silent_is_given_up(upstream, peer):
    peer.reads = False
    with pytest.raises(UpstreamFailure) as caught:
        await asyncio.wait_for(send(upstream, Script([b"x"])), LONG_SECONDS)
    assert caught.value.fault is UpstreamFault.TIMEOUT


@pytest.mark.parametrize("as_it_is", [True, False])
async def test_answers_are_undone_unless_they_are_wanted_as_they_are(upstream, peer, as_it_is):
    packed = gzip.compress(b"{}")
    peer.answer = web.Response(body=packed, headers={"Content-Encoding": "gzip"})
    assert await send(upstream, Script([b"x"]), as_it_is=as_it_is) == (packed if as_it_is else b"{}")
    assert peer.headers[0].get("accept-encoding") == (None if as_it_is else "identity")
