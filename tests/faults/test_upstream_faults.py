"""Whatever upstream does: a client that can tell, one event, a charge that holds, a metric that shows it."""

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from proxy.adapters.memory.cache import MemoryFill
from proxy.simulator import Behaviour
from tests.faults.conftest import (
    CHAT,
    TEAM,
    UPSTREAM_KEY,
    Answer,
    Gateway,
    Open,
    ScriptedUpstream,
    at_rest,
    nobody,
    read_answer,
    until,
)

STREAM = {**CHAT, "stream": True}
RESERVED = (7, 1_024)
PROMPT = 13  # by the tokenizer: 3 for the message, 1 for its role, 6 for its text, 3 before the answer
COMPLETION = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "deep"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()


def chunk(text: str | None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def unchunked(answer: Answer) -> bytes:
    """The payload of a chunked answer, as far as it came."""
    data, rest = b"", answer.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        data, rest = data + rest[:length], rest[length + 2 :]
    return data


def says(data: bytes, *, status: str = "200 OK", content_type: str = "application/json", headers: str = ""):
    """A script: one answer, then the end of the connection."""

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nConnection: close\r\n{headers}\r\n"
        writer.write(head.encode("latin-1") + data)
        await writer.drain()

    return script


@dataclass(frozen=True)
class Expected:
    """What must hold once a request is over."""

    outcome: str
    status: int
    attempts: int = 1
    tokens: tuple[int, int] | None = (0, 0)
    """None: as many as the simulator used."""
    estimated: bool = False
    errors: Mapping[str, int] = ()
    """Of the metric, by kind."""


async def ended(gateway: Gateway, expected: Expected) -> dict:
    """Check the account, the limiter and the metrics of the one request there was."""
    (event,) = await gateway.events()
    assert (event["outcome"], event["status"], event["attempts"], event["estimated"]) == (
        expected.outcome,
        expected.status,
        expected.attempts,
        expected.estimated,
    )
    tokens = expected.tokens
    if tokens is None:
        used = gateway.stats.records[-1]
        tokens = (used.input_tokens, used.output_tokens)
    assert (event["input_tokens"], event["output_tokens"]) == tokens
    assert (event["cost_pico_usd"] > 0) == (sum(tokens) > 0)
    assert await gateway.charged() == (1, sum(tokens))
    errors = {
        sample.labels["kind"]: sample.value
        for sample in gateway.worker.metrics.upstream_errors_total.collect()[0].samples
        if sample.name.endswith("_total") and sample.value
    }
    assert errors == dict(expected.errors)
    assert gateway.total("tollgate_retries_total") == expected.attempts - 1
    assert gateway.total("tollgate_requests_total", team=TEAM, outcome=expected.outcome) == 1
    assert gateway.in_flight == 0
    (record,) = gateway.records()
    assert (record["status"], record["outcome"]) == (expected.status, expected.outcome)
    assert UPSTREAM_KEY not in gateway.log.getvalue()
    assert await gateway.mismatches() == []
    return event


async def told(gateway: Gateway, body: dict, *wishes: str) -> Answer:
    answer = await gateway.raw(gateway.request_bytes(body, *(f"x-simulate-{wish}" for wish in wishes)))
    assert UPSTREAM_KEY.encode() not in answer.data
    return answer


def broken_off(answer: Answer, code: str) -> list[bytes]:
    """The events of a stream that nobody can take for whole: an error comes last, and the framing never ends."""
    assert answer.status == 200
    assert not answer.clean
    assert not answer.data.endswith(b"0\r\n\r\n")
    data = unchunked(answer)
    *events, last, rest = data.split(b"\n\n")
    assert rest == b""
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert (error["type"], error["code"]) == ("server_error", code)
    assert b"[DONE]" not in data
    return events


PATIENT_SECONDS = 0.8
"""Of silence that is waited for. What comes before it is not silent for so long."""
BOTH = pytest.mark.parametrize("body", [CHAT, STREAM], ids=["plain", "stream"])


async def test_a_wait_longer_than_a_client_would_sit_through_is_the_clients(gateway: Gateway) -> None:
    answer = await told(gateway, CHAT, "status: 429", "retry-after: 7")
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")
    assert answer.headers["x-ratelimit-remaining-requests"] == "999999", "the team's own, not the account's"
    await ended(gateway, Expected("upstream_error", 429, errors={"status_429": 1}))


async def test_a_quota_that_is_used_up_stays_used_up(open_gateway: Open) -> None:
    error = {"error": {"message": "quota", "type": "insufficient_quota", "param": None, "code": "insufficient_quota"}}
    async with ScriptedUpstream(says(json.dumps(error).encode(), status="429 Too Many Requests")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (429, "insufficient_quota")
        await ended(gateway, Expected("upstream_error", 429, errors={"status_429": 1}))


@BOTH
@pytest.mark.parametrize("setting", ["read_timeout_seconds", "total_timeout_seconds"])
async def test_silence_before_the_head(open_gateway: Open, body: dict, setting: str) -> None:
    gateway = await open_gateway(**{f"upstream.{setting}": PATIENT_SECONDS})
    answer = await told(gateway, body, "hang: 1")
    assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
    await until(lambda: gateway.stats.cut_by_client == 1)
    await ended(gateway, Expected("upstream_error", 504, 1, RESERVED, estimated=True, errors={"timeout": 1}))


async def test_silence_in_a_stream(open_gateway: Open) -> None:
    gateway = await open_gateway(**{"upstream.read_timeout_seconds": PATIENT_SECONDS})
    answer = await told(gateway, STREAM, "chunk-ms: 600000")
    events = broken_off(answer, "upstream_timeout")
    assert len(events) == 2
    await until(lambda: gateway.stats.cut_by_client == 1)
    event = await ended_stream(gateway, "timeout")
    assert event["output_tokens"] in {1, 2}


async def ended_stream(gateway: Gateway, kind: str) -> dict:
    """As `ended`, for a stream that broke off: what was counted of it is charged."""
    (event,) = await gateway.events()
    assert (event["outcome"], event["status"], event["attempts"], event["estimated"]) == (
        "upstream_error",
        200,
        1,
        True,
    )
    assert event["input_tokens"] == PROMPT
    assert await gateway.charged() == (1, event["input_tokens"] + event["output_tokens"])
    assert gateway.total("tollgate_upstream_errors_total") == 1
    assert gateway.total("tollgate_upstream_errors_total", kind=kind) == 1
    assert gateway.total("tollgate_estimated_usage_total", reason="upstream_error") == 1
    assert gateway.in_flight == 0
    return event


@pytest.mark.parametrize("setting", ["read_timeout_seconds", "total_timeout_seconds"])
async def test_silence_after_the_head_of_a_plain_answer(open_gateway: Open, setting: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{")
        await reader.readexactly(1)  # until the other side leaves

    upstream = ScriptedUpstream(script)
    async with upstream as url:
        gateway = await open_gateway(**{"upstream.base_url": url, f"upstream.{setting}": PATIENT_SECONDS})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (504, "upstream_timeout")
        await ended(gateway, Expected("upstream_error", 504, 1, RESERVED, estimated=True, errors={"timeout": 1}))
    assert upstream.left == 1


@pytest.mark.parametrize("after", [0, 1, 3, 16])
async def test_a_stream_that_is_cut(gateway: Gateway, after: int) -> None:
    answer = await told(gateway, STREAM, f"cut-after: {after}")
    assert len(broken_off(answer, "upstream_broken")) == after
    event = await ended_stream(gateway, "broken")
    assert event["output_tokens"] >= max(0, after - 1)


@pytest.mark.parametrize("missing", [0, 2, 9])
async def test_a_stream_that_is_cut_inside_a_chunk_of_http(open_gateway: Open, missing: int) -> None:
    half = chunk("deep") + chunk("bucket")[:-20]
    framed = b"%x\r\n%s" % (len(half), half[: len(half) - missing])
    script = says(framed, content_type="text/event-stream", headers="Transfer-Encoding: chunked\r\n")
    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, STREAM)
        assert broken_off(answer, "upstream_broken") == [chunk("deep")[:-2]]
        await ended_stream(gateway, "broken")


async def test_an_event_that_was_passed_in_half_is_not_glued_to_the_error(open_gateway: Open) -> None:
    half = chunk("bucket")[:-20]
    async with ScriptedUpstream(says(chunk("deep") + half, content_type="text/event-stream")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, {**STREAM, "stream_options": {"include_usage": True}})
        events = broken_off(answer, "upstream_broken")
        assert events == [chunk("deep")[:-2], half]


async def test_a_stream_that_is_reset(open_gateway: Open) -> None:
    heard = asyncio.Event()

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk("deep"))
        await heard.wait()  # or the reset would overtake it
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        async with gateway.connection() as (reader, writer):
            writer.write(gateway.request_bytes(STREAM))
            data = await reader.readuntil(chunk("deep"))
            heard.set()
            data += (await read_answer(reader)).data
        assert broken_off(Answer(data, clean=False), "upstream_broken") == [chunk("deep")[:-2]]
        await ended_stream(gateway, "broken")


async def test_a_stream_that_ends_in_order_and_is_not_whole(open_gateway: Open) -> None:
    async with ScriptedUpstream(says(chunk("deep") + chunk("er"), content_type="text/event-stream")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, STREAM)
        assert len(broken_off(answer, "upstream_broken")) == 2
        await ended_stream(gateway, "broken")


async def test_a_stream_that_breaks_while_the_client_is_behind(open_gateway: Open) -> None:
    """The end of the connection must not be mistaken for the end of the answer, though much waits to be sent."""
    piece = chunk("x" * 1_000)
    sent = 0

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        while sent < 8_000:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            sent += 1

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        async with gateway.connection() as (reader, writer):
            reader._transport.pause_reading()
            writer.write(gateway.request_bytes(STREAM))
            await at_rest(lambda: sent)  # buffers are full, or take all of it
            assert gateway.in_flight == 1
            reader._transport.resume_reading()
            data = await reader.read()
        broken_off(Answer(data, clean=False), "upstream_broken")


async def test_an_error_whose_body_breaks_off_is_tried_again(open_gateway: Open) -> None:
    upstream = ScriptedUpstream(says(b"{", status="500 Oops", headers="Content-Length: 100\r\n"))
    async with upstream as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 3, errors={"broken": 3}))
    assert upstream.calls == 3


