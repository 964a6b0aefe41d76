"""A stream that upstream breaks off, wherever and however: nobody who listens can take it for whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import openai
import pytest
from openai import AsyncOpenAI, AsyncStream

from proxy.simulator import Behaviour
from proxy.simulator.endpoint import Stamp
from proxy.simulator.responses import responses_endpoint
from tests.faults.conftest import CHAT, PATIENCE_SECONDS, Answer, Gateway, Open, ScriptedUpstream, until

TEXT = "žluť 🦔"
HEDGEHOG = "🦔".encode()


def of(event: dict) -> bytes:
    return b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n"


def chat_events() -> list[bytes]:
    said = [{"role": "assistant", "content": ""}, *({"content": letter} for letter in TEXT)]
    events = [of({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in said]
    return [*events, of({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}), b"data: [DONE]\n\n"]


def completion_events() -> list[bytes]:
    events = [of({"choices": [{"index": 0, "text": letter, "finish_reason": None}]}) for letter in TEXT]
    return [*events, of({"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]}), b"data: [DONE]\n\n"]


def response_events() -> list[bytes]:
    body = json.dumps({"model": "gpt-4o-mini", "input": f"echo:{TEXT}", "stream": True}).encode()
    frames = [frame.data for frame in responses_endpoint(Behaviour())(body).frames(Stamp("s" * 29, 1), usage=True)]
    # As OpenAI writes them: characters, not escapes.
    return [
        b"\n".join(
            b"data: " + json.dumps(json.loads(line[6:]), ensure_ascii=False).encode() if line[:6] == b"data: " else line
            for line in frame.split(b"\n")
        )
        for frame in frames
    ]


@dataclass(frozen=True)
class Endpoint:
    path: str
    ask: dict
    events: list[bytes]

    @property
    def text(self) -> bytes:
        return b"".join(self.events)


USAGE = {"stream": True, "stream_options": {"include_usage": True}}
ENDPOINTS = {
    "chat": Endpoint("/v1/chat/completions", {**CHAT, **USAGE}, chat_events()),
    "chat, usage hidden": Endpoint("/v1/chat/completions", {**CHAT, "stream": True}, chat_events()),
    "completions": Endpoint(
        "/v1/completions", {"model": "gpt-3.5-turbo-instruct", "prompt": "Hi", **USAGE}, completion_events()
    ),
    "responses": Endpoint(
        "/v1/responses", {"model": "gpt-4o-mini", "input": "Hi", "stream": True, "store": False}, response_events()
    ),
}
IMAGES = Endpoint(
    "/v1/images/generations",
    {"model": "gpt-image-1", "prompt": TEXT, "stream": True},
    [of({"type": "image_generation.partial_image", "b64_json": "aGk=", "partial_image_index": at}) for at in range(3)]
    + [of({"type": "image_generation.partial_image", "note": TEXT})] * 2,
)
PLACES: dict[str, Callable[[Endpoint], int]] = {
    "before anything": lambda _: 0,
    "in a character": lambda endpoint: endpoint.text.index(HEDGEHOG) + 2,
    "in a name": lambda endpoint: endpoint.text.index(HEDGEHOG) - 12,
    "between two line ends": lambda endpoint: len(b"".join(endpoint.events[:2])) - 1,
    "between two events": lambda endpoint: len(b"".join(endpoint.events[:3])),
    "before the last": lambda endpoint: len(b"".join(endpoint.events[:-1])),
    "in the last": lambda endpoint: len(endpoint.text) - 5,
}
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Heard = Callable[[], Awaitable[None]]
"""Returns when all who listen have heard what was sent: what comes in one piece with a fault would be lost with it."""


async def ends_short(streams: Streams, data: bytes, heard: Heard) -> None:
    _, writer = streams
    writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + data)
    await writer.drain()


async def breaks_the_framing(streams: Streams, data: bytes, heard: Heard) -> None:
    _, writer = streams
    first = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + first)
    await writer.drain()
    await heard()
    writer.write(b"no size at all\r\n")
    await writer.drain()


async def resets(streams: Streams, data: bytes, heard: Heard) -> None:
    _, writer = streams
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%s\r\n" % (len(data), data) if data else b""))
    await writer.drain()
    await heard()
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def falls_silent(streams: Streams, data: bytes, heard: Heard) -> None:
    reader, writer = streams
    writer.write(HEAD + b"Connection: close\r\n\r\n" + data)
    await writer.drain()
    await reader.read()


BREAKS = {
    "short": (ends_short, "upstream_broken"),
    "bad framing": (breaks_the_framing, "upstream_broken"),
    "reset": (resets, "upstream_broken"),
    "silence": (falls_silent, "upstream_timeout"),
}


def unchunked(answer: Answer) -> bytes:
    """The payload of a chunked answer, as far as it came."""
    data, rest = b"", answer.body
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        data, rest = data + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return data


def error_at_the_end(path: str, data: bytes) -> str:
    """The code of the error that is the last event, in the endpoint's own form."""
    *_, last, rest = data.split(b"\n\n")
    assert rest == b""
    # Behind half of an empty line there is one more than it takes.
    last = last.removeprefix(b"\n")
    if path != "/v1/responses":
        error = json.loads(last.removeprefix(b"data: "))["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "server_error"
        return error["code"]
    name, _, line = last.partition(b"\n")
    error = json.loads(line.removeprefix(b"data: "))
    assert (name, error["type"]) == (b"event: error", "error")
    assert error.keys() == {"type", "sequence_number", "code", "message", "param"}
    return error["code"]


class Listener:
    """A client, and what it has heard so far."""

    def __init__(self) -> None:
        self.answer = Answer(b"", clean=False)

    @property
    def data(self) -> bytes:
        return unchunked(self.answer).replace(KEEP_ALIVE, b"")

    async def listen(self, gateway: Gateway, request: bytes) -> Answer:
        async with gateway.connection() as (reader, writer), asyncio.timeout(PATIENCE_SECONDS):
            writer.write(request)
            with contextlib.suppress(ConnectionResetError):
                while not self.answer.clean and (more := await reader.read(65_536)):
                    data = self.answer.data + more
                    self.answer = Answer(data, clean=data.endswith(b"\r\n0\r\n\r\n"))
        return self.answer


KEEP_ALIVE = b": keep-alive\n\n"


EVERYWHERE, HARDEST = tuple(PLACES), ("in a character", "between two events", "before the last")
CASES = [
    *((1, name, "short", place) for name in ("chat", "responses") for place in EVERYWHERE),
    *((1, name, "short", place) for name in ("chat, usage hidden", "completions") for place in HARDEST),
    *((1, name, how, "before the last") for name in ("chat", "responses") for how in BREAKS if how != "short"),
    *((3, name, "short", place) for name in ("chat", "responses") for place in HARDEST),
    *((3, "chat", how, "in a character") for how in BREAKS if how != "short"),
]


@pytest.mark.parametrize(("listeners", "name", "how", "place"), CASES)
async def test_wherever_and_however(open_gateway: Open, listeners: int, name: str, how: str, place: str) -> None:
    endpoint = ENDPOINTS[name]
    at = PLACES[place](endpoint)
    broken, code = BREAKS[how]
    begin = asyncio.Event()
    clients = [Listener() for _ in range(listeners)]

    async def heard() -> None:
        await until(lambda: all(len(client.data) >= at for client in clients))

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await begin.wait()
        await broken((reader, writer), endpoint.text[:at], heard)

    upstream = ScriptedUpstream(script)
    async with upstream as base_url:
        gateway = await open_gateway(
            **{"upstream.base_url": base_url, "streams.keep_alive_seconds": 0.25}
            # Upstream says nothing either until all listen.
            | ({"upstream.read_timeout_seconds": 2.0} if how == "silence" else {})
        )
        ask = {**endpoint.ask, "temperature": 0 if listeners > 1 else 1}
        request = gateway.request_bytes(json.dumps(ask).encode(), path=endpoint.path)
        listening = [asyncio.ensure_future(client.listen(gateway, request)) for client in clients]
        await until(lambda: gateway.in_flight == listeners and upstream.calls == 1)
        if listeners > 1:
            (flight,) = gateway.worker.services.flights._under_way.values()
            await until(lambda: len(flight._seats) == listeners)
        begin.set()
        answers = await asyncio.gather(*listening)
        for answer in answers:
            assert (answer.status, answer.clean) == (200, False)
            assert not answer.data.endswith(b"0\r\n\r\n")
            data = unchunked(answer).replace(KEEP_ALIVE, b"")
            whole = b"".join(each for each in data.split(b"\n\n")[:-2])
            assert error_at_the_end(endpoint.path, data) == code
            if name == "chat, usage hidden":
                # Whole events alone.
                assert endpoint.text.replace(b"\n\n", b"").startswith(whole)
            else:
                assert data.startswith(endpoint.text[:at])
            assert b"[DONE]" not in data or at > endpoint.text.index(b"[DONE]")
        assert upstream.calls == 1
        (event,) = await gateway.events()
        assert (event["outcome"], event["status"], event["estimated"]) == ("upstream_error", 200, True)
        assert gateway.total("tollgate_requests_total", outcome="upstream_error") == listeners
        assert [record["outcome"] for record in gateway.records()] == ["upstream_error"] * listeners
        assert gateway.total("tollgate_upstream_errors_total") == 1
        requests, tokens = await gateway.charged()
        assert requests == listeners
        # What was charged by characters, before it was counted, stays where that was more.
        assert event["input_tokens"] + event["output_tokens"] <= tokens < 100
        assert len(gateway.worker.services.flights) == 0
        assert await gateway.mismatches() == []


@pytest.mark.parametrize("place", HARDEST)
@pytest.mark.parametrize(
    ("listeners", "endpoint"),
    [*((listeners, ENDPOINTS[name]) for listeners in (1, 3) for name in ("chat", "responses")), (1, IMAGES)],
    ids=["chat", "responses", "chat shared", "responses shared", "images"],
)
async def test_one_that_is_cut_at_shutdown_tells_so(
    open_gateway: Open, listeners: int, endpoint: Endpoint, place: str
) -> None:
    sent = endpoint.text[: PLACES[place](endpoint)]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Connection: close\r\n\r\n" + sent)
        await reader.read()

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url, "server.drain_seconds": 0.3})
        ask = json.dumps({**endpoint.ask, **({"temperature": 0} if listeners > 1 else {})}).encode()
        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(gateway.connection()) for _ in range(listeners)]
            for reader, writer in connections:
                writer.write(gateway.request_bytes(ask, path=endpoint.path))
                await reader.readuntil(b"\r\n\r\n")
            await gateway.stop()
            for reader, _ in connections:
                data = unchunked(Answer(b"\r\n\r\n" + await reader.read(), clean=False))
                assert data.startswith(sent + b"\n\n")
                assert error_at_the_end(endpoint.path, data) == "server_is_overloaded"
        assert [record["outcome"] for record in gateway.records()] == ["unavailable"] * listeners


