"""Streams reach the client byte for byte as upstream sent them, however they were cut on the way."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults.conftest import CHAT, PATIENCE_SECONDS, UPSTREAM_KEY, Answer, Gateway, Open, ScriptedUpstream

FORM = "multipart/form-data; boundary=edge"


def form(**fields: str) -> bytes:
    """A form with these fields, and a file under every name that an endpoint looks for one at."""
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}' for name, value in fields.items()]
    parts += [f'Content-Disposition: form-data; name="{name}"; filename="a"\r\n\r\nabc' for name in ("file", "image")]
    return "".join(f"--edge\r\n{part}\r\n" for part in parts).encode() + b"--edge--\r\n"


def event(kind: str, **members: object) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **members}).encode() + b"\n\n"


def data(**members: object) -> bytes:
    return b"data: " + json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def choice(finish_reason: str | None = None, **said: object) -> list[object]:
    return [{"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}]


DONE = b"data: [DONE]\n\n"
USED = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
COUNTED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": [], "usage": USED}


@dataclass(frozen=True)
class Kind:
    """One streamed endpoint: what is asked, and what the events of its stream look like."""

    path: str
    body: bytes
    text: bytes
    """An event with a piece of text or of something else."""
    end: bytes
    """The events that make the stream whole, and tell its usage."""
    content_type: str = "application/json"


def asked(**members: object) -> bytes:
    return json.dumps({**members, "stream": True}).encode()


WITH_USAGE = {"stream_options": {"include_usage": True}}
KINDS = {
    "chat": Kind(
        "/v1/chat/completions",
        asked(**CHAT, **WITH_USAGE),
        data(id="chatcmpl-1", choices=choice(delta={"content": "žluť 🦔"}), usage=None),
        data(choices=choice("stop", delta={}), usage=None) + data(choices=[], usage=COUNTED) + DONE,
    ),
    "completions": Kind(
        "/v1/completions",
        asked(model="gpt-3.5-turbo-instruct", prompt="How deep?", **WITH_USAGE),
        data(id="cmpl-1", choices=choice(text="žluť 🦔"), usage=None),
        data(choices=choice("stop", text=""), usage=None) + data(choices=[], usage=COUNTED) + DONE,
    ),
    "responses": Kind(
        "/v1/responses",
        asked(model="gpt-4o-mini", input="How deep?"),
        event("response.output_text.delta", delta="žluť 🦔", obfuscation="x1y2z3"),
        event("response.completed", response=RESPONSE),
    ),
    "images": Kind(
        "/v1/images/generations",
        asked(model="gpt-image-1", prompt="a lock", partial_images=2),
        event("image_generation.partial_image", b64_json="QUJD", partial_image_index=0),
        event("image_generation.completed", b64_json="QUJD", usage=USED),
    ),
    "image edits": Kind(
        "/v1/images/edits",
        form(model="gpt-image-1", prompt="a lock", stream="true"),
        event("image_edit.partial_image", b64_json="QUJD", partial_image_index=0),
        event("image_edit.completed", b64_json="QUJD", usage=USED),
        FORM,
    ),
    "speech": Kind(
        "/v1/audio/speech",
        asked(model="gpt-4o-mini-tts", voice="alloy", input="How deep?", stream_format="sse"),
        data(type="speech.audio.delta", audio="QUJD"),
        data(type="speech.audio.done", usage=USED),
    ),
    "transcription": Kind(
        "/v1/audio/transcriptions",
        form(model="gpt-4o-transcribe", stream="true"),
        data(type="transcript.text.delta", delta="žluť 🦔"),
        data(type="transcript.text.done", text="žluť 🦔", usage={"type": "tokens", **USED}),
        FORM,
    ),
}

NOISE = [
    b": keep-alive\n\n",
    b":\r\n\r\n",
    b"\n\n",
    b"retry: 1000\n\n",
    b"event: ping\ndata: {}\n\n",
    b'event: a thing of tomorrow\r\ndata: {"type":\r\ndata: "unknown", "deep": [1, null]}\r\n\r\n',
    b'data:{"no":"blank"}\n\n',
    b'data: {"over": \ndata: "two lines"}\n\n',
    b'data: {"type": "padding", "padding": "' + b"x" * 200_000 + b'"}\n\n',
]
HIDDEN = {
    "chat": replace(
        KINDS["chat"],
        body=asked(**CHAT),
        text=data(id="chatcmpl-1", choices=choice(delta={"content": "žluť 🦔"})),
        end=data(choices=choice("stop", delta={})) + DONE,
    ),
    "completions": replace(
        KINDS["completions"],
        body=asked(model="gpt-3.5-turbo-instruct", prompt="How deep?"),
        text=data(id="cmpl-1", choices=choice(text="žluť 🦔")),
        end=data(choices=choice("stop", text="")) + DONE,
    ),
}
"""The same for clients that did not ask for usage: what they get instead."""
OF_ITS_OWN = re.compile(rb'(?<=chatcmpl-)\w{29}|(?<=cmpl-)\w{29}|(?<=_)\w{29}|(?<="created":)\d+|(?<="created_at":)\d+')
"""What differs between two answers of the simulator."""

PIECES = st.lists(st.sampled_from([None, None, None, *NOISE]), max_size=12)
"""None: a piece of text."""
HUGE_BYTES = 12_000_000
LONE = b'data: {"a lone return":1}\r\r'
"""A line end that the format has and no upstream uses: events of text are read with it, the larger ones are not."""
WRITTEN = st.sampled_from([lambda body: body, lambda body: re.sub(rb"\r?\n", b"\r\n", body)])
"""With either line end that upstreams use."""
CUTS = st.lists(st.floats(0, 1), max_size=20)


class Canned:
    """An upstream that sends what `body` says, cut where `cuts` says, each piece in a write of its own."""

    def __init__(self) -> None:
        self.body = b""
        self.cuts: Sequence[int] = ()

    async def script(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        at = 0
        for cut in (*self.cuts, len(self.body)):
            if piece := self.body[at:cut]:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                await writer.drain()
                await asyncio.sleep(0)
                at = cut
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def ask(gateway: Gateway, kind: Kind, *more: str) -> tuple[Answer, bytes | None]:
    """The answer, and all that it says; None for one that did not come to its end."""
    head = [
        f"POST {kind.path} HTTP/1.1",
        "Host: gateway",
        "Connection: close",
        f"Authorization: Bearer {gateway.key}",
        f"Content-Type: {kind.content_type}",
        f"Content-Length: {len(kind.body)}",
        *more,
    ]
    async with gateway.connection() as (reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + kind.body)
        answer = Answer(await reader.read(), clean=True)
    assert "chunked" in answer.headers["transfer-encoding"], answer.body
    return answer, unchunked(answer.body)


def unchunked(rest: bytes) -> bytes | None:
    """The payload of a chunked body; None where its end is missing."""
    payload = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(payload) if rest == b"\r\n" else None
        payload.append(rest[:length])
        rest = rest[length + 2 :]
    return None


@pytest_asyncio.fixture
async def canned(open_gateway: Open) -> AsyncIterator[tuple[Canned, Gateway]]:
    """One gateway in front of one canned upstream, for all examples of a test."""
    upstream = Canned()
    async with ScriptedUpstream(upstream.script) as url:
        yield upstream, await open_gateway(**{"upstream.base_url": url})


any_stream = settings(
    max_examples=30,
    deadline=None,
    # How long it takes to draw an example says more of the machine.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


async def passed(canned: tuple[Canned, Gateway], kind: Kind, body: bytes, cuts: Sequence[float]) -> bytes | None:
    """What the client gets of `body` cut at these shares of its length."""
    upstream, gateway = canned
    upstream.body, upstream.cuts = body, sorted(int(cut * len(body)) for cut in cuts)
    answer, said = await ask(gateway, kind)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    return said


@any_stream
@given(pieces=PIECES, written=WRITTEN, cuts=CUTS)
@pytest.mark.parametrize("name", KINDS)
async def test_a_stream_passes_byte_for_byte(canned, name, pieces, written, cuts) -> None:
    kind = KINDS[name]
    body = written(b"".join(kind.text if piece is None else piece for piece in pieces) + kind.end)
    if name in {"chat", "completions", "responses"}:
        body = LONE + body
    assert await passed(canned, kind, body, cuts) == body


@pytest.mark.parametrize("name", KINDS)
async def test_a_huge_event_passes_too(canned, name) -> None:
    body = KINDS[name].text + data(type="a thing of tomorrow", padding="x" * HUGE_BYTES) + KINDS[name].end
    said = await passed(canned, KINDS[name], body, [number / 97 for number in range(97)])
    assert hashlib.sha256(said or b"").digest() == hashlib.sha256(body).digest()


@any_stream
@given(pieces=PIECES, written=WRITTEN, cuts=CUTS)
@pytest.mark.parametrize("name", HIDDEN)
async def test_where_nobody_asked_for_usage_it_alone_is_missing(canned, name, pieces, written, cuts) -> None:
    kind, bare = KINDS[name], HIDDEN[name]
    bodies = [
        written(b"".join(each.text if piece is None else piece for piece in pieces) + each.end) for each in (kind, bare)
    ]
    assert bodies[0].count(b'"usage"') == pieces.count(None) + 2
    assert await passed(canned, bare, bodies[0], cuts) == bodies[1]


@pytest.mark.parametrize("name", KINDS)
async def test_the_simulators_streams_are_the_same_straight_and_through(gateway: Gateway, name: str) -> None:
    kind = KINDS[name]
    headers = {"Authorization": f"Bearer {UPSTREAM_KEY}", "Content-Type": kind.content_type}
    url = f"http://127.0.0.1:{gateway.simulator.port}{kind.path}"
    async with gateway.session.post(url, data=kind.body, headers=headers) as straight:
        assert straight.status == 200
        body = OF_ITS_OWN.sub(b"", await straight.read())
    assert len(body) > 300
    for split in (1, 7, 64, 4_096):
        answer, said = await ask(gateway, kind, f"x-simulate-split: {split}")
        assert answer.status == 200
        assert OF_ITS_OWN.sub(b"", said or b"") == body
    events = await gateway.events()
    made = list(gateway.stats.records)[-4:]
    assert [(each["input_tokens"], each["output_tokens"], each["outcome"]) for each in events] == [
        (record.input_tokens, record.output_tokens, "ok") for record in made
    ]
    assert all(record.completed for record in made)
