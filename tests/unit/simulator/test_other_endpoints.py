"""Completions, responses, embeddings, moderations: exact counts, the same text each time, limits and faults as chat."""

import base64
import json
import struct

import pytest
import pytest_asyncio

COMPLETION = ("completions", {"model": "davinci-002", "prompt": "How deep is the bucket?"})
RESPONSE = ("responses", {"model": "gpt-4o-mini", "input": "How deep is the bucket?"})
EMBEDDING = ("embeddings", {"model": "text-embedding-3-small", "input": "How deep is the bucket?"})
MODERATION = ("moderations", {"input": "How deep is the bucket?"})
COUNT = ("responses/input_tokens", RESPONSE[1])
ALL = [COMPLETION, RESPONSE, EMBEDDING, MODERATION, COUNT]
STREAMED = [COMPLETION, RESPONSE]
IDS = [path for path, _ in ALL]


@pytest.fixture
def behaviour():
    return {}


@pytest_asyncio.fixture
async def harness(simulate, manual_time, behaviour):
    return await simulate(manual_time, **behaviour)


@pytest.fixture
def ask(harness):
    def post(asked, headers=None, **more):
        path, body = asked
        sent = {"Authorization": "Bearer sk-test", **(headers or {})}
        return harness.session.post(f"{harness.root}/v1/{path}", json={**body, **more}, headers=sent)

    return post


def bare(body):
    """An answer without what differs between two."""
    if isinstance(body, dict):
        own = {"id", "created", "created_at", "item_id", "call_id"}
        return {name: bare(value) for name, value in body.items() if name not in own}
    return [bare(each) for each in body] if isinstance(body, list) else body


@pytest.mark.parametrize("asked", ALL, ids=IDS)
async def test_the_same_request_has_the_same_answer(ask, asked):
    answers = [await (await ask(asked)).json() for _ in range(2)]
    assert bare(answers[0]) == bare(answers[1])


@pytest.mark.parametrize(
    ("asked", "counts"),
    [(COMPLETION, (6, 16)), (RESPONSE, (13, 16)), (EMBEDDING, (6, 0)), (MODERATION, (6, 0)), (COUNT, (0, 0))],
    ids=IDS,
)
async def test_the_counts_are_those_it_tells(harness, ask, asked, counts):
    body = await (await ask(asked)).json()
    assert (harness.stats.input_tokens, harness.stats.output_tokens) == counts
    if usage := body.get("usage"):
        assert usage["total_tokens"] == sum(counts)


@pytest.mark.parametrize("asked", ALL, ids=IDS)
@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_it_fails_as_it_is_told(ask, asked, status):
    answer = await ask(asked, {"x-simulate-status": str(status)})
    assert answer.status == status
    assert sorted((await answer.json())["error"]) == ["code", "message", "param", "type"]


@pytest.mark.parametrize("asked", ALL, ids=IDS)
@pytest.mark.parametrize("behaviour", [{"requests_per_minute": 1}])
async def test_it_limits_requests(ask, asked):
    first, second = await ask(asked), await ask(asked)
    assert (first.status, second.status) == (200, 429)
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    assert int(second.headers["retry-after-ms"]) > 0


@pytest.mark.parametrize("behaviour", [{"tokens_per_minute": 10}])
async def test_it_limits_tokens(ask):
    assert (await ask(EMBEDDING, input=[1] * 7)).status == 200
    assert (await ask(EMBEDDING, input=[1] * 4)).status == 429
    assert (await ask(COMPLETION, max_tokens=11)).status == 429
    assert (await ask(RESPONSE, max_output_tokens=11)).status == 429


@pytest.mark.parametrize("asked", STREAMED, ids=IDS[:2])
async def test_a_stream_can_break_off(harness, ask, asked):
    answer = await ask(asked, {"x-simulate-error-event-after": "3"}, stream=True)
    *_, last, _ = (await answer.read()).split(b"\n\n")
    error = json.loads(last.partition(b"data: ")[2])
    assert last.startswith(b"event: error") == (asked is RESPONSE)
    assert (error["type"] if asked is RESPONSE else error["error"]["type"]) in {"error", "server_error"}
    assert not harness.stats.records[-1].completed
    assert harness.stats.records[-1].chunks_sent == 3


@pytest.mark.parametrize("asked", STREAMED, ids=IDS[:2])
async def test_a_stream_says_what_the_plain_answer_says(ask, asked):
    plain = await (await ask(asked)).json()
    streamed = await ask(asked, stream=True)
    events = [part.partition(b"data: ")[2] for part in (await streamed.read()).split(b"\n\n")[:-1]]
    if asked is RESPONSE:
        read = [json.loads(event) for event in events]
        assert [event["sequence_number"] for event in read] == list(range(len(read)))
        assert bare(read[-1]["response"]) == bare(plain)
    else:
        assert events.pop() == b"[DONE]"
        text = "".join(json.loads(event)["choices"][0]["text"] for event in events)
        assert text == plain["choices"][0]["text"]


async def test_numbers_and_base64_say_the_same(ask):
    numbers = (await (await ask(EMBEDDING)).json())["data"][0]["embedding"]
    packed = (await (await ask(EMBEDDING, encoding_format="base64")).json())["data"][0]["embedding"]
    assert list(struct.unpack("<1536f", base64.b64decode(packed))) == numbers


@pytest.mark.parametrize(
    ("asked", "more"),
    [
        (EMBEDDING, {"input": []}),
        (EMBEDDING, {"input": [1, "a"]}),
        (EMBEDDING, {"input": ["a", [1]]}),
        (EMBEDDING, {"model": "gpt-4o-mini"}),
        (COMPLETION, {"n": 2, "best_of": 1}),
        (COMPLETION, {"best_of": 2, "stream": True}),
        (COMPLETION, {"prompt": 5}),
        (RESPONSE, {"tool_choice": "required"}),
        (RESPONSE, {"input": 5}),
        (MODERATION, {"input": []}),
        (MODERATION, {"model": "gpt-4o-mini"}),
    ],
)
async def test_what_it_refuses(ask, asked, more):
    answer = await ask(asked, **more)
    assert answer.status in {400, 404}
    assert (await answer.json())["error"]["type"] == "invalid_request_error"


async def test_what_is_flagged(ask):
    results = (await (await ask(MODERATION, input=["calm", "violence"])).json())["results"]
    assert [each["flagged"] for each in results] == [False, True]
