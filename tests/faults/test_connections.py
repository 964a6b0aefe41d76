"""What becomes of a connection: who may use it again, and who is told to come back on another."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.faults.conftest import CHAT, PATIENCE_SECONDS, Gateway, Open, read_answer, until
from tests.support.raw_corpus import CHUNKED, LENGTH, ONE_CHUNK, post

GOOD = json.dumps(CHAT).encode()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What still comes before the end; a connection that is closed already resets whoever still writes to it."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            return await reader.read(-1)
        except ConnectionResetError:
            return b""


async def test_a_connection_is_used_again(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        for _ in range(3):
            writer.write(gateway.request_bytes())
            answer = await read_answer(reader)
            assert answer.status == 200
            assert "connection" not in answer.headers
        assert gateway.worker.listener.open_connections == 1
    await until(lambda: gateway.worker.listener.open_connections == 0)


async def test_while_draining_every_answer_says_that_it_is_the_last(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer), gateway.connection() as (other, another):
        writer.write(gateway.request_bytes())
        assert "connection" not in (await read_answer(reader)).headers
        gateway.worker.listener.draining = True
        writer.write(gateway.request_bytes())
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await ended(reader) == b""
        another.write(gateway.request_bytes({**CHAT, "stream": True}))
        data = await ended(other)
        assert b"\r\nconnection: close\r\n" in data.lower()
        assert data.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    gateway.worker.listener.draining = False


async def test_an_upload_that_is_under_way_when_the_server_stops_comes_in(gateway: Gateway) -> None:
    half = len(GOOD) // 2
    async with gateway.connection() as (reader, writer):
        writer.write(gateway.request_bytes(GOOD)[:-half])
        await until(lambda: gateway.in_flight == 1)
        gateway.worker.listener.pre_shutdown()
        writer.write(GOOD[-half:])
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await ended(reader) == b""


@pytest.mark.parametrize("padding", [0, 2_000_000], ids=["small", "large"])
async def test_it_comes_in_when_the_process_ends(open_gateway: Open, padding: int) -> None:
    """A large one fills what is read ahead, which is read on as it is taken."""
    gateway = await open_gateway(**{"server.max_body_bytes": 4_000_000, "server.drain_seconds": 60.0})
    body = GOOD[:-1] + b" " * padding + GOOD[-1:]
    async with gateway.connection() as (reader, writer), gateway.connection() as (idle, _):
        writer.write(gateway.request_bytes(body)[: -(len(body) // 2)])
        await until(lambda: gateway.in_flight == 1)
        stopping = asyncio.create_task(gateway.stop())
        assert await ended(idle) == b""
        writer.write(body[-(len(body) // 2) :])
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await ended(reader) == b""
        await stopping


async def test_a_body_that_nobody_waited_for_is_not_the_next_request(gateway: Gateway) -> None:
    """Told 401 in the place of `100 Continue`, a client may leave its body out, or send it: the two look alike."""
    refused = post("sk-tg_wrong", LENGTH, b"Expect: 100-continue", body=b"")
    async with gateway.connection() as (reader, writer):
        writer.write(refused)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        writer.write(gateway.request_bytes())
        writer.write_eof()
        assert await ended(reader) == b""
    assert gateway.stats.requests == 0


@pytest.mark.parametrize(
    "broken",
    [b"BREW / HTTP/1.1\r\n\r\n", b"x\r\n\r\n", b"POST /v1/x HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\na\x00\r\n\r\n"],
)
async def test_nothing_behind_what_is_no_request_is_looked_at(gateway: Gateway, broken: bytes) -> None:
    async with gateway.connection() as (reader, writer):
        writer.write(broken)
        assert (await read_answer(reader)).status == 400
        for _ in range(3):
            writer.write(gateway.request_bytes())
            await asyncio.sleep(0)
        writer.write_eof()
        assert await ended(reader) == b""
    await gateway.settled()
    assert gateway.stats.requests == 0


async def test_nothing_behind_a_body_that_breaks_is_looked_at(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        writer.write(post(gateway.key, CHUNKED, body=b"4\r\n    \r\n"))
        await until(lambda: gateway.in_flight == 1)
        writer.write(b"nonsense\r\n" + ONE_CHUNK)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        writer.write(gateway.request_bytes())
        writer.write_eof()
        assert await ended(reader) == b""
    assert gateway.stats.requests == 0
    assert gateway.metric("tollgate_malformed_requests_total", reason="framing") == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_trailer_gives_the_next_request_no_header(gateway: Gateway, at_once: bool) -> None:
    """Behind a balancer the next one on the connection may be somebody else's, and this one its key."""
    trailed = ONE_CHUNK[:-2] + b"Authorization: Bearer %s\r\n\r\n" % gateway.key.encode()
    first, second = post("sk-tg_wrong", CHUNKED, body=trailed), post("sk-tg_another", LENGTH)
    async with gateway.connection() as (reader, writer):
        writer.write(first + second if at_once else first)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        writer.write(second)
        writer.write_eof()
        assert await ended(reader) == b""
    await gateway.settled()
    assert gateway.stats.requests == 0