@pytest.mark.parametrize("wish", ["x-should-retry: false", "Retry-After: 9"])
async def test_the_head_of_an_error_whose_body_breaks_off_holds(open_gateway: Open, wish: str) -> None:
    upstream = ScriptedUpstream(says(b"{", status="503 Away", headers=f"Content-Length: 100\r\n{wish}\r\n"))
    async with upstream as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        assert (await told(gateway, CHAT)).status == 502
    assert upstream.calls == 1, "it says that a second call will not help, or not as soon as a client would wait"


@pytest.mark.parametrize("size", [1, 2, 7, 64])
@pytest.mark.parametrize("usage", [False, True])
async def test_a_stream_that_drips(gateway: Gateway, size: int, usage: bool) -> None:
    body = {**STREAM, "stream_options": {"include_usage": usage}}
    answer = await told(gateway, body, f"split: {size}")
    assert answer.clean
    events = unchunked(answer).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert len(events) == 20 + usage
    assert (b'"usage"' in unchunked(answer)) == usage
    await ended(gateway, Expected("ok", 200, 1, None))


@pytest.mark.parametrize(("body", "wish"), [(CHAT, "text/html"), (STREAM, "Text/Event-Stream")])
async def test_a_content_type_that_says_too_little(gateway: Gateway, body: dict, wish: str) -> None:
    answer = await told(gateway, body, f"content-type: {wish}")
    assert (answer.status, answer.clean) == (200, True)
    await ended(gateway, Expected("ok", 200, 1, None))


