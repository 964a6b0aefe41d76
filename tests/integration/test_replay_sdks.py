"""What the official SDKs make of a hit is what they made of the miss: each helper, each form, whichever came first."""

from __future__ import annotations

import itertools
import json
import subprocess

import pytest
from openai import AsyncOpenAI, LengthFinishReasonError, Omit, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamState
from pydantic import BaseModel

from tests.support.tollgate_process import clean_environment

MODEL = "gpt-4o-mini"
USAGE = {"stream_options": {"include_usage": True}}
TOOL = {
    "type": "function",
    "function": {
        "name": "depth_of",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"basin": {"type": "string"}, "at": {"type": "integer"}},
            "required": ["basin", "at"],
            "additionalProperties": False,
        },
    },
}


class Depth(BaseModel):
    """A structured answer."""

    basin: str
    metres: int


LIKELY = {"logprobs": True, "top_logprobs": 2}
CALLS = {"tools": [TOOL], "tool_choice": "required"}
KINDS = {
    "text": ("", {}),
    "choices": ("", {"n": 3}),
    "cut short": ("", {"max_tokens": 3}),
    "tokens and how likely they were": ("", {**LIKELY, "n": 2}),
    "a tool call": ("", CALLS),
    "a tool call in each choice": ("", {**CALLS, "n": 2}),
    "a refusal": ("refuse:I will not say, žluť 🦔.", {}),
    "likely refusals": ("refuse:I will not.", {**LIKELY, "n": 2}),
}
_numbers = itertools.count()


def asked(prefix="", **fields):
    """A deterministic request nobody has made before."""
    text = f"{prefix or 'Number '}{next(_numbers)} žluť 🦔?"
    return {"model": MODEL, "temperature": 0, "messages": [{"role": "user", "content": text}], **fields}


@pytest.fixture(params=KINDS)
def question(request):
    prefix, fields = KINDS[request.param]
    return asked(prefix, **fields)


@pytest.fixture
def client(gateway, team):
    with OpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture
async def async_client(gateway, team):
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=team.key, max_retries=0, timeout=30) as client:
        yield client


def said(completion):
    """What an answer says, without what is not in both forms: annotations, and the SDK's notes of what it has read."""
    told = completion.to_dict(exclude_none=True)
    for choice in told["choices"]:
        message = choice["message"]
        for name in ("annotations", "parsed"):
            message.pop(name, None)
        for call in message.get("tool_calls") or ():
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    return told


def cut_short(ask):
    """What is asked for; an answer that was cut short is handed out as an error by some helpers."""
    try:
        return ask()
    except LengthFinishReasonError as error:
        return error.completion


def plain(client, question):
    return client.chat.completions.create(**question)


def raw(client, question):
    response = client.chat.completions.with_raw_response.create(**question)
    assert response.headers["content-type"] == "application/json"
    return response.parse()


def parsed(client, question):
    return cut_short(lambda: client.chat.completions.parse(**question))


def helped(client, question):
    def ask():
        with client.chat.completions.stream(**question, **USAGE) as stream:
            kinds = {event.type for event in stream}
            assert "chunk" in kinds
            return stream.get_final_completion()

    return cut_short(ask)


def raw_stream(client, question):
    """The chunks of a raw response, put together by the SDK's own accumulator."""
    response = client.chat.completions.with_raw_response.create(**question, stream=True, **USAGE)
    assert response.headers["content-type"].startswith("text/event-stream")
    state = ChatCompletionStreamState()
    for chunk in response.parse():
        state.handle_chunk(chunk)
    return cut_short(state.get_final_completion)


WAYS = {"create": plain, "raw": raw, "parse": parsed, "stream": helped, "raw stream": raw_stream}


