"""Whatever a client sends: a clear error in OpenAI's shape, nothing upstream, nothing charged, and life goes on."""

import asyncio
import gzip
import json
import zlib

import pytest

from proxy.adapters.envelope import zstd
from tests.faults.conftest import CHAT, PATIENCE_SECONDS, TEAM, Answer, Gateway, Open, read_answer, until

GOOD = json.dumps(CHAT).encode()
NOT_HTTP = (400, "This is not a valid HTTP/1.1 request.")


def chat(**changes: object) -> bytes:
    return json.dumps({**CHAT, **changes}).encode()


def message(content: str) -> bytes:
    """A request whose message is a piece of JSON text."""
    return b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":%s}]}' % content.encode()


def shaped(answer: Answer) -> dict:
    """The error of an answer, which has OpenAI's shape."""
    assert answer.headers["content-type"].startswith("application/json")
    body = json.loads(answer.body)
    assert list(body) == ["error"]
    error = body["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    return error


async def untouched(gateway: Gateway) -> None:
    """Nothing of what came so far has left a trace, and a good request is served."""
    assert gateway.stats.requests == 0
    assert await gateway.charged() == (0, 0)
    assert await gateway.events() == []
    assert gateway.metric("tollgate_in_flight_requests") == 0
    assert all(record["attempts"] == 0 for record in gateway.records())
    await gateway.works()
    assert len(await gateway.events()) == 1


async def answers(gateway: Gateway, requests: dict[str, bytes]) -> dict[str, Answer]:
    return {name: await gateway.raw(data) for name, data in requests.items()}


BODIES = {
    "empty": (b"", 400, None),
    "blank": (b"  \n", 400, None),
    "no JSON": (b"hello", 400, None),
    "cut off": (GOOD[:-3], 400, None),
    "with a tail": (GOOD + b"}", 400, None),
    "two objects": (GOOD + GOOD, 400, None),
    "an array": (b"[]", 400, None),
    "null": (b"null", 400, None),
    "NaN": (chat(temperature=float("nan")), 400, None),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD, 400, None),
    "UTF-16": (GOOD.decode().encode("utf-16"), 400, None),
    "invalid UTF-8": (GOOD.replace(b"bucket", b"b\xff"), 400, None),
    "overlong UTF-8": (GOOD.replace(b"bucket", b"\xc0\x80"), 400, None),
    "duplicate key": (GOOD[:-1] + b',"model":"gpt-4o"}', 400, "duplicate_key"),
    "duplicate key in disguise": (GOOD[:-1] + b',"mod\\u0065l":"gpt-4o"}', 400, "duplicate_key"),
    "duplicate key inside": (message('"a","content":"b"'), 400, "duplicate_key"),
    "half a surrogate pair": (message(r'"\ud800"'), 400, None),
    "the other half": (message(r'"\udc00 \ud83d"'), 400, None),
    "half a pair as a key": (GOOD[:-1] + rb',"\uD800":1}', 400, None),
    "100 deep": (message("[" * 100 + "]" * 100), 400, None),
    "100 deep in an unknown field": (GOOD[:-1] + b',"x":' + b'{"a":' * 100 + b"1" + b"}" * 101, 400, None),
    "20,000 deep": (b'{"a":' * 15_000, 400, None),
    "brackets without end": (b"[" * 90_000, 400, None),
    "a number out of range": (GOOD[:-1] + b',"seed":1e999}', 400, None),
    "a number of 20,000 digits": (GOOD[:-1] + b',"seed":' + b"9" * 20_000 + b"}", 400, None),
    "a negative number of 20 digits": (GOOD[:-1] + b',"seed":-99999999999999999999}', 400, None),
    "no model": (b'{"messages":[]}', 400, "missing_required_parameter"),
    "model of the wrong type": (chat(model=5), 400, "invalid_type"),
    "model null": (chat(model=None), 400, "missing_required_parameter"),
    "model too long": (chat(model="m" * 300), 400, None),
    "unknown model": (chat(model="gpt-99"), 404, "model_not_found"),
    "model with NUL": (chat(model="gpt-4o\x00"), 404, "model_not_found"),
    "model with line ends": (chat(model="gpt-4o\r\nX-Evil: 1"), 404, "model_not_found"),
    "no messages": (b'{"model":"gpt-4o-mini"}', 400, "missing_required_parameter"),
    "messages an object": (chat(messages={}), 400, "invalid_type"),
    "a message of the wrong type": (chat(messages=["hi"]), 400, "invalid_type"),
    "a message without role": (chat(messages=[{"content": "x"}]), 400, "invalid_type"),
    "content a number": (message("5"), 400, "invalid_type"),
    "stream a string": (chat(stream="yes"), 400, "invalid_type"),
    "stream a number": (chat(stream=1), 400, "invalid_type"),
    "temperature a boolean": (chat(temperature=True), 400, "invalid_type"),
    "temperature out of range": (chat(temperature=2.5), 400, "decimal_above_max_value"),
    "max_tokens negative": (chat(max_tokens=-1), 400, "integer_below_min_value"),
    "max_tokens zero": (chat(max_tokens=0), 400, "integer_below_min_value"),
    "max_tokens absurd": (chat(max_tokens=2**40), 400, "integer_above_max_value"),
    "max_tokens above the model's": (chat(max_tokens=16_385), 400, None),
    "max_completion_tokens above the model's": (chat(max_completion_tokens=10**6), 400, None),
    "max_tokens a fraction": (chat(max_tokens=1.5), 400, "invalid_type"),
    "n absurd": (chat(n=10**6), 400, "integer_above_max_value"),
    "n negative": (chat(n=-1), 400, "integer_below_min_value"),
    "n a string": (chat(n="2"), 400, "invalid_type"),
    "tools an object": (chat(tools={}), 400, "invalid_type"),
    "stream_options a list": (chat(stream_options=[]), 400, "invalid_type"),
    "larger than the team's bucket": (chat(max_tokens=16_000, n=128), 429, "rate_limit_exceeded"),
    "over the limit": (GOOD + b" " * 100_000, 413, "request_too_large"),
}


