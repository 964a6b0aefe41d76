import json

import pytest

from proxy.core.replay import Form, explode
from proxy.pipeline.keep import Copy, keep, keep_stream, tell
from proxy.pipeline.lookup import look_up

HEADERS = (("content-type", "text/event-stream"), ("openai-version", "2020-10-01"))
ROOM_BYTES = 1_048_576


def whole(content="hello"):
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_741_570_283,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2},
    }


def stream_of(completion, **more):
    chunks = [{**chunk, **more} for chunk in explode(completion, include_usage=True)]
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def copy_of(stream, room_bytes=ROOM_BYTES):
    copy = Copy(room_bytes)
    for at in range(0, len(stream), 999):
        copy.add(stream[at : at + 999])
    return copy


@pytest.fixture
async def exchange(bench):
    """A streamed request that was looked up and not found."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "temperature": 0, "stream": True}
    exchange = await bench.exchange(json.dumps(body).encode())
    await look_up(exchange, bench.services)
    exchange.fill = await bench.services.cache.claim(exchange.address)
    return exchange


async def kept(bench, exchange):
    return await bench.services.cache.get(exchange.address)


@pytest.mark.parametrize("content", ["hello", "žluť" * 80_000], ids=["short", "too long for the loop"])
async def test_a_stream_is_kept_as_the_plain_answer_it_told(bench, exchange, content):
    copy = copy_of(stream_of(whole(content)), room_bytes=10 * ROOM_BYTES)
    assert await keep_stream(exchange, bench.services, 200, HEADERS, copy)
    entry = await kept(bench, exchange)
    assert entry.form is Form.PLAIN
    assert entry.headers == (("Content-Type", "application/json"), HEADERS[1])
    assert json.loads(entry.body) == whole(content)


async def test_what_a_stream_alone_can_tell_is_kept_as_it_came(bench, exchange):
    stream = stream_of(whole(), mood="calm")
    assert await keep_stream(exchange, bench.services, 200, HEADERS, copy_of(stream))
    entry = await kept(bench, exchange)
    assert (entry.form, entry.headers, entry.body) == (Form.STREAM, HEADERS, stream)
    plain = await bench.exchange(exchange.asked.raw.replace(b'"stream": true', b'"stream": false'))
    assert await tell(entry, plain) is None


async def test_obfuscation_is_not_kept(bench, exchange):
    assert await keep_stream(exchange, bench.services, 200, HEADERS, copy_of(stream_of(whole(), obfuscation="hB7")))
    assert json.loads((await kept(bench, exchange)).body) == whole()


async def test_a_copy_holds_what_an_entry_may_and_no_more(bench, exchange):
    stream = stream_of(whole())
    assert copy_of(stream, len(stream)).whole() == stream
    assert copy_of(stream, len(stream) - 1).whole() is None
    assert not await keep_stream(exchange, bench.services, 200, HEADERS, copy_of(stream, len(stream) - 1))
    assert await kept(bench, exchange) is None


async def test_what_is_not_to_be_kept(bench, exchange):
    small = bench.with_policy(cache_entry_max_bytes=10)
    assert not await keep(exchange, bench.services, 203, HEADERS, b"{}")
    assert not await keep(exchange, small, 200, HEADERS, b"x" * 11)
    assert exchange.kept is None
    assert await keep(exchange, small, 200, HEADERS, b"x" * 10)
    assert exchange.kept == await kept(bench, exchange)
    exchange.address = None
    assert not await keep(exchange, bench.services, 200, HEADERS, b"{}")
    assert not await keep_stream(exchange, bench.services, 200, HEADERS, copy_of(stream_of(whole())))
