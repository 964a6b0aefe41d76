import asyncio
import errno
import json
import re

import aiohttp
import pytest


@pytest.mark.parametrize("status", [400, 404, 409, 429, 500, 502, 503])
async def test_a_status_comes_in_the_shape_of_openai(simulate, status):
    answer = await (await simulate()).post(status=status, retry_after="2", retry_after_ms="1500")
    assert answer.status == status
    assert sorted((await answer.json())["error"]) == ["code", "message", "param", "type"]
    assert (answer.headers["Retry-After"], answer.headers["retry-after-ms"]) == ("2", "1500")


async def test_only_the_first_attempts_fail(simulate):
    harness = await simulate()
    assert [(await harness.post(status=503, times=2, id="a")).status for _ in range(4)] == [503, 503, 200, 200]
    assert (await harness.post(status=503, times=2, id="b")).status == 503


async def test_an_unknown_fault_is_an_error(simulate):
    answer = await (await simulate()).post(staus=503)
    assert answer.status == 400
    assert "staus" in (await answer.json())["error"]["message"]


async def test_a_reset(simulate):
    harness = await simulate()
    with pytest.raises(aiohttp.ClientOSError) as caught:
        await harness.post(reset=1)
    assert caught.value.errno == errno.ECONNRESET
    (record,) = harness.stats.records
    assert (record.status, record.completed, record.cut_by_client) == (0, False, False)


async def test_a_hang_lasts_until_the_client_leaves(simulate):
    harness = await simulate()

    async def ask():
        await harness.post(hang=1)

    asking = asyncio.create_task(ask())
    await harness.until(lambda: harness.stats.in_flight == 1)
    asking.cancel()
    await harness.until(lambda: harness.stats.in_flight == 0)
    assert harness.stats.cut_by_client == 1


async def _read(answer):
    """What came, and what ended it."""
    received = b""
    try:
        async for part in answer.content.iter_any():
            received += part
    except aiohttp.ClientError as error:
        return received, error
    return received, None


@pytest.mark.parametrize("after", [0, 1, 3, 100])
async def test_a_stream_is_cut_after_so_many_chunks(simulate, after):
    harness = await simulate(tokens=3)
    async with harness.stream(cut_after=after) as answer:
        received, error = await _read(answer)
    assert isinstance(error, aiohttp.ClientPayloadError)
    chunks = min(after, 5)
    assert received.count(b"\n\n") == chunks
    (record,) = harness.stats.records
    assert (record.chunks_sent, record.completed, record.cut_by_client) == (chunks, False, False)
    assert record.output_tokens_sent == max(0, min(chunks - 1, 3))


async def test_a_plain_answer_is_cut_half_way(simulate):
    harness = await simulate()
    async with harness.post(cut_after=1) as answer:
        received, error = await _read(answer)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert len(received) == int(answer.headers["Content-Length"]) // 2
    assert not harness.stats.records[0].completed


