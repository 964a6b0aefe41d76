import asyncio
import base64
import json

import pytest
from yarl import URL

from proxy.simulator import Behaviour, make_app

STAMPED = ("openai-processing-ms", "openai-version", "openai-organization", "openai-model", "x-request-id", "server")


async def test_the_application_runs_under_any_runner(aiohttp_client, chat):
    client = await aiohttp_client(make_app(Behaviour()))
    answer = await client.post("/v1/chat/completions", json=chat, headers={"Authorization": "Bearer x"})
    assert answer.status == 200
    assert (await answer.json())["object"] == "chat.completion"


async def test_answers_carry_the_headers_of_openai(simulate):
    harness = await simulate()
    for answer in (await harness.post(), await harness.stream()):
        assert all(answer.headers[name] for name in STAMPED)
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-model"] == "gpt-4o-mini-2024-07-18"
        assert answer.headers["x-request-id"].startswith("req_")
        assert len(answer.headers.getall("set-cookie")) == 2
        assert len([name for name in answer.headers if name.lower().startswith("x-ratelimit-")]) == 6
        await answer.read()


async def test_ids_differ_and_texts_do_not(simulate):
    harness = await simulate()
    first, second = [await (await harness.post()).json() for _ in range(2)]
    assert first["id"] != second["id"]
    assert first["choices"] == second["choices"]


async def test_a_stream_is_framed_as_openai_frames_it(simulate):
    answer = await (await simulate(tokens=2)).stream()
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = (await answer.read()).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    assert [json.loads(event.removeprefix(b"data: "))["object"] for event in events[:-2]] == [
        "chat.completion.chunk"
    ] * 4


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),
        ({"Authorization": "Bearer "}, None),
        ({"Authorization": "Basic abc"}, None),
        ({"Authorization": "Bearer sk-wrong"}, "invalid_api_key"),
        ({"Authorization": "Bearer sk-é"}, "invalid_api_key"),
    ],
)
async def test_a_key_is_needed_and_must_be_the_right_one(simulate, headers, code):
    harness = await simulate(api_key="sk-right")
    answer = await harness.post(key=headers)
    error = (await answer.json())["error"]
    assert answer.status == 401
    assert sorted(error) == ["code", "message", "param", "type"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert "sk-" not in error["message"]
    assert (await harness.post(key={"Authorization": "bearer sk-right"})).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("PUT", "/chat/completions"),
        ("GET", "/embeddings"),
        ("GET", "/files/file-1/x"),
        ("POST", "/models"),
        ("DELETE", "/models/gpt-4o"),
    ],
)
async def test_other_paths_are_not_found_in_the_shape_of_openai(simulate, method, path):
    harness = await simulate()
    answer = await harness.session.request(
        method, harness.simulator.base_url + path, headers={"Authorization": "Bearer x"}
    )
    assert answer.status == 404
    error = (await answer.json())["error"]
    assert (error["message"], error["code"]) == (f"Invalid URL ({method} /v1{path})", None)


async def test_models(simulate):
    harness = await simulate()

    async def get(path):
        answer = await harness.session.get(harness.simulator.base_url + path, headers={"Authorization": "Bearer x"})
        return answer.status, await answer.json()

    status, listed = await get("/models")
    assert (status, listed["object"]) == (200, "list")
    assert (await get("/models/gpt-4o"))[1]["id"] == "gpt-4o"
    status, error = await get("/models/gpt-9")
    assert (status, error["error"]["code"]) == (404, "model_not_found")


async def test_a_plain_answer_takes_as_long_as_its_stream(simulate, manual_time):
    harness = await simulate(manual_time, latency_ms=300, ttft_ms=200, chunk_ms=10, tokens=5)
    answer = await harness.post()
    assert sum(manual_time.slept) == pytest.approx(0.540)
    assert answer.headers["openai-processing-ms"] == "540"
    manual_time.slept.clear()
    await (await harness.stream()).read()
    assert manual_time.slept == pytest.approx([0.3, 0.2, 0.01, 0.01, 0.01, 0.01])


async def test_a_request_can_set_its_own_pace(simulate, manual_time):
    harness = await simulate(manual_time, ttft_ms=200, chunk_ms=10, tokens=3)
    await (await harness.stream(delay_ms=700, ttft_ms=50, chunk_ms=0)).read()
    assert manual_time.slept == pytest.approx([0.7, 0.05])


async def test_chunks_are_written_one_by_one(simulate, manual_time):
    """The first piece is here while the server waits to write the second one."""
    gate = asyncio.Event()

    async def hold(seconds):
        if seconds:
            await gate.wait()

    manual_time.sleep = hold
    harness = await simulate(manual_time, chunk_ms=10, tokens=2)
    answer = await harness.stream()
    events = [await answer.content.readuntil(b"\n\n") for _ in range(2)]
    assert b'"role"' in events[0]
    assert b'"content"' in events[1]
    assert harness.stats.in_flight == 1
    gate.set()
    assert (await answer.content.read()).endswith(b"data: [DONE]\n\n")


