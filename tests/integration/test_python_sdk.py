"""The official Python SDK, told nothing but another base URL and key."""

from __future__ import annotations

import json

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

MODEL = "gpt-4o-mini"
TEXT = "žluť 🦔, and the lock next to it?"
CONVERSATION = [
    {"role": "system", "content": "You are a lock-keeper."},
    {"role": "user", "content": "How deep is the basin?"},
    {"role": "assistant", "content": "Four metres."},
    {"role": "user", "content": f"echo:{TEXT}"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "depth_of",
        "parameters": {"type": "object", "properties": {"basin": {"type": "string"}}},
    },
}
PROMPT_TOKENS = 3 + sum(4 + -(-len(message["content"]) // 4) for message in CONVERSATION)


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
async def async_client(gateway, team):
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


def client_of(client, team, **more):
    return client.with_options(api_key=team.key, **more)


def test_a_conversation(client):
    answer = client.chat.completions.create(model=MODEL, messages=CONVERSATION)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage.prompt_tokens == PROMPT_TOKENS
    assert answer.usage.completion_tokens == -(-len(TEXT) // 4)
    assert answer._request_id.startswith("req_")


async def test_a_conversation_asynchronously(async_client):
    answer = await async_client.chat.completions.create(model=MODEL, messages=CONVERSATION)
    assert answer.choices[0].message.content == TEXT


@pytest.mark.parametrize("usage", [False, True], ids=["bare", "usage"])
def test_a_stream(client, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with client.chat.completions.create(model=MODEL, messages=CONVERSATION, stream=True, **options) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    counted = [chunk.usage for chunk in chunks if chunk.usage]
    assert [each.prompt_tokens for each in counted] == ([PROMPT_TOKENS] if usage else [])
    assert [not chunk.choices for chunk in chunks].count(True) == usage


async def test_a_stream_asynchronously(async_client):
    stream = await async_client.chat.completions.create(model=MODEL, messages=CONVERSATION, stream=True)
    async with stream:
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == TEXT


def test_chunks_come_one_by_one(client):
    """The first words are there while upstream still holds the last ones back."""
    slow = {"x-simulate-ttft-ms": "0", "x-simulate-chunk-ms": "3600000"}
    with client.chat.completions.create(model=MODEL, messages=CONVERSATION, stream=True, extra_headers=slow) as stream:
        assert next(stream).choices[0].delta.role == "assistant"
        assert next(stream).choices[0].delta.content == TEXT[:4]


def test_headers(client, new_team):
    raw = client_of(client, new_team("free")).chat.completions.with_raw_response
    headers = raw.create(model=MODEL, messages=CONVERSATION, max_tokens=100).headers
    prompt = -(-sum(len(each["role"]) + len(each["content"]) for each in CONVERSATION) // 4)
    assert headers["x-ratelimit-limit-requests"] == "20"
    assert headers["x-ratelimit-remaining-requests"] == "19"
    assert headers["x-ratelimit-reset-requests"] == "3s"
    assert headers["x-ratelimit-limit-tokens"] == "40000"
    assert headers["x-ratelimit-remaining-tokens"] == str(40_000 - 100 - prompt)
    assert headers["x-request-id"].startswith("req_")
    assert headers["cache-status"] == "tollgate; fwd=bypass; detail=temperature"
    assert headers["openai-processing-ms"].isdigit()


def test_headers_of_a_stream_come_with_its_first_bytes(client, new_team):
    raw = client_of(client, new_team("free")).chat.completions.with_raw_response
    response = raw.create(model=MODEL, messages=CONVERSATION, stream=True)
    assert response.headers["x-ratelimit-remaining-requests"] == "19"
    assert len(list(response.parse())) > 2


def test_it_waits_as_long_as_it_is_told_and_no_longer(client, new_team):
    """Its own retry, by `retry-after-ms`: one wait is enough."""
    team = new_team(requests_per_minute=120, request_capacity=1)
    patient = client_of(client, team, max_retries=3)
    patient.chat.completions.create(model=MODEL, messages=CONVERSATION)
    second = patient.chat.completions.with_raw_response.create(model=MODEL, messages=CONVERSATION)
    assert second.retries_taken <= 1
    assert second.parse().choices[0].message.content == TEXT


@pytest.mark.parametrize(
    ("kind", "changes", "code"),
    [
        (openai.NotFoundError, {"model": "gpt-none"}, "model_not_found"),
        (openai.BadRequestError, {"temperature": 2.5}, "decimal_above_max_value"),
        (openai.BadRequestError, {"messages": []}, "missing_required_parameter"),
        (openai.BadRequestError, {"tool_choice": "required"}, None),
        (openai.InternalServerError, {"extra_headers": {"x-simulate-status": "500"}}, None),
        (openai.InternalServerError, {"extra_headers": {"x-simulate-reset": "1"}}, "upstream_unreachable"),
        (openai.RateLimitError, {"extra_headers": {"x-simulate-status": "429"}}, "rate_limit_exceeded"),
        (openai.InternalServerError, {"extra_headers": {"x-simulate-status": "401"}}, "upstream_key_refused"),
    ],
)
def test_errors_become_the_sdks_own(client, kind, changes, code):
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": CONVERSATION, **changes})
    assert caught.value.code == code
    assert caught.value.request_id.startswith("req_")


def test_a_key_nobody_has(client):
    with pytest.raises(openai.AuthenticationError) as caught:
        client.with_options(api_key="sk-tg_nobody").chat.completions.create(model=MODEL, messages=CONVERSATION)
    assert caught.value.code == "invalid_api_key"


def test_no_key_at_all(client):
    with pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(
            model=MODEL, messages=CONVERSATION, extra_headers={"Authorization": openai.Omit()}
        )
    assert caught.value.code is None
    assert caught.value.response.headers["WWW-Authenticate"] == "Bearer"


def test_a_limit(client, new_team):
    limited = client_of(client, new_team(requests_per_minute=1))
    limited.chat.completions.create(model=MODEL, messages=CONVERSATION)
    with pytest.raises(openai.RateLimitError) as caught:
        limited.chat.completions.create(model=MODEL, messages=CONVERSATION)
    assert (caught.value.type, caught.value.code) == ("requests", "rate_limit_exceeded")


def test_endpoints_that_keep_state_are_closed(client):
    for ask in (client.files.list, client.batches.list, lambda: client.chat.completions.retrieve("chatcmpl-1")):
        with pytest.raises(openai.PermissionDeniedError) as caught:
            ask()
        assert caught.value.code == "endpoint_not_allowed"


def test_endpoints_that_are_not_open_do_not_exist(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.post("/images/paintings", cast_to=object)
    assert "Invalid URL (POST /v1/images/paintings)" in caught.value.message


@pytest.mark.parametrize("fault", ["cut-after", "error-event-after"])
def test_a_broken_stream_is_an_error(client, fault):
    """An answer that was cut off must never look whole."""
    texts = []
    with (
        pytest.raises(openai.APIError),
        client.chat.completions.create(
            model=MODEL, messages=CONVERSATION, stream=True, extra_headers={f"x-simulate-{fault}": "3"}
        ) as stream,
    ):
        texts.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert "".join(texts) in TEXT


async def test_a_broken_stream_is_an_error_asynchronously(async_client):
    stream = await async_client.chat.completions.create(
        model=MODEL, messages=CONVERSATION, stream=True, extra_headers={"x-simulate-cut-after": "3"}
    )
    async with stream:
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]


def test_tools(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "?"}], tools=[TOOL], tool_choice="required"
    )
    call = answer.choices[0].message.tool_calls[0]
    assert call.function.name == "depth_of"
    assert json.loads(call.function.arguments) == {"basin": "text"}
    assert answer.choices[0].finish_reason == "tool_calls"


def test_the_stream_helper_puts_tool_calls_together(client):
    with client.chat.completions.stream(
        model=MODEL, messages=[{"role": "user", "content": "?"}], tools=[TOOL], tool_choice="required"
    ) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"basin": "text"}


def test_several_choices(client):
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "?"}], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


def test_json_mode(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "?"}], response_format={"type": "json_object"}
    )
    assert set(json.loads(answer.choices[0].message.content)) == {"text"}


def test_unknown_fields_reach_upstream(client, upstream):
    client.chat.completions.create(
        model=MODEL, messages=CONVERSATION, extra_body={"a_field_of_tomorrow": {"deep": [1, None]}, "top_k": 3}
    )
    sent = json.loads(upstream.last_body())
    assert sent == {
        "model": MODEL,
        "messages": CONVERSATION,
        "a_field_of_tomorrow": {"deep": [1, None]},
        "top_k": 3,
    }


def test_models(client, new_team):
    some = client_of(client, new_team(models=frozenset({"gpt-4o", "gpt-5"})))
    assert [model.id for model in some.models.list()] == ["gpt-4o", "gpt-5"]
    assert some.models.retrieve("gpt-5").owned_by == "system"
    with pytest.raises(openai.NotFoundError) as caught:
        some.models.retrieve("gpt-4o-mini")
    assert caught.value.code == "model_not_found"
