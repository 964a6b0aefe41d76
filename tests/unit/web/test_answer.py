"""Whole answers: the same bytes as aiohttp's, and no header that is another's line."""

from __future__ import annotations

import asyncio
import re

import pytest
from aiohttp import web
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given
from hypothesis import strategies as st

from proxy.web import answer as answers
from proxy.web.answer import Answer, Headers
from proxy.web.downstream import AiohttpDownstream
from proxy.web.protocol import Streamed
from tests.support.wire import Handler, connected, said, turns

PLAIN = (("Content-Type", "text/plain"), ("x-a", "1"))
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def giving(answer: Answer) -> Handler:
    async def handler(_: web.BaseRequest) -> Answer:
        return answer

    return handler


def by_aiohttp(answer: Answer) -> Handler:
    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return answer.for_aiohttp()

    return handler


def without_date(data: bytes) -> bytes:
    found, count = re.subn(rb"\r\nDate: \w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT\r\n", b"\r\nDate: D\r\n", data)
    assert count == 1, data
    return found


METHODS = [
    GET,
    b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\na",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
]
ANSWERS = [
    Answer(200, PLAIN, b"body"),
    Answer(200, (("x-a", "1"),), b"{}"),
    Answer(200, (("x-a", "1"),), b""),
    Answer(429, (("X-A", "1"), ("x-b", "2"), ("x-a", "3")), b"{}"),
    Answer(200, PLAIN, b"body", frozenset({"x-a"})),
    Answer(200, (("x-a", "1"),), b"body", frozenset({"x-a"})),
    Answer(204, PLAIN, b""),
    Answer(304, PLAIN, b""),
    Answer(200, (*PLAIN, ("content-length", "4")), b"body"),
    Answer(200, (*PLAIN, ("Date", "Thu, 01 Jan 1970 00:00:00 GMT")), b"body"),
    Answer(200, (("x-a", "caf\u00e9 \udce9 \ud83d\ude00 \t%s {0}"),), b"body"),
    Answer(200, PLAIN, b"x" * 100_000),
    Answer(599, PLAIN, b"body"),
    Answer(200, (), b"body"),
]


@pytest.mark.parametrize("request_bytes", METHODS)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("draining", [False, True])
async def test_is_what_aiohttp_writes(request_bytes: bytes, answer: Answer, draining: bool) -> None:
    ours, wire = await said(giving(answer), request_bytes, draining=draining)
    theirs, other_wire = await said(by_aiohttp(answer), request_bytes, draining=draining)
    assert without_date(ours) == without_date(theirs)
    assert wire.closed == other_wire.closed


CHUNKS = [b"a", b"", b"x" * 70_000, b"end"]


@pytest.mark.parametrize("request_bytes", METHODS)
@pytest.mark.parametrize("status", [200, 204, 304, 429])
@pytest.mark.parametrize(
    "headers", [PLAIN, (("x-a", "1"), ("X-A", "2")), (*PLAIN, ("content-length", "70004")), (("x-left", "1"),)]
)
async def test_a_stream_is_what_aiohttp_writes(request_bytes: bytes, status: int, headers: Headers) -> None:
    async def ours(request: web.BaseRequest) -> web.StreamResponse | Streamed | None:
        client = AiohttpDownstream(request, (("x-id", "i"),), 1_000, frozenset({"x-left"}))
        await client.open(status, headers)
        for chunk in CHUNKS:
            await client.write(chunk)
        await client.close()
        return client.response

    async def theirs(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        for name, value in (*headers, ("x-id", "i")):
            if name != "x-left":
                response.headers[name] = value
        await response.prepare(request)
        for chunk in CHUNKS:
            await response.write(chunk)
        await response.write_eof()
        return response

    one, wire = await said(ours, request_bytes, GET)
    other, other_wire = await said(theirs, request_bytes, GET)
    assert in_order(one) == in_order(other)
    assert wire.closed == other_wire.closed


def in_order(data: bytes) -> list[bytes]:
    """Lines of an answer, or two, in an order of their own: that of headers means nothing."""
    return sorted(re.sub(rb"\r\nDate: [^\r]+", b"\r\nDate: D", data).split(b"\r\n"))


async def test_a_stream_waits_for_its_client_and_ends_once() -> None:
    written = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse | Streamed | None:
        client = AiohttpDownstream(request, (), 1_000)
        await client.open(200, PLAIN)
        for number in range(4):
            await client.write(b"x" * 40_000)
            written.append(number)
        await client.close()
        await client.close()
        return client.response

    async with connected(handler) as (connection, wire):
        connection.pause_writing()
        connection.data_received(GET)
        await turns()
        assert written == [0]
        connection.resume_writing()
        await turns()
        assert written == [0, 1, 2, 3]
        assert b"".join(wire.pieces).count(b"\r\n0\r\n\r\n") == 1
        assert not wire.closed


async def test_a_stream_to_a_client_that_has_left_is_told_so() -> None:
    told = []

    async def handler(request: web.BaseRequest) -> web.StreamResponse | Streamed | None:
        client = AiohttpDownstream(request, (), 1_000)
        await client.open(200, PLAIN)
        request.transport.close()
        for ask in (client.write(b"x"), client.close()):
            try:
                await ask
            except ConnectionResetError as error:
                told.append(type(error))
        return client.response

    await said(handler, GET)
    assert told == [ConnectionResetError] * 2


async def test_goes_out_at_once_and_leaves_room_for_another() -> None:
    data, wire = await said(giving(Answer(200, PLAIN, b"body")), GET, GET + GET)
    assert data.count(b"\r\n\r\nbody") == len(wire.pieces) == 3
    assert b"Connection" not in data


@pytest.mark.parametrize("bad", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "a\x0bb", "a\x7fb"])
@pytest.mark.parametrize("at", ["value", "name"])
async def test_no_header_is_another_ones_line(bad: str, at: str, caplog: pytest.LogCaptureFixture) -> None:
    header = ("x-a", bad) if at == "value" else (bad, "v")
    for _ in range(2):
        data, wire = await said(giving(Answer(200, (*PLAIN, header), b"body")), GET)
        assert data == b""
        assert wire.closed
    assert "b: c" not in caplog.text


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "b", "Content-Type"]), st.text()), max_size=4))
def test_has_as_many_lines_as_headers(headers: list[tuple[str, str]]) -> None:
    parser_message = message_of(GET)
    try:
        head = Answer(200, tuple(headers), b"").head(parser_message, closes=False)
    except ValueError:
        assert any(re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value) for _, value in headers)
        return
    if head is None:
        assert not headers
        return
    names = {name.lower() for name, _ in headers} | {"content-type"}
    lines = head.split(b"\r\n")
    # The first line, one each, length, date, and the empty one behind them.
    assert len(lines) == 1 + len(names) + 2 + 2
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))


def message_of(data: bytes):
    loop = asyncio.new_event_loop()
    try:
        messages, _, _ = HttpRequestParser(None, loop, 65_536).feed_data(data)
    finally:
        loop.close()
    return messages[0][0]


def test_what_is_remembered_of_answers_is_bounded() -> None:
    message = message_of(GET)
    for number in range(1_000):
        head = Answer(200, ((f"x-{number}", "v"),), b"").head(message, closes=False)
        assert f"\r\nx-{number}: v\r\n".encode() in head
    assert len(answers._shapes) <= 256


async def test_an_answer_to_a_client_that_has_left_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    answer = Answer(200, PLAIN, b"body")

    async def handler(request: web.BaseRequest) -> Answer:
        request.transport.close()
        return answer

    data, _ = await said(handler, GET)
    assert data == b""
    assert caplog.text == ""
