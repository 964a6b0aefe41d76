import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.simulator import Behaviour
from proxy.simulator.chat import chat_endpoint, prompt_tokens
from proxy.simulator.chat_request import parse
from proxy.simulator.endpoint import Stamp
from proxy.simulator.refusal import Refusal

STAMP = Stamp("0" * 29, 1_800_000_000)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def request(content="hello", **fields):
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}], **fields}
    return json.dumps(body).encode()


def answer_to(content="hello", *, seed=0, tokens=16, **fields):
    return chat_endpoint(Behaviour(seed=seed, tokens=tokens))(request(content, **fields))


def plain(answer):
    return json.loads(answer.body(STAMP, usage=True))


def chunks(answer, *, usage=True):
    frames = list(answer.frames(STAMP, usage=usage))
    assert all(frame.data.startswith(b"data: {") and frame.data.endswith(b"}\n\n") for frame in frames)
    return [json.loads(frame.data[6:]) for frame in frames]


def text_of(streamed, index=0):
    deltas = [choice for chunk in streamed for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta["delta"].get("content") or "" for delta in deltas)


@given(
    contents=st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), texts), min_size=1, max_size=5),
    n=st.integers(1, 3),
    most=st.none() | st.integers(1, 20),
    echo=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_both_forms_hold_the_same_text_and_the_same_usage(contents, n, most, echo):
    messages = [{"role": role, "content": ("echo:" if echo else "") + content} for role, content in contents]
    fields = {"messages": messages, "n": n, "max_completion_tokens": most}
    whole = plain(answer_to(**fields))
    streamed = chunks(answer_to(**fields, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"] == whole["usage"]
    assert all(chunk["usage"] is None for chunk in streamed[:-1])
    for index, choice in enumerate(whole["choices"]):
        assert choice["index"] == index
        assert text_of(streamed, index) == choice["message"]["content"]
        reasons = [part["finish_reason"] for chunk in streamed for part in chunk["choices"] if part["index"] == index]
        assert [reason for reason in reasons if reason] == [choice["finish_reason"]] == [reasons[-1]]
    pieces = [part for chunk in streamed for part in chunk["choices"] if part["delta"].get("content")]
    usage = whole["usage"]
    assert usage["completion_tokens"] == len(pieces)
    assert usage["prompt_tokens"] == 3 + sum(4 + -(-len(message["content"]) // 4) for message in messages)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@given(content=texts)
@settings(deadline=None)
def test_an_echo_comes_back_to_the_letter(content):
    answer = answer_to(f"echo:{content}")
    assert plain(answer)["choices"][0]["message"]["content"] == content
    assert text_of(chunks(answer)) == content
    assert answer.output_tokens == -(-len(content) // 4)


def test_the_last_user_message_is_the_one_that_is_echoed():
    messages = [
        {"role": "user", "content": "echo:first"},
        {"role": "user", "content": [{"type": "text", "text": "echo:"}, {"type": "text", "text": "parts"}]},
        {"role": "assistant", "content": "echo:not me"},
    ]
    assert plain(answer_to(messages=messages))["choices"][0]["message"]["content"] == "parts"


def test_the_text_follows_from_the_request_and_the_seed():
    def said(**fields):
        return plain(answer_to(**fields))["choices"][0]["message"]["content"]

    assert said() == said() == said(temperature=1, user="x")
    different = [said(), said(seed=1), said(content="hallo"), said(model="gpt-4o"), said(n=2)]
    assert len(set(different)) == len(different)
    first, second = plain(answer_to(n=2))["choices"]
    assert first["message"]["content"] != second["message"]["content"]


def test_the_seed_of_the_request_matters_too():
    one, two = (json.loads(request(seed=seed)) for seed in (1, 2))
    endpoint = chat_endpoint(Behaviour())
    texts = {endpoint(json.dumps(body).encode()).body(STAMP, usage=True) for body in (one, two)}
    assert len(texts) == 2


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_maximum_cuts_the_answer(field):
    whole, cut = plain(answer_to()), plain(answer_to(**{field: 3}))
    assert whole["choices"][0]["finish_reason"] == "stop"
    assert whole["usage"]["completion_tokens"] == 16
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 3
    assert whole["choices"][0]["message"]["content"].startswith(cut["choices"][0]["message"]["content"])
    assert plain(answer_to(**{field: 16}))["choices"][0]["finish_reason"] == "stop"


def test_the_order_and_keys_of_chunks():
    streamed = chunks(answer_to(stream=True, max_tokens=1))
    assert [list(chunk) for chunk in streamed] == [
        ["id", "object", "created", "model", "service_tier", "system_fingerprint", "choices"]
    ] * 3
    role, piece, finish = (chunk["choices"][0] for chunk in streamed)
    assert role["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert list(piece["delta"]) == ["content"]
    assert (finish["delta"], finish["finish_reason"]) == ({}, "length")
    assert {chunk["id"] for chunk in streamed} == {"chatcmpl-" + "0" * 29}


def test_usage_can_be_left_out_of_both_forms():
    answer = answer_to(stream=True, stream_options={"include_usage": True})
    assert "usage" not in json.loads(answer.body(STAMP, usage=False))
    assert not [chunk for chunk in chunks(answer, usage=False) if "usage" in chunk]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
)
def test_a_tool_that_must_be_called_is_called(choice, reason):
    fields = {"tools": [TOOL], "tool_choice": choice}
    whole = plain(answer_to(**fields))
    message = whole["choices"][0]["message"]
    assert (message["content"], whole["choices"][0]["finish_reason"]) == (None, reason)
    call = message["tool_calls"][0]
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "text", "days": 1}
    streamed = chunks(answer_to(**fields, stream=True))
    parts = [part["delta"]["tool_calls"][0] for chunk in streamed for part in chunk["choices"] if part["delta"]]
    assert parts[0]["id"] == call["id"]
    assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]
    assert whole["usage"]["completion_tokens"] == len(parts) - 1


def test_tools_that_need_not_be_called_are_not():
    assert plain(answer_to(tools=[TOOL]))["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "gone"}}},
    ],
)
def test_a_tool_that_is_not_there_cannot_be_chosen(fields):
    with pytest.raises(Refusal) as caught:
        answer_to(**fields)
    assert (caught.value.status, caught.value.param) == (400, "tool_choice")


@pytest.mark.parametrize("tokens", [0, 2, 16])
def test_json_is_json(tokens):
    answer = plain(answer_to(response_format={"type": "json_object"}, tokens=tokens))
    assert list(json.loads(answer["choices"][0]["message"]["content"])) == ["text"]


def test_structured_output_fits_its_schema():
    schema = {"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "string"}, "minItems": 1}}}
    form = {"type": "json_schema", "json_schema": {"name": "plan", "schema": schema}}
    content = plain(answer_to(response_format=form))["choices"][0]["message"]["content"]
    assert json.loads(content) == {"steps": ["text"]}


@pytest.mark.parametrize(("characters", "cached"), [(4_060, 0), (4_068, 1_024), (8_000, 1_920)])
def test_long_prompts_count_as_cached_in_steps_of_128(characters, cached):
    usage = plain(answer_to("x" * characters))["usage"]
    assert usage["prompt_tokens"] == 3 + 4 + characters // 4
    assert usage["prompt_tokens_details"]["cached_tokens"] == cached


def test_what_the_token_limit_is_charged():
    assert answer_to("x" * 400).limit_tokens == 100
    assert answer_to("x" * 400, max_tokens=500).limit_tokens == 500


def test_large_bodies_are_answered_as_small_ones_are():
    endpoint = chat_endpoint(Behaviour())
    body = request("echo:" + "é" * 20_000)
    assert endpoint(body).output_tokens == 5_000
    assert endpoint(body) == endpoint(body)
    assert endpoint(body) is not endpoint(body)


def test_answers_are_remembered_within_bounds():
    endpoint = chat_endpoint(Behaviour())
    first = endpoint(request("0"))
    assert endpoint(request("0")) is first
    for number in range(1, 258):
        endpoint(request(str(number)))
    assert endpoint(request("0")) is not first
    assert endpoint(request("0")) == first


def test_prompt_tokens_of_messages_without_text():
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
    assert prompt_tokens(parse(request(messages=[message, {"role": "assistant", "content": None}])).messages) == 11


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"{", None, None),
        (b"\xff", None, None),
        (b"[]", None, "invalid_type"),
        (b"{}", "model", "missing_required_parameter"),
        (b'{"model":"gpt-4o"}', "messages", "missing_required_parameter"),
        (b'{"model":"gpt-4o","messages":[]}', "messages", "invalid_type"),
        (b'{"model":"gpt-4o","messages":[{}]}', "messages[0].role", "missing_required_parameter"),
        (request(n=0), "n", "invalid_type"),
        (request(max_tokens=0), "max_tokens", "invalid_type"),
        (request(stream="yes"), "stream", "invalid_type"),
        (request(stream_options={"include_usage": True}), "stream_options", None),
    ],
)
def test_bad_bodies_are_refused_with_the_field_they_are_about(body, param, code):
    with pytest.raises(Refusal) as caught:
        parse(body)
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