async def test_a_stream_under_a_wrong_name_is_no_answer(gateway: Gateway) -> None:
    answer = await told(gateway, STREAM, "content-type: application/json")
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    await ended(gateway, Expected("upstream_error", 502, 1, RESERVED, estimated=True, errors={"content": 1}))


async def test_a_plain_answer_to_a_stream_request_is_given_as_it_is(open_gateway: Open) -> None:
    async with ScriptedUpstream(says(COMPLETION)) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, STREAM)
        assert (answer.status, answer.body) == (200, COMPLETION)
        await ended(gateway, Expected("ok", 200, 1, (9, 1)))


@pytest.mark.parametrize("usage", [-5, 2**63, "many", 1.5, [], {"prompt_tokens": -1, "completion_tokens": 2**50}])
async def test_usage_that_no_meter_can_show_is_none(open_gateway: Open, usage: object) -> None:
    content = json.dumps({**json.loads(COMPLETION), "usage": usage}).encode()
    async with ScriptedUpstream(says(content)) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.body) == (200, content)
        (event,) = await gateway.events()
        assert (event["outcome"], event["estimated"], event["input_tokens"]) == ("ok", True, PROMPT)
        assert 0 < event["output_tokens"] < 200
        assert await gateway.charged() == (1, event["input_tokens"] + event["output_tokens"])


@pytest.mark.parametrize("content", [b'{"id":"chatcmpl-', b"<html>hello</html>", b"", b"[1]", b"\xff\xfe"])
async def test_a_body_that_is_no_answer(open_gateway: Open, content: bytes) -> None:
    async with ScriptedUpstream(says(content)) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 1, RESERVED, estimated=True, errors={"content": 1}))