async def test_a_trailer_that_comes_late_ends_the_connection_too(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        writer.write(post(gateway.key, CHUNKED, body=ONE_CHUNK[:-2]))
        await until(lambda: gateway.in_flight == 1)
        for piece in (b"x-a", b": 0\r", b"\n", b"\r\n"):
            writer.write(piece)
            await asyncio.sleep(0.01)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_a_body_in_chunks_that_ends_plainly_is_followed_by_others(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        for size in (1, 7, 10_000):
            request = post(gateway.key, CHUNKED, body=ONE_CHUNK)
            for at in range(0, len(request), size):
                writer.write(request[at : at + size])
                await asyncio.sleep(0)
            answer = await read_answer(reader)
            assert (answer.status, answer.headers.get("connection")) == (200, None)


@pytest.mark.parametrize("version", [b"0.9", b"2.0", None])
async def test_other_versions_are_refused_in_ours(gateway: Gateway, version: bytes | None) -> None:
    line = b" HTTP/" + version if version else b""
    answer = await gateway.raw(gateway.request_bytes().replace(b" HTTP/1.1", line, 1))
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert answer.data.startswith(b"HTTP/1.1 ")
    assert gateway.stats.requests == 0
    assert gateway.metric("tollgate_malformed_requests_total", reason="request") == 1


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.2", b"IRC/6.9"])
async def test_whoever_asks_for_another_protocol_gets_an_answer_and_no_second_one(
    gateway: Gateway, protocol: bytes
) -> None:
    head = post(gateway.key, LENGTH, b"Connection: Upgrade", b"Upgrade: " + protocol)
    async with gateway.connection() as (reader, writer):
        writer.write(head)
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        writer.write(gateway.request_bytes())
        writer.write_eof()
        assert await ended(reader) == b""
    await gateway.settled()
    assert gateway.stats.requests == 1


async def test_requests_that_come_in_pieces_of_one_byte(gateway: Gateway) -> None:
    async with gateway.connection() as (reader, writer):
        for request in (post(gateway.key, CHUNKED, body=ONE_CHUNK), gateway.request_bytes()):
            for at in range(len(request)):
                writer.write(request[at : at + 1])
                await asyncio.sleep(0)
            assert (await read_answer(reader)).status == 200
    await gateway.settled()
    assert gateway.stats.requests == 2


async def test_a_hundred_requests_at_once_on_one_connection_are_answered_in_order(gateway: Gateway) -> None:
    asked = [f"/v1/nothing/{number}" for number in range(100)]
    async with gateway.connection() as (reader, writer):
        writer.write(b"".join(b"GET %s HTTP/1.1\r\nHost: a\r\n\r\n" % path.encode() for path in asked))
        async with asyncio.timeout(PATIENCE_SECONDS):
            for path in asked:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                assert f"(GET {path})" in json.loads(body)["error"]["message"]