def test_an_answer_is_bounded():
    with pytest.raises(Refusal) as caught:
        answer_to(n=128, tokens=1_000_000)
    assert caught.value.param == "n"


def parts_of(answer, name):
    """What the choices of a stream carry under a name, in order."""
    return [part[name] for chunk in chunks(answer) for part in chunk["choices"] if part[name] is not None]


def test_a_refusal_is_said_in_both_forms():
    fields = {"content": "refuse:I will not.", "n": 2, "tools": [TOOL], "tool_choice": "required"}
    for choice in plain(answer_to(**fields))["choices"]:
        message = choice["message"]
        assert (message["content"], message["refusal"], choice["finish_reason"]) == (None, "I will not.", "stop")
        assert "tool_calls" not in message
    deltas = parts_of(answer_to(**fields, stream=True), "delta")
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": ""}
    assert [delta["refusal"] for delta in deltas if delta.get("refusal")] == [
        piece for piece in ("I wi", "ll n", "ot.") for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("content", "kind", "other"), [("echo:dépth?", "content", "refusal"), ("refuse:no", "refusal", "content")]
)
@pytest.mark.parametrize("most", [None, 0, 2])
def test_what_is_told_of_how_likely_each_piece_was(content, kind, other, most):
    fields = {"content": content, "logprobs": True} | ({} if most is None else {"top_logprobs": most})
    told = plain(answer_to(**fields))["choices"][0]["logprobs"]
    assert told[other] is None
    text = content.partition(":")[2]
    assert "".join(each["token"] for each in told[kind]) == text
    assert bytes(number for each in told[kind] for number in each["bytes"]) == text.encode()
    assert {len(each["top_logprobs"]) for each in told[kind]} == {most or 0}
    assert all(each["logprob"] < 0 for each in told[kind])
    streamed = parts_of(answer_to(**fields, stream=True), "logprobs")
    assert [each[kind] for each in streamed] == [[each] for each in told[kind]]


def test_nothing_is_told_of_it_unasked():
    assert plain(answer_to())["choices"][0]["logprobs"] is None
    assert plain(answer_to(top_logprobs=2))["choices"][0]["logprobs"] is None