async def test_a_chunk_that_is_not_json_passes_and_is_not_kept(gateway: Gateway) -> None:
    answer = await told(gateway, {**STREAM, "temperature": 0}, "malformed: 1")
    assert answer.clean
    assert unchunked(answer).endswith(b"data: [DONE]\n\n")
    await ended(gateway, Expected("ok", 200, 1, None))
    again = await told(gateway, {**STREAM, "temperature": 0})
    assert "fwd=" in again.headers["cache-status"]


@BOTH
@pytest.mark.parametrize("how", ["cancel", "drain"])
async def test_a_fault_of_ours_after_the_account_was_written(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, body: dict, how: str
) -> None:
    gateway = await open_gateway(**{"streams.on_disconnect": how})

    async def fall_over(*_: object) -> bool:
        raise RuntimeError(gateway.key)

    monkeypatch.setattr(MemoryFill, "store", fall_over)
    answer = await told(gateway, {**body, "temperature": 0})
    streamed = body is STREAM
    assert (answer.status, answer.clean) == (200 if streamed else 500, not streamed)
    assert b"[DONE]" not in answer.data
    assert not answer.data.endswith(b"0\r\n\r\n")
    (event,) = await gateway.events()
    used = gateway.stats.records[-1]
    assert (event["outcome"], event["estimated"]) == ("ok", False), "upstream did what it was asked for, and is paid"
    assert (event["input_tokens"], event["output_tokens"]) == (used.input_tokens, used.output_tokens)
    assert await gateway.charged() == (1, used.input_tokens + used.output_tokens)
    assert gateway.total("tollgate_requests_total", outcome="failed") == gateway.total("tollgate_requests_total") == 1
    (record,) = gateway.records()
    assert (record["status"], record["outcome"]) == (answer.status, "failed")
    assert record["cost_pico_usd"] == event["cost_pico_usd"]
    assert "unexpected RuntimeError" in caplog.text
    assert gateway.key not in caplog.text
    caplog.clear()


@pytest.mark.parametrize("after", [0, 2])
async def test_an_error_event_in_mid_stream(gateway: Gateway, after: int) -> None:
    answer = await told(gateway, STREAM, f"error-event-after: {after}")
    assert not answer.clean
    assert not answer.data.endswith(b"0\r\n\r\n")
    *events, last, rest = unchunked(answer).split(b"\n\n")
    assert (len(events), rest) == (after, b"")
    assert json.loads(last.removeprefix(b"data: "))["error"]["type"] == "server_error"
    await ended_stream(gateway, "content")


async def test_an_event_without_end(open_gateway: Open) -> None:
    script = says(chunk("deep") + b"data: " + b"x" * (17 << 20), content_type="text/event-stream")
    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, STREAM)
        assert broken_off(answer, "upstream_content") == [chunk("deep")[:-2]]
        await ended_stream(gateway, "content")


@BOTH
async def test_our_own_key_refused(open_gateway: Open, body: dict) -> None:
    gateway = await open_gateway(Behaviour(api_key="sk-another"))
    answer = await told(gateway, body)
    assert (answer.status, answer.error["code"]) == (502, "upstream_key_refused")
    assert answer.headers["x-should-retry"] == "false"
    assert "www-authenticate" not in answer.headers
    await ended(gateway, Expected("upstream_error", 502, errors={"status_401": 1}))


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent", "304 Not Modified"])
async def test_redirects_are_not_followed(open_gateway: Open, status: str) -> None:
    elsewhere = ScriptedUpstream(says(COMPLETION))
    async with elsewhere as url:
        script = says(b"", status=status, headers=f"Location: {url}/chat/completions\r\nContent-Length: 0\r\n")
        async with ScriptedUpstream(script) as base_url:
            gateway = await open_gateway(**{"upstream.base_url": base_url})
            answer = await told(gateway, CHAT)
            assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
            assert "location" not in answer.headers
            await ended(gateway, Expected("upstream_error", 502, errors={"content": 1}))
    assert elsewhere.calls == 0, "our key goes nowhere else"