@pytest.mark.parametrize("first", WAYS)
def test_every_helper_makes_one_answer_of_a_miss_and_of_a_hit(client, upstream, question, first):
    made = said(WAYS[first](client, question))
    for choice in made["choices"]:
        assert choice["finish_reason"]
        assert choice["message"]["role"] == "assistant"
        told = choice["message"]
        assert [bool(told.get(name)) for name in ("content", "refusal", "tool_calls")].count(True) == 1
    assert len(made["choices"]) == question.get("n", 1)
    assert made["usage"]["total_tokens"] > made["usage"]["completion_tokens"] > 0
    for name, way in WAYS.items():
        assert said(way(client, question)) == made, name
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("question", [asked(**LIKELY, n=2), asked("refuse:", **LIKELY)], ids=["text", "refusal"])
@pytest.mark.parametrize("first", ["create", "stream"])
def test_how_likely_each_token_was_is_told_to_the_last_digit(client, upstream, question, first):
    question = {**question, "seed": next(_numbers)}
    made = WAYS[first](client, question)
    for way in (plain, helped):
        answer = way(client, question)
        assert upstream.idle_stats()["requests"] == 1
        for choice, former in zip(answer.choices, made.choices, strict=True):
            tokens = choice.logprobs.content or choice.logprobs.refusal
            assert "".join(each.token for each in tokens) == (choice.message.content or choice.message.refusal)
            assert {len(each.top_logprobs) for each in tokens} == {2}
            assert choice.logprobs.to_dict() == former.logprobs.to_dict()


def noted(client, question, **options):
    """The events of the helper, as a program sees them, and what it has at the end."""
    with client.chat.completions.stream(**question, **USAGE, **options) as stream:
        events = list(stream)
        return events, stream.get_final_completion()


@pytest.mark.parametrize("first", ["create", "stream"])
def test_events_of_the_helper_tell_the_same_story(client, upstream, first):
    question = asked("", **CALLS, n=2)
    WAYS[first](client, question)
    events, final = noted(client, question)
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, event.index) for event in done] == [("depth_of", 0)] * 2
    assert [json.loads(event.arguments) for event in done] == [{"basin": "text", "at": 1}] * 2
    deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(event.arguments_delta for event in deltas) == "".join(event.arguments for event in done)
    assert [choice.message.tool_calls[0].function.parsed_arguments for choice in final.choices] == [
        {"basin": "text", "at": 1}
    ] * 2

    question = asked("refuse:", **LIKELY)
    WAYS[first](client, question)
    events, final = noted(client, question)
    (refused,) = [event for event in events if event.type == "refusal.done"]
    assert refused.refusal == final.choices[0].message.refusal
    (likely,) = [event for event in events if event.type == "logprobs.refusal.done"]
    assert "".join(each.token for each in likely.refusal) == refused.refusal
    assert upstream.idle_stats()["requests"] == 2


@pytest.mark.parametrize("first", ["parse", "stream"])
def test_a_structured_answer_is_an_object_either_way(client, upstream, first):
    question = asked(response_format=Depth)
    for way in (WAYS[first], parsed, helped):
        answer = way(client, question)
        assert answer.choices[0].message.parsed == Depth(basin="text", metres=1)
        assert answer.usage.total_tokens > 0
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("first", ["create", "stream"])
async def test_asynchronously(async_client, upstream, question, first):
    async def helped():
        async with async_client.chat.completions.stream(**question, **USAGE) as stream:
            try:
                return await stream.get_final_completion()
            except LengthFinishReasonError as error:
                return error.completion

    async def created():
        return await async_client.chat.completions.create(**question)

    one, other = (helped, created) if first == "stream" else (created, helped)
    made = said(await one())
    assert said(await other()) == said(await one()) == made
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("first", ["create", "stream"])
def test_with_the_key_where_azure_has_it(client, team, upstream, first):
    question = asked(**LIKELY)
    keyed = {**question, "extra_headers": {"Authorization": Omit(), "api-key": team.key}}
    made = said(WAYS[first](client, keyed))
    for each in (keyed, question):
        assert said(plain(client, each)) == said(helped(client, each)) == made
    assert upstream.idle_stats()["requests"] == 1


@pytest.mark.parametrize("first", ["plain", "stream"])
def test_the_node_sdk(node, gateway, new_team, upstream, first):
    team = new_team()
    done = subprocess.run(
        ["node", "replay.mjs", first, gateway.base_url],
        cwd=node,
        env=clean_environment(TEAM_KEY=team.key),
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    kinds = json.loads(done.stdout)
    assert kinds.keys() == {"text", "choices", "cut short", "likely", "tool call", "refusal", "tools that run"}
    for kind, seen in kinds.items():
        assert seen["hit"] == seen["miss"], kind
        assert seen["statuses"] == [seen["statuses"][0], "hit"], kind
        assert seen["statuses"][0] == "miss", kind
