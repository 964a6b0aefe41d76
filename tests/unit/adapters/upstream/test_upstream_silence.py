"""Upstreams and proxies that say what is not waited for, or not all of it: nobody waits, and nobody is given it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.ports import UpstreamRequest

KEY = "sk-upstream-do-not-tell"
SHORT_SECONDS, LONG_SECONDS = 0.2, 60
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

Answers = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BOTH_WAYS = pytest.mark.parametrize("path", ["/models", "/models#"], ids=["itself", "by a session"])


@asynccontextmanager
async def peer(answers: Answers) -> AsyncIterator[str]:
    """Where `answers` does what it does to the head of each connection; the connection stays until it is left."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answers(reader, writer)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def failure_of(upstream: OpenAIUpstream, path: str) -> UpstreamFailure:
    with pytest.raises(UpstreamFailure) as failure:
        async with asyncio.timeout(LONG_SECONDS):
            await upstream.send(UpstreamRequest("POST", path, (), b"{}"))
    return failure.value


@BOTH_WAYS
@pytest.mark.parametrize("heads", [(EARLY,), (EARLY[:20], EARLY[20:]), (EARLY + EARLY, EARLY)])
async def test_silence_behind_a_head_that_announces_another_is_silence(path: str, heads: tuple[bytes, ...]) -> None:
    async def announce(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for head in heads:
            writer.write(head)
            await asyncio.sleep(0.01)

    async with (
        peer(announce) as place,
        open_session(max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=SHORT_SECONDS) as session,
    ):
        failure = await failure_of(OpenAIUpstream("openai", f"http://{place}/v1", KEY, session), path)
        assert failure.fault is UpstreamFault.TIMEOUT
        assert not session.connector._acquired


@BOTH_WAYS
async def test_an_answer_behind_such_a_head_is_one(path: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(EARLY)
        await asyncio.sleep(0.01)
        writer.write(EARLY + OK)

    async with (
        peer(answer) as place,
        open_session(max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        upstream = OpenAIUpstream("openai", f"http://{place}/v1", KEY, session)
        came = await upstream.send(UpstreamRequest("POST", path, (), b"{}"))
        assert await came.read() == b"{}"
        came.close()


@BOTH_WAYS
async def test_a_proxy_that_says_nothing_about_a_tunnel_is_waited_for_as_for_a_connection(path: str) -> None:
    async def say_nothing(*_: object) -> None:
        return

    async with (
        peer(say_nothing) as place,
        open_session(
            max_connections=1, connect_seconds=SHORT_SECONDS, idle_seconds=LONG_SECONDS, proxy=f"http://{place}"
        ) as session,
    ):
        failure = await failure_of(OpenAIUpstream("openai", "https://upstream.example/v1", KEY, session), path)
        assert failure.fault is UpstreamFault.UNREACHABLE
        assert not session.connector._acquired


@BOTH_WAYS
@pytest.mark.parametrize("status", [b"403 Forbidden", b"407 Proxy Authentication Required", b"503 Busy"])
async def test_upstream_has_seen_nothing_of_what_a_proxy_refuses(path: str, status: bytes) -> None:
    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % status)

    async with (
        peer(refuse) as place,
        open_session(
            max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS, proxy=f"http://{place}"
        ) as session,
    ):
        failure = await failure_of(OpenAIUpstream("openai", "https://upstream.example/v1", KEY, session), path)
        assert failure.fault is UpstreamFault.UNREACHABLE


@pytest.mark.parametrize("unasked", [b"\r\n", b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"])
async def test_a_connection_on_which_half_a_word_came_unasked_is_used_no_more(unasked: bytes) -> None:
    """What follows it would be the beginning of the next answer."""
    go_on, connections = asyncio.Event(), 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readexactly(2)
        writer.write(OK)
        if connections == 1:
            await go_on.wait()
            writer.write(unasked)

    async with (
        peer(answer) as place,
        open_session(max_connections=1, connect_seconds=LONG_SECONDS, idle_seconds=LONG_SECONDS) as session,
    ):
        upstream = OpenAIUpstream("openai", f"http://{place}/v1", KEY, session)
        request = UpstreamRequest("POST", "/models", (), b"{}")
        async with asyncio.timeout(LONG_SECONDS):
            came = await upstream.send(request)
            assert await came.read() == b"{}"
            ((protocol, _),) = next(iter(session.connector._conns.values()))
            lost = protocol.closed
            go_on.set()
            await asyncio.wait([lost])
            assert await (await upstream.send(request)).read() == b"{}"
        assert connections == 2