@pytest.mark.parametrize("content", [b"<html>Bad gateway</html>", b"", b'"oops"', b'{"detail":"Not Found"}'])
async def test_errors_in_no_known_shape(open_gateway: Open, content: bytes) -> None:
    async with ScriptedUpstream(says(content, status="404 Not Found", content_type="text/html")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["type"]) == (404, "server_error")
        assert answer.headers["content-type"] == "application/json"
        assert answer.data.lower().count(b"\r\ncontent-type:") == 1
        await ended(gateway, Expected("upstream_error", 404))


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nobody_listens(open_gateway: Open, scheme: str) -> None:
    with nobody() as url:
        gateway = await open_gateway(**{"upstream.base_url": url.replace("http", scheme)})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 3, errors={"unreachable": 3}))


async def test_no_such_host(open_gateway: Open) -> None:
    gateway = await open_gateway(**{"upstream.base_url": "http://upstream.invalid/v1"})
    answer = await told(gateway, CHAT)
    assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
    assert b"upstream.invalid" not in answer.data
    await ended(gateway, Expected("upstream_error", 502, 3, errors={"unreachable": 3}))


async def test_tls_that_fails(open_gateway: Open) -> None:
    async def script(_: asyncio.StreamReader, __: asyncio.StreamWriter) -> None:
        raise AssertionError("no request comes through a handshake that failed")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        gateway = await open_gateway(**{"upstream.base_url": f"https://127.0.0.1:{port}/v1"})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 3, errors={"unreachable": 3}))


async def test_an_answer_that_is_not_http(open_gateway: Open) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n\r\n")

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 3, errors={"broken": 3}))


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
async def test_headers_that_are_not_text(open_gateway: Open, status: str) -> None:
    headers = "x-request-id: req_\xff\r\nopenai-version: \xfe\xff\r\nset-cookie: a=b\r\n"
    body = COMPLETION if status.startswith("200") else b'{"error":{"message":"no"}}'
    async with ScriptedUpstream(says(body, status=status, headers=headers)) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert answer.status == int(status[:3])
        assert answer.body == body
        assert answer.headers["x-request-id"].startswith("req_0")
        assert not {"x-upstream-request-id", "set-cookie"} & set(answer.headers)
        (record,) = gateway.records()
        assert record["upstream_request_id"] is None


async def test_an_answer_that_is_compressed_though_nobody_asked(open_gateway: Open) -> None:
    packed = gzip.compress(COMPLETION)
    async with ScriptedUpstream(says(packed, headers="Content-Encoding: gzip\r\n")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.body) == (200, COMPLETION)
        assert "content-encoding" not in answer.headers
        await ended(gateway, Expected("ok", 200, 1, (9, 1)))


async def test_a_compressed_answer_that_is_broken(open_gateway: Open) -> None:
    async with ScriptedUpstream(says(COMPLETION, headers="Content-Encoding: gzip\r\n")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await told(gateway, CHAT)
        assert (answer.status, answer.error["code"]) == (502, "upstream_unreachable")
        await ended(gateway, Expected("upstream_error", 502, 1, RESERVED, estimated=True, errors={"broken": 1}))


async def test_the_list_of_models_when_upstream_is_away(open_gateway: Open) -> None:
    async with ScriptedUpstream(says(b"<html>", status="500 Oops", content_type="text/html")) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        headers = {"Authorization": f"Bearer {gateway.key}"}
        async with gateway.session.get(f"{gateway.worker.base_url}/models", headers=headers) as response:
            assert response.status == 502
            assert (await response.json())["error"]["code"] == "upstream_unreachable"
        assert await gateway.events() == []
        assert await gateway.charged() == (0, 0)
        assert gateway.total("tollgate_requests_total", endpoint="models", outcome="upstream_error") == 1


async def test_an_upstream_that_refuses_stream_options_is_not_asked_for_usage(open_gateway: Open) -> None:
    gateway = await open_gateway(**{"streams.ask_for_usage": False})
    async with gateway.stream() as response:
        assert response.status == 200
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    assert b"stream_options" not in gateway.stats.last_body
    (event,) = await gateway.events()
    assert (event["outcome"], event["estimated"]) == ("ok", True)
    assert event["output_tokens"] >= 16


@pytest.mark.parametrize("asked", [CHAT, STREAM], ids=["whole", "stream"])
async def test_a_header_that_no_head_may_have_does_not_keep_the_answer_from_its_client(
    open_gateway: Open, asked: dict
) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind, body = "application/json", COMPLETION
        if asked is STREAM:
            kind, body = "text/event-stream", chunk("deep", "stop") + b"data: [DONE]\n\n"
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nopenai-version: a\x01b\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        got = await gateway.raw(gateway.request_bytes(asked))
        assert got.status == 200
        assert b"deep" in got.body
        assert "openai-version" not in got.headers
