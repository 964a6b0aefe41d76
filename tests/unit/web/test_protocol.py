"""One request after the other on a connection, in one task: who is served, and who is not."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from collections.abc import Callable
from itertools import pairwise

import pytest
from aiohttp import web

from proxy.core.errors import InvalidRequest
from proxy.web.answer import Answer
from proxy.web.bounds import MAX_HEAD_BYTES, Bounds
from proxy.web.downstream import AiohttpDownstream
from proxy.web.protocol import AnyAnswer
from tests.support.wire import connected, said, turns

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
OK = (("x-a", "1"),)
KEY = "sk-of-somebody"


async def echo(request: web.BaseRequest) -> Answer:
    return Answer(200, OK, await AiohttpDownstream(request, (), 1_000_000).receive())


def post(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def head_of(size: int) -> bytes:
    """A request whose head has so many bytes."""
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\n", b"\r\n"
    line = b"x-%03d: %s\r\n"
    lines = [line % (number, b"v" * 990) for number in range((size - len(start + end)) // 1_000)]
    rest = size - len(start + end) - sum(map(len, lines)) - len(line % (999, b""))
    return b"".join([start, *lines, line % (999, b"v" * rest), end])


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("read_bytes", [1_000, 10_000, 16_384, 16_385, 30_000, 60_000, 1_000_000])
@pytest.mark.parametrize("before", [b"", GET, post(b"x" * 9_000)])
@pytest.mark.parametrize(("head_bytes", "status"), [(MAX_HEAD_BYTES - 1_000, b"200"), (MAX_HEAD_BYTES + 1_000, b"431")])
async def test_heads_have_a_bound_however_they_come(
    head_bytes: int, status: bytes, before: bytes, read_bytes: int
) -> None:
    """What comes with the request before it counts as well."""
    data, _ = await said(echo, *cut(before + head_of(head_bytes), read_bytes))
    statuses = re.findall(rb"HTTP/1\.[01] (\d{3}) ", data)
    assert statuses == [b"200"] * bool(before) + [status]


@pytest.mark.parametrize("size", [0, 1, 5_000, 600_000, 900_000])
@pytest.mark.parametrize("read_bytes", [900, 65_536, 1_000_000])
async def test_bodies_come_whole_however_they_come(size: int, read_bytes: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    data, _ = await said(echo, *cut(post(body), read_bytes))
    assert data.partition(b"\r\n\r\n")[2] == body


async def test_as_many_as_come_at_once_are_answered_after_many_that_came_in_parts() -> None:
    """aiohttp's parser stops where more than it keeps are waiting, and has to be told to go on."""
    parts = [part for number in range(40) for part in (post(b"%04d" % number)[:-2], post(b"%04d" % number)[-2:])]
    together = b"".join(post(b"%04d" % number) for number in range(40, 140))
    data, _ = await said(echo, *parts, together, post(b"last"))
    for number in range(140):
        assert data.count(b"\r\n\r\n%04d" % number) == 1, number
    assert data.endswith(b"\r\n\r\nlast")


async def test_one_task_serves_all_requests_of_a_connection() -> None:
    tasks = []

    async def handler(_: web.BaseRequest) -> Answer:
        tasks.append(asyncio.current_task())
        return Answer(200, OK, b"")

    await said(handler, GET, GET, GET)
    assert len(tasks) == 3
    assert len(set(tasks)) == 1


async def test_many_that_come_at_once_leave_the_loop_its_turns() -> None:
    """Their client would have the worker for itself, were they refusals or hits: those wait for nothing."""
    served, seen = 0, []

    async def handler(_: web.BaseRequest) -> Answer:
        nonlocal served
        served += 1
        return Answer(200, OK, b"body")

    async with connected(handler) as (connection, wire):
        connection.data_received(GET * 200)
        while served < 200:
            seen.append(served)
            await asyncio.sleep(0)
        await turns()
    assert len(wire.pieces) == 200
    assert max(after - before for before, after in pairwise([*seen, 200])) == 1


async def test_nothing_is_done_for_the_second_while_the_first_is_not_taken() -> None:
    served = 0

    async def handler(_: web.BaseRequest) -> Answer:
        nonlocal served
        served += 1
        return Answer(200, OK, b"body")

    async with connected(handler) as (connection, _):
        connection.pause_writing()
        connection.data_received(GET + GET)
        await turns()
        assert served == 1
        connection.resume_writing()
        await turns()
        assert served == 2


async def test_an_answer_before_the_end_of_a_body_is_the_last_and_is_waited_with() -> None:
    async def handler(_: web.BaseRequest) -> Answer:
        return Answer(400, OK, b"no")

    sent = post(b"x" * 1_000)
    async with connected(handler) as (connection, wire):
        connection.data_received(sent[:500])
        await turns()
        assert b"\r\nConnection: close\r\n" in b"".join(wire.pieces)
        assert not wire.closed
        connection.data_received(sent[500:])
        await turns()
        assert wire.closed


async def test_a_fault_of_a_handler_is_told_and_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(_: web.BaseRequest) -> Answer:
        raise InvalidRequest(KEY)

    data, wire = await said(handler, GET, GET)
    assert data.startswith(b"HTTP/1.1 500 ")
    assert data.count(b"HTTP/1.1") == 1
    assert wire.closed
    assert "InvalidRequest" in caplog.text
    assert KEY not in caplog.text + data.decode()