async def test_limits_refuse_with_a_wait_that_helps(simulate, manual_time):
    harness = await simulate(manual_time, requests_per_minute=60)
    for _ in range(60):
        assert (await harness.post()).status == 200
    refused = await harness.post()
    assert (refused.status, (await refused.json())["error"]["type"]) == (429, "requests")
    assert (refused.headers["retry-after-ms"], refused.headers["Retry-After"]) == ("1000", "1")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    manual_time.ms += 1_000
    admitted = await harness.post()
    assert admitted.status == 200
    assert admitted.headers["x-ratelimit-limit-requests"] == "60"


async def test_a_request_over_the_token_limit_never_fits(simulate, chat):
    harness = await simulate(tokens_per_minute=100)
    answer = await harness.post({**chat, "max_tokens": 101})
    error = (await answer.json())["error"]
    assert (answer.status, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
    assert "Retry-After" not in answer.headers


async def test_the_sequence_of_failures_follows_from_the_seed(simulate):
    async def sequence(harness):
        return [(await harness.post()).status for _ in range(40)]

    first = await simulate(error_rate=0.3, error_status=503, seed=1)
    statuses = await sequence(first)
    assert set(statuses) == {200, 503}
    assert await sequence(await simulate(error_rate=0.3, error_status=503, seed=1)) == statuses
    assert await sequence(await simulate(error_rate=0.3, error_status=503, seed=2)) != statuses
    await first.session.post(f"{first.root}/simulator/reset")
    assert await sequence(first) == statuses


async def test_all_or_none_can_fail(simulate):
    always = await simulate(error_rate=1.0)
    assert {(await always.post()).status for _ in range(5)} == {500}
    never = await simulate(error_rate=0.0)
    assert {(await never.post()).status for _ in range(5)} == {200}


async def test_stats_tell_what_was_seen(simulate, chat):
    harness = await simulate(tokens=4)
    await (await harness.post()).read()
    await (await harness.stream()).read()
    await (await harness.post(status=503)).read()
    sent = json.dumps({**chat, "user": "ü"}, ensure_ascii=False).encode()
    await harness.session.post(
        URL(f"{harness.url}?a=1%2F2", encoded=True), data=sent, headers={"Authorization": "Bearer sk-x", "X-Mine": "1"}
    )
    stats = await (await harness.session.get(f"{harness.root}/simulator/stats")).json()
    assert (stats["requests"], stats["streams"], stats["in_flight"]) == (4, 1, 0)
    assert stats["by_status"] == {"200": 3, "503": 1}
    prompt = 3 + 4 + 6
    assert (stats["input_tokens"], stats["output_tokens"], stats["output_tokens_sent"]) == (3 * prompt, 12, 12)
    assert base64.b64decode(stats["last_body_base64"]) == sent
    assert ["X-Mine", "1"] in stats["seen_headers_last"]
    assert "sk-x" not in json.dumps(stats)
    plain, streamed, failed, last = stats["records"]
    assert (plain["stream"], plain["completed"], plain["output_tokens"]) == (False, True, 4)
    assert (streamed["stream"], streamed["chunks_sent"], streamed["output_tokens_sent"]) == (True, 6, 4)
    assert (failed["status"], failed["input_tokens"]) == (503, 0)
    assert (last["path"], last["query"]) == ("/v1/chat/completions", "a=1%2F2")
    await harness.session.post(f"{harness.root}/simulator/reset")
    assert harness.stats.requests == 0


async def test_a_reset_empties_buckets_and_forgets_attempts(simulate, manual_time):
    harness = await simulate(manual_time, requests_per_minute=1)

    async def statuses():
        return [(await harness.post(**fault)).status for fault in ({"status": 503, "times": 1, "id": "a"}, {}, {})]

    first = await statuses()
    assert first == [503, 200, 429]
    await harness.session.post(f"{harness.root}/simulator/reset")
    assert await statuses() == first


async def test_a_client_that_leaves_stops_the_stream(simulate):
    harness = await simulate(tokens=100)
    answer = await harness.stream(chunk_ms=3_600_000)
    await answer.content.readuntil(b"\n\n")
    await harness.until(lambda: harness.stats.in_flight == 1)
    answer.close()
    await harness.until(lambda: harness.stats.in_flight == 0)
    (record,) = harness.stats.records
    assert harness.stats.cut_by_client == 1
    assert (record.status, record.chunks_sent, record.output_tokens_sent) == (200, 2, 1)
    assert (record.output_tokens, record.completed) == (100, False)
    assert (harness.stats.output_tokens, harness.stats.output_tokens_sent) == (0, 1)


async def test_a_client_that_leaves_before_the_head_is_counted_too(simulate):
    harness = await simulate()
    asking = asyncio.create_task(_await(harness.post(delay_ms=3_600_000)))
    await harness.until(lambda: harness.stats.in_flight == 1)
    asking.cancel()
    await harness.until(lambda: harness.stats.in_flight == 0)
    assert harness.stats.cut_by_client == 1
    assert harness.stats.by_status == {499: 1}


async def _await(awaitable):
    return await awaitable
