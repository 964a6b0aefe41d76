"""The official SDK cannot tell the simulator from the API it was written for."""

import json
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from proxy.simulator import Behaviour, start

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How long is a minute?"}]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest_asyncio.fixture
async def client() -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        await start(Behaviour(tokens=5)) as simulator,
        openai.AsyncOpenAI(base_url=simulator.base_url, api_key="sk-test", max_retries=0) as client,
    ):
        yield client


async def test_plain(client):
    answer = await client.chat.completions.create(**ASK)
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 5
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer._request_id.startswith("req_")


async def test_a_stream_with_usage_says_what_the_plain_answer_says(client):
    plain = await client.chat.completions.create(**ASK, n=2)
    stream = await client.chat.completions.create(**ASK, n=2, stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    async for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in plain.choices]
    assert usage == plain.usage


async def test_the_helper_that_gathers_a_stream(client):
    async with client.chat.completions.stream(**ASK) as stream:
        gathered = await stream.get_final_completion()
    plain = await client.chat.completions.create(**ASK)
    assert gathered.choices[0].message.content == plain.choices[0].message.content


async def test_a_tool_call(client):
    answer = await client.chat.completions.create(**ASK, tools=[WEATHER], tool_choice="required")
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "text"})
    async with client.chat.completions.stream(**ASK, tools=[WEATHER], tool_choice="required") as stream:
        gathered = await stream.get_final_completion()
    assert gathered.choices[0].message.tool_calls[0].function.arguments == call.function.arguments


async def test_unicode_arrives_whole(client):
    text = 'naïve 日本語 👩‍👩‍👧 \u2028 "quoted" \\ end\n'
    ask = {**ASK, "messages": [{"role": "user", "content": f"echo:{text}"}]}
    stream = await client.chat.completions.create(**ask, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text


async def test_models(client):
    assert "gpt-4o" in [model.id async for model in client.models.list()]
    assert (await client.models.retrieve("gpt-4.1-mini")).id == "gpt-4.1-mini"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
async def test_a_status_becomes_its_exception(client, status, error):
    with pytest.raises(error) as caught:
        await client.chat.completions.create(**ASK, extra_headers={"x-simulate-status": str(status)})
    assert caught.value.status_code == status
    assert caught.value.type is not None


async def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(**{**ASK, "model": "gpt-9"})
    assert caught.value.code == "model_not_found"


async def test_a_reset_is_a_connection_error(client):
    with pytest.raises(openai.APIConnectionError):
        await client.chat.completions.create(**ASK, extra_headers={"x-simulate-reset": "1"})


async def test_an_error_event_in_a_stream_is_raised(client):
    stream = await client.chat.completions.create(
        **ASK, stream=True, extra_headers={"x-simulate-error-event-after": "2"}
    )
    assert [(await anext(stream)).object for _ in range(2)] == ["chat.completion.chunk"] * 2
    with pytest.raises(openai.APIError):
        await anext(stream)


async def test_retries_get_through_what_fails_once():
    headers = {
        "x-simulate-status": "503",
        "x-simulate-times": "1",
        "x-simulate-id": "x",
        "x-simulate-retry-after-ms": "1",
    }
    async with (
        await start() as simulator,
        openai.AsyncOpenAI(base_url=simulator.base_url, api_key="sk-test", max_retries=1) as client,
    ):
        await client.chat.completions.create(**ASK, extra_headers=headers)
        assert simulator.stats.by_status == {503: 1, 200: 1}