async def test_a_client_that_leaves_cancels_its_request() -> None:
    ended = []

    async def handler(_: web.BaseRequest) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise
        return Answer(200, OK, b"")

    await said(handler, GET)
    await turns()
    assert ended == [True]


async def test_one_that_is_told_why_when_it_is_cancelled_is_told_and_no_other_is_begun() -> None:
    async def handler(_: web.BaseRequest) -> Answer:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return Answer(503, OK, b"why")
        return Answer(200, OK, b"")

    async with connected(handler) as (connection, wire):
        connection.data_received(GET)
        await turns()
        connection.close()
        connection.cancel_request()
        await turns()
        assert b"".join(wire.pieces).endswith(b"\r\n\r\nwhy")
        assert wire.closed


async def test_what_is_no_request_is_answered_in_its_turn() -> None:
    data, _ = await said(echo, post(b"first"), b"what?\r\n\r\n", GET)
    assert re.findall(rb"HTTP/1\.[01] (\d{3}) ", data) == [b"200", b"400"]
    assert data.endswith(b"}")


class Later:
    """The loop, at another time; timers are kept, not set."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.seconds = self._loop.time()
        self.due: list[tuple[float, Callable[[], None]]] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)

    def time(self) -> float:
        return self.seconds

    def call_at(self, when: float, look: Callable[[], None]) -> asyncio.Handle:
        self.due.append((when, look))
        return asyncio.Handle(look, (), self._loop)


async def test_idle_is_measured_from_the_last_answer() -> None:
    idle_seconds = Bounds().idle_timeout_seconds
    async with connected(echo) as (connection, wire):
        connection._loop = clock = Later()
        clock.seconds += idle_seconds * 0.7
        connection.data_received(GET)
        await turns()
        clock.seconds += idle_seconds * 0.7
        connection._process_keepalive()  # by the timer that was set when the connection was made
        assert not wire.closed
        ((when, look),) = clock.due
        clock.seconds = when
        look()
        assert wire.closed


@pytest.mark.parametrize("at", [1, 8, 9])
async def test_what_is_no_request_takes_nothing_from_the_one_before_it(at: int) -> None:
    """Wherever in that one's body the read began in which it came."""
    sent = post(b"whole body")
    data, _ = await said(echo, sent[:-at], sent[-at:] + b"BREW / HTTP/1.1\r\n\r\n")
    assert re.findall(rb"HTTP/1\.[01] (\d{3}) ", data) == [b"200", b"400"]
    assert b"\r\n\r\nwhole body" in data
    assert b"invalid_request_error" in data


@pytest.mark.parametrize("body", [b"", b"Content-Length: 9\r\n"], ids=["none", "to come"])
async def test_a_target_that_names_no_host_is_no_request(caplog: pytest.LogCaptureFixture, body: bytes) -> None:
    """It would end the task of its connection, which then is open for ever: nobody is there to tell how long it is."""
    served = []

    async def handler(request: web.BaseRequest) -> Answer:
        served.append(request.raw_path)
        return Answer(200, OK, b"body")

    async with connected(handler) as (connection, wire):
        connection.data_received(
            GET + b"POST http://xn--a/ HTTP/1.1\r\nHost: a\r\n%s\r\n" % body + (GET if not body else b"")
        )
        await turns()
        connection.data_received(GET)
        await turns()
        assert re.findall(rb"HTTP/1\.[01] (\d{3}) ", b"".join(wire.pieces)) == [b"200", b"400"]
    assert served == ["/"]
    assert caplog.text == ""


async def test_a_request_that_ends_just_when_shutdown_stops_waiting_for_it_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = asyncio.Event()

    async def handler(_: web.BaseRequest) -> Answer:
        await ended.wait()
        return Answer(200, OK, b"")

    async with connected(handler) as (connection, wire):
        connection.data_received(GET)
        await turns()
        stopping = asyncio.ensure_future(connection.shutdown(None))
        await turns(1)
        ended.set()
        connection._handler_waiter.cancel()
        await turns()
        assert b"HTTP/1.1 200 OK" in b"".join(wire.pieces)
        await stopping
    assert caplog.text == ""


async def test_nothing_is_held_of_a_request_that_is_answered() -> None:
    seen = []

    async def handler(request: web.BaseRequest) -> Answer:
        seen.append(weakref.ref(request))
        return Answer(200, OK, b"")

    async with connected(handler) as (connection, _):
        connection.data_received(GET)
        await turns()
        gc.collect()
        assert [each() for each in seen] == [None]


async def test_a_stream_that_goes_on_is_not_cut_while_it_is_taken() -> None:
    """As much is waiting each time, and it is not the same."""
    goes_on = asyncio.Event()

    async def handler(request: web.BaseRequest) -> AnyAnswer | None:
        client = AiohttpDownstream(request, (), 1_000)
        await client.open(200, OK)
        await goes_on.wait()
        await client.write(b"more")
        await asyncio.Event().wait()
        return client.response

    async with connected(handler) as (connection, wire):
        connection.data_received(GET)
        await turns()
        wire.unsent_bytes = 100
        connection.look(1_000.0)
        goes_on.set()
        await turns()
        connection.look(2_000.0)
        assert not wire.closed
        connection.look(3_000.0)
        assert wire.closed