@pytest.mark.parametrize("after", [0, 2, 100])
async def test_an_error_event_ends_a_stream(simulate, after):
    harness = await simulate(tokens=3)
    events = (await (await harness.stream(error_event_after=after)).read()).split(b"\n\n")
    assert len(events) == min(after, 5) + 2
    assert json.loads(events[-2].removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert not harness.stats.records[0].completed


async def test_a_stream_without_done(simulate):
    harness = await simulate(tokens=2)
    whole, without = [await (await harness.stream(**faults)).read() for faults in ({}, {"no_done": 1})]
    assert whole.count(b"\n\n") == without.count(b"\n\n") + 1
    assert b"[DONE]" not in without


async def test_answers_without_usage(simulate, chat):
    harness = await simulate()
    assert "usage" not in await (await harness.post(no_usage=1)).json()
    asked = {**chat, "stream": True, "stream_options": {"include_usage": True}}
    assert b"usage" in await (await harness.post(asked)).read()
    assert b"usage" not in await (await harness.post(asked, no_usage=1)).read()


async def test_malformed_answers(simulate):
    harness = await simulate(tokens=3)
    with pytest.raises(json.JSONDecodeError):
        json.loads(await (await harness.post(malformed=1)).read())
    events = (await (await harness.stream(malformed=1)).read()).split(b"\n\n")
    assert len(events) == 7
    bad = [event for event in events[:-2] if not _is_json(event.removeprefix(b"data: "))]
    assert bad == [events[1]]
    assert harness.stats.records[-1].output_tokens_sent == 2


def _is_json(text):
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("size", [1, 7, 1_000, 10**6])
async def test_a_stream_in_writes_of_any_size_holds_the_same(simulate, manual_time, size):
    harness = await simulate(manual_time, tokens=3)
    whole = await (await harness.stream()).read()
    parts = await _http_chunks(await harness.stream(split=size))
    assert _without_ids(b"".join(parts)) == _without_ids(whole)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 0 < len(parts[-1]) <= size


async def _http_chunks(answer):
    parts, held = [], b""
    while not answer.content.at_eof():
        data, ended = await answer.content.readchunk()
        held += data
        if ended and held:
            parts.append(held)
            held = b""
    return parts


def _without_ids(stream):
    return re.sub(rb"chatcmpl-\w{29}", b"", stream)


async def test_another_content_type(simulate):
    harness = await simulate()
    for answer in (await harness.post(content_type="text/html"), await harness.stream(content_type="text/html")):
        assert answer.headers["Content-Type"] == "text/html"
        await answer.read()


async def test_options_disturb_every_request_that_asks_for_nothing_else(simulate):
    harness = await simulate(faults=(("no-usage", "1"),))
    assert "usage" not in await (await harness.post()).json()
    assert (await harness.post(status=503)).status == 503
    assert "usage" not in await (await harness.post()).json()


async def test_a_code_of_its_own(simulate):
    answer = await (await simulate()).post(status=429, code="insufficient_quota", should_retry="false")
    error = (await answer.json())["error"]
    assert (answer.status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert (await (await (await simulate()).post(status=400, code="odd")).json())["error"]["code"] == "odd"


async def test_a_redirect(simulate):
    harness = await simulate()
    elsewhere = f"{harness.root}/elsewhere"
    answer = await harness.session.post(
        harness.url, json={}, headers={"x-simulate-redirect": elsewhere}, allow_redirects=False
    )
    assert (answer.status, answer.headers["Location"]) == (307, elsewhere)


async def test_bytes_that_are_no_http(simulate):
    harness = await simulate()
    with pytest.raises(aiohttp.ClientError):
        await harness.post(garbage=1)
    assert harness.stats.records[0].status == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_hang_after_the_head(simulate, chat, stream):
    harness = await simulate()
    async with harness.post({**chat, "stream": stream}, hang_after_head=1) as answer:
        assert answer.status == 200
        assert harness.stats.in_flight == 1
    await harness.until(lambda: harness.stats.in_flight == 0)
    assert harness.stats.cut_by_client == 1


@pytest.mark.parametrize("after", [0, 2])
async def test_a_stream_that_ends_inside_a_chunk(simulate, after):
    harness = await simulate(tokens=3)
    async with harness.stream(cut_inside_after=after) as answer:
        received, error = await _read(answer)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert received.count(b"\n\n") == after
    assert not received.endswith(b"\n\n")
    assert len(received.split(b"\n\n")[-1]) > 20
    assert not harness.stats.records[0].completed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("split", "pauses"), [(None, 1), (10, 10)])
async def test_an_answer_that_drips(simulate, manual_time, chat, stream, split, pauses):
    harness = await simulate(manual_time, tokens=3)
    asked = {**chat, "stream": stream}
    whole = await (await harness.post(asked)).read()
    faults = {"drip_ms": 20} | ({"split": split} if split else {})
    dripped = await (await harness.post(asked, **faults)).read()
    assert _without_ids(dripped) == _without_ids(whole)
    assert manual_time.slept.count(0.02) == len(whole) // pauses


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_compressed(simulate, chat, stream):
    harness = await simulate()
    asked = {**chat, "stream": stream}
    whole = await (await harness.post(asked)).read()
    answer = await harness.post(asked, gzip=1)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert _without_ids(await answer.read()) == _without_ids(whole)


async def test_sound_can_break_off(simulate):
    harness = await simulate()
    asked = {"model": "tts-1", "voice": "alloy", "input": "How deep?"}
    headers = {"Authorization": "Bearer x", "x-simulate-cut-after": "1"}
    async with harness.session.post(f"{harness.root}/v1/audio/speech", json=asked, headers=headers) as answer:
        received, error = await _read(answer)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert 0 < len(received) < 3 * 960
    assert not harness.stats.records[0].completed