async def test_bodies(gateway: Gateway) -> None:
    got = await answers(gateway, {name: gateway.request_bytes(body) for name, (body, *_) in BODIES.items()})
    told = {name: (answer.status, shaped(answer)["code"]) for name, answer in got.items()}
    assert told == {name: (status, code) for name, (_, status, code) in BODIES.items()}
    ids = [answer.headers["x-request-id"] for answer in got.values()]
    assert [record["request_id"] for record in gateway.records()] == ids
    await untouched(gateway)


async def test_a_body_of_exactly_the_limit_passes(gateway: Gateway) -> None:
    limit = gateway.settings.server.max_body_bytes
    assert (await gateway.raw(gateway.request_bytes(GOOD.ljust(limit)))).status == 200
    assert (await gateway.raw(gateway.request_bytes(GOOD.ljust(limit + 1)))).status == 413
    chunked = gateway.request_bytes(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    for size, status in ((limit, 200), (limit + 1, 413)):
        body = b"%x\r\n%s\r\n0\r\n\r\n" % (size, GOOD.ljust(size))
        assert (await gateway.raw(chunked + body)).status == status


async def test_a_length_that_is_too_large_is_refused_before_the_body_comes(gateway: Gateway) -> None:
    head = gateway.request_bytes(b"").replace(b"Content-Length: 0", b"Content-Length: 99999999999")
    async with gateway.connection() as (reader, writer):
        writer.write(head)
        answer = await read_answer(reader)
        assert (answer.status, shaped(answer)["code"]) == (413, "request_too_large")
    await untouched(gateway)


async def test_chunks_without_end_are_cut_at_the_limit(gateway: Gateway) -> None:
    head = gateway.request_bytes(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with gateway.connection() as (reader, writer):
        writer.write(head)
        for _ in range(200):
            writer.write(b"400\r\n" + b" " * 1_024 + b"\r\n")
        answer = await read_answer(reader)
        assert (answer.status, shaped(answer)["code"]) == (413, "request_too_large")
    await untouched(gateway)


async def test_the_limit_holds_for_what_a_body_unpacks_to(gateway: Gateway) -> None:
    blank = b" " * 50_000_000
    bombs = {"gzip": gzip.compress(blank), "deflate": zlib.compress(blank), "zstd": zstd.compress(blank)}
    for encoding, body in bombs.items():
        assert len(body) < gateway.settings.server.max_body_bytes
        answer = await gateway.raw(gateway.request_bytes(body, f"Content-Encoding: {encoding}"))
        assert (answer.status, shaped(answer)["code"]) == (413, "request_too_large")
    await untouched(gateway)


async def test_content_encodings(gateway: Gateway) -> None:
    packed = gzip.compress(GOOD)
    cases = {
        "not gzip": (GOOD, "gzip"),
        "cut off": (packed[:-12], "gzip"),
        "twice": (gzip.compress(packed), "gzip, gzip"),
        "unknown": (GOOD, "rot13"),
        # Whatever is installed beside the server.
        "brotli": (GOOD, "br"),
        "zstd twice": (zstd.compress(zstd.compress(GOOD)), "zstd, zstd"),
        "not zstd": (GOOD, "zstd"),
        "misnamed": (packed, "deflate"),
        "not told": (packed, "identity"),
    }
    requests = {
        name: gateway.request_bytes(body, f"Content-Encoding: {encoding}") for name, (body, encoding) in cases.items()
    }
    got = await answers(gateway, requests)
    assert {name: (answer.status, shaped(answer)["type"]) for name, answer in got.items()} == dict.fromkeys(
        cases, (400, "invalid_request_error")
    )
    await untouched(gateway)
    for encoding, body in (("gzip", packed), ("zstd", zstd.compress(GOOD)), ("GZIP", packed)):
        answer = await gateway.raw(gateway.request_bytes(body, f"Content-Encoding: {encoding}"))
        assert answer.status == 200
        assert gateway.stats.last_body == GOOD
        assert b"content-encoding" not in {name.lower() for name, _ in gateway.stats.last_headers}


async def test_keys(gateway: Gateway) -> None:
    good = gateway.request_bytes()
    bearer = f"Authorization: Bearer {gateway.key}".encode()
    kid, secret = gateway.key[6:18], gateway.key[19:]
    cases = {
        "none": (b"X-Nothing: here", None),
        "empty": (b"Authorization:", None),
        "no token": (b"Authorization: Bearer ", None),
        "basic": (b"Authorization: Basic dXNlcjpwYXNz", None),
        "bare": (b"Authorization: " + gateway.key.encode(), None),
        "malformed": (b"Authorization: Bearer sk-tg_short", "invalid_api_key"),
        "another's": (b"Authorization: Bearer sk-proj-abcdefghijklmnop", "invalid_api_key"),
        "wrong checksum": (bearer[:-1] + (b"0" if bearer[-1:] != b"0" else b"1"), "invalid_api_key"),
        "kid and secret swapped": (f"Authorization: Bearer sk-tg_{secret}_{kid}".encode(), "invalid_api_key"),
        "not ASCII": (bearer.replace(b"sk-", b"sk\xe9"), "invalid_api_key"),
        "UTF-8": (bearer + "é".encode(), "invalid_api_key"),
        "very long": (b"Authorization: Bearer " + b"a" * 60_000, "invalid_api_key"),
        "with a space": (bearer + b" x", "invalid_api_key"),
        "in the other header, wrong": (b"api-key: sk-tg_short", "invalid_api_key"),
    }
    got = await answers(gateway, {name: good.replace(bearer, line) for name, (line, _) in cases.items()})
    told = {name: (answer.status, shaped(answer)["code"]) for name, answer in got.items()}
    assert told == {name: (401, code) for name, (_, code) in cases.items()}
    assert all(answer.headers["www-authenticate"] == "Bearer" for answer in got.values())
    assert all(gateway.key.encode() not in answer.data for answer in got.values())
    await untouched(gateway)
    assert (await gateway.raw(good.replace(bearer, f"api-key: {gateway.key}".encode()))).status == 200
    assert gateway.key not in gateway.log.getvalue()


async def test_paths_are_what_they_look_like(gateway: Gateway) -> None:
    paths = {
        "//v1/chat/completions": 404,
        "/v1//chat/completions": 404,
        "/v1/chat/completions/": 404,
        "/v1/chat/completions/chatcmpl-1": 403,
        "/v1/../v1/chat/completions": 404,
        "/v1/./chat/completions": 404,
        "/v1/%2e%2e/v1/chat/completions": 404,
        "/v1/%63hat/completions": 404,
        "/v1/chat%2fcompletions": 404,
        "/v1%2Fchat/completions": 404,
        "/v1/chat/completions%00": 404,
        "/v1/chat/completions;a=b": 404,
        "/V1/chat/completions": 404,
        "/v1/Chat/Completions": 404,
        "/chat/completions": 404,
        "/v1chat/completions": 404,
        "/v1/": 404,
        "/": 404,
        "http://elsewhere.example/v1/chat/completions": 404,
        "/v1/files": 403,
        "/v1/files/../chat/completions": 404,
        "/v1/organization/users": 403,
        "/v1/%66iles": 404,
        "/v1/%ff%fe": 404,
    }
    got = await answers(gateway, {path: gateway.request_bytes(path=path) for path in paths})
    assert {path: answer.status for path, answer in got.items()} == paths
    assert {shaped(answer)["type"] for answer in got.values()} == {"invalid_request_error"}
    await untouched(gateway)


async def test_methods(gateway: Gateway) -> None:
    good = gateway.request_bytes()
    methods = {"PUT": 405, "DELETE": 405, "PATCH": 405, "OPTIONS": 405, "PROPFIND": 405}
    methods["GET"] = 403  # the list of what is stored
    got = await answers(gateway, {method: good.replace(b"POST", method.encode(), 1) for method in methods})
    assert {method: answer.status for method, answer in got.items()} == methods
    assert {shaped(answer)["type"] for answer in got.values()} == {"invalid_request_error"}
    answer = await gateway.raw(b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n")
    assert (answer.status, shaped(answer)["message"]) == (404, "Invalid URL (OPTIONS *)")
    answer = await gateway.raw(b"CONNECT elsewhere.example:443 HTTP/1.1\r\nHost: gateway\r\n\r\n")
    assert (answer.status, shaped(answer)["message"]) == (404, "Invalid URL (CONNECT elsewhere.example:443)")
    async with gateway.session.head(f"{gateway.worker.base_url}/models") as response:
        assert (response.status, response.headers["Allow"], await response.read()) == (405, "GET", b"")
    await untouched(gateway)


async def test_broken_http_is_answered_in_the_same_shape(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    good = gateway.request_bytes()
    head, _, _ = good.partition(b"\r\n\r\n")
    chunked = head.replace(b"Content-Length: %d" % len(GOOD), b"Transfer-Encoding: chunked") + b"\r\n\r\n"
    cases = {
        "a method nobody knows": good.replace(b"POST", b"BREW", 1),
        "a method with a bracket": good.replace(b"POST", b"PO(T", 1),
        "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "bare line feeds": good.replace(b"\r\n", b"\n"),
        "no host": good.replace(b"Host: gateway\r\n", b""),
        "NUL in a header": gateway.request_bytes(None, "x-a: b\x00c"),
        "control in a header": gateway.request_bytes(None, "x-a: b\x01c"),
        "a folded header": gateway.request_bytes(None, "x-a: b\r\n c"),
        "a space before the colon": gateway.request_bytes(None, "x-a : b"),
        "NUL in the path": gateway.request_bytes(path="/v1/chat\x00/completions"),
        "raw bytes in the path": gateway.request_bytes(path="/v1/\xff"),
        "raw bytes in the query": gateway.request_bytes(path="/v1/chat/completions?a=\xff"),
        "a URL that is none": gateway.request_bytes(path="http://[::1/v1/chat/completions"),
        "two lengths": gateway.request_bytes(None, "Content-Length: 3"),
        "a length and chunks": gateway.request_bytes(None, "Transfer-Encoding: chunked"),
        "an unknown framing": head.replace(b"Content-Length: ", b"Transfer-Encoding: x") + b"\r\n\r\n",
        "a negative length": good.replace(b"Content-Length: ", b"Content-Length: -"),
        "a chunk size that is none": chunked + b"zz\r\nabc\r\n",
        "a chunk longer than it says": chunked + b"3\r\nabcdef\r\n0\r\n\r\n",
    }
    got = await answers(gateway, cases)
    assert {name: (answer.status, shaped(answer)["message"]) for name, answer in got.items()} == dict.fromkeys(
        cases, NOT_HTTP
    )
    assert all(gateway.key.encode() not in answer.data for answer in got.values())
    assert gateway.key not in caplog.text
    await untouched(gateway)


async def test_headers_that_are_too_large(gateway: Gateway) -> None:
    cases = {
        "one": gateway.request_bytes(None, "x-a: " + "a" * 70_000),
        "the path": gateway.request_bytes(path="/v1/" + "a" * 70_000),
        "a thousand": gateway.request_bytes(None, *(f"x-a{number}: b" for number in range(1_000))),
    }
    got = await answers(gateway, cases)
    assert {name: (answer.status, shaped(answer)["type"]) for name, answer in got.items()} == dict.fromkeys(
        cases, (431, "invalid_request_error")
    )
    await untouched(gateway)


async def test_headers_beyond_ascii(gateway: Gateway) -> None:
    answer = await gateway.raw(gateway.request_bytes(None, "x-title: caf\xe9 noir"))
    assert (answer.status, shaped(answer)["message"]) == (400, "The value of the header x-title is not UTF-8.")
    await untouched(gateway)
    answer = await gateway.raw(gateway.request_bytes(None, "x-title: caf\xc3\xa9 noir"))
    assert answer.status == 200
    assert dict(gateway.stats.last_headers)[b"x-title"] == "café noir".encode()


@pytest.mark.parametrize("first", [b"4\r\n    \r\nzz\r\n", b"4\r\n    \r\n3\r\nabcdef\r\n"])
async def test_chunks_that_break_later(gateway: Gateway, first: bytes) -> None:
    head = gateway.request_bytes(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with gateway.connection() as (reader, writer):
        writer.write(head)
        await until(lambda: gateway.in_flight == 1)
        writer.write(first)
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await read_answer(reader)
        assert (answer.status, shaped(answer)["type"]) == (400, "invalid_request_error")
        assert await reader.read() == b"", "one answer, and the connection is closed"
    await untouched(gateway)


async def test_http_1_0(gateway: Gateway) -> None:
    good = gateway.request_bytes().replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await gateway.raw(good)
    assert answer.status == 200
    assert json.loads(answer.body)["usage"]
    stream = gateway.request_bytes(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0")
    answer = await gateway.raw(stream)
    assert b"transfer-encoding" not in answer.head.lower()
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert [event["outcome"] for event in await gateway.events()] == ["ok", "ok"]


async def test_an_upload_is_asked_for_only_once_it_is_wanted(gateway: Gateway) -> None:
    good = gateway.request_bytes(None, "Expect: 100-continue")
    head, _, body = good.partition(b"\r\n\r\n")
    async with gateway.connection() as (reader, writer):
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await read_answer(reader)).status == 200
    async with gateway.connection() as (reader, writer):
        writer.write(head.replace(b"sk-tg_", b"sk-gt_") + b"\r\n\r\n")
        answer = await read_answer(reader)
        assert (answer.status, shaped(answer)["code"]) == (401, "invalid_api_key")


async def test_what_was_refused_is_counted_and_logged_without_what_was_sent(gateway: Gateway) -> None:
    await gateway.raw(gateway.request_bytes(message('"the secret of the house')))
    await gateway.raw(gateway.request_bytes(chat(model="my-secret-model")))
    await gateway.raw(gateway.request_bytes(path="/v1/secret/path"))
    assert gateway.total("tollgate_requests_total", outcome="rejected") == 3
    assert gateway.total("tollgate_requests_total", team=TEAM, model="_other", outcome="rejected") == 1
    assert [record["outcome"] for record in gateway.records()] == ["rejected"] * 3
    assert "the secret" not in gateway.log.getvalue()
    assert "/secret/path" not in gateway.log.getvalue()
    await untouched(gateway)


@pytest.mark.parametrize("unknown", ["refuse", "allow"])
async def test_a_key_in_the_place_of_the_model_is_in_no_log(open_gateway: Open, unknown: str) -> None:
    gateway = await open_gateway(**{"models.unknown": unknown})
    no_model = json.dumps({"messages": CHAT["messages"]}).encode()
    for request in (
        gateway.request_bytes(chat(model=gateway.key)),
        gateway.request_bytes(no_model, path=f"/openai/deployments/{gateway.key}/chat/completions"),
    ):
        answer = await gateway.raw(request)
        assert (answer.status, shaped(answer)["param"]) == (400, "model")
        assert gateway.key.encode() not in answer.data
    assert [record["model"] for record in gateway.records()] == [None, None]
    assert gateway.key not in gateway.log.getvalue()
    await untouched(gateway)