async def test_one_that_was_told_whole_is_told_nothing_more_at_shutdown(open_gateway: Open) -> None:
    endpoint = ENDPOINTS["chat"]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Connection: close\r\n\r\n" + endpoint.text)
        await reader.read()

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url, "server.drain_seconds": 0.3})
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes(json.dumps(endpoint.ask).encode(), path=endpoint.path))
            await reader.readuntil(b"\r\n\r\n")
            await gateway.stop()
            assert unchunked(Answer(b"\r\n\r\n" + await reader.read(), clean=False)) == endpoint.text


async def hear_out(stream: AsyncStream, seen: list) -> None:
    async for event in stream:
        seen.append(event)  # noqa: PERF401 - what was seen before it raised is looked at


@pytest.mark.parametrize("place", ["between two events", "in a character", "before the last"])
@pytest.mark.parametrize("endpoint", ENDPOINTS.values(), ids=ENDPOINTS)
async def test_the_official_sdk_raises(open_gateway: Open, endpoint: Endpoint, place: str) -> None:
    at = PLACES[place](endpoint)

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"Content-Length: 1000000\r\n\r\n" + endpoint.text[:at])
        await writer.drain()

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        async with AsyncOpenAI(base_url=gateway.worker.base_url, api_key=gateway.key, max_retries=0) as client:
            create = {
                "/v1/chat/completions": client.chat.completions.create,
                "/v1/completions": client.completions.create,
                "/v1/responses": client.responses.create,
            }[endpoint.path]
            stream = await create(**endpoint.ask)
            # What was cut inside an event is no JSON, or no text; elsewhere the error is told in its own words.
            cut_inside = place == "in a character" and endpoint is not ENDPOINTS["chat, usage hidden"]
            seen = []
            with pytest.raises((ValueError, openai.APIError) if cut_inside else openai.APIError) as raised:
                await hear_out(stream, seen)
        if endpoint.path == "/v1/responses" and not cut_inside:
            # An error is an event like others there; the SDK raises at the broken connection behind it.
            assert (seen[-1].type, seen[-1].code) == ("error", "upstream_broken")
        elif not cut_inside:
            assert "broke off" in raised.value.message


async def test_a_plain_answer_whose_framing_breaks_is_not_waited_for(open_gateway: Open) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{    \r\n"
        )
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(b"no size at all\r\n")
        await reader.read()

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        answer = await gateway.raw(gateway.request_bytes(CHAT))
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
