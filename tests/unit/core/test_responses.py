import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import InvalidRequest
from proxy.core.estimate import IMAGE_TOKENS, estimate_output
from proxy.core.kinds import KINDS
from proxy.core.replay import NotTellable
from proxy.core.responses_answer import ResponsesStream, read_response
from proxy.core.strict_json import parse_object
from proxy.core.usage import NO_USAGE, Usage
from proxy.simulator.behaviour import Behaviour
from proxy.simulator.endpoint import Stamp
from proxy.simulator.responses import responses_endpoint

KIND, COUNT = KINDS["responses"], KINDS["responses_input_tokens"]
MODEL = "gpt-4o-mini"
STAMP = Stamp("s" * 29, 1)
TOOL = {"type": "function", "name": "depth_of", "parameters": {"type": "object", "properties": {"file_id": {}}}}
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
MESSAGES = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "assistant", "developer"]),
    TEXT | st.lists(st.builds(lambda text: {"type": "input_text", "text": text}, TEXT), max_size=3),
)
REQUESTS = st.fixed_dictionaries(
    {"input": TEXT.filter(bool) | st.lists(MESSAGES, min_size=1, max_size=4)},
    optional={
        "instructions": TEXT,
        "max_output_tokens": st.integers(1, 40),
        "tools": st.just([TOOL]),
        "tool_choice": st.sampled_from(["auto", "none"]),
    },
)


def raw_of(**fields):
    return json.dumps({"model": MODEL, **fields}).encode()


def asking(kind=KIND, **fields):
    raw = raw_of(**fields)
    return kind.parse(parse_object(raw), raw)


def image(url):
    return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}


@given(fields=REQUESTS, length=st.integers(0, 40))
def test_what_is_reserved_is_enough_for_what_upstream_bills(fields, length):
    answer = responses_endpoint(Behaviour(tokens=length))(raw_of(**fields))
    asked = asking(**fields)
    assert KIND.estimate(asked) >= answer.input_tokens
    echoes = asked.max_output_tokens is None
    assert echoes or estimate_output(asked, 1, 0) >= answer.output_tokens


@given(fields=REQUESTS, more=MESSAGES)
def test_more_items_are_never_less(fields, more):
    if isinstance(fields["input"], list):
        longer = {**fields, "input": [*fields["input"], more]}
        assert KIND.estimate(asking(**longer)) > KIND.estimate(asking(**fields))


def test_all_that_is_read_is_estimated():
    bare = KIND.estimate(asking(input="Hi"))
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "a" * 400}
    assert KIND.estimate(asking(input="Hi", tools=[{**TOOL, "description": "d" * 400}])) >= bare + 100
    assert KIND.estimate(asking(input="Hi", instructions="i" * 400)) >= bare + 100
    schema = {"format": {"type": "json_schema", "schema": {"d" * 400: {}}}}
    assert KIND.estimate(asking(input="Hi", text=schema)) >= bare + 100
    assert KIND.estimate(asking(input=[call])) >= 107
    assert KIND.estimate(asking(input=[{"type": "function_call_output", "call_id": "c", "output": "o" * 400}])) >= 100
    assert KIND.estimate(asking(input=[{"type": "reasoning", "summary": [], "encrypted_content": "e" * 400}])) >= 100
    assert KIND.estimate(asking(input=[{"type": "unheard_of", "said": "e" * 400}])) >= 100
    short, long = image("https://x/y.png"), image("data:image/png;base64," + "A" * 100_000)
    assert IMAGE_TOKENS <= KIND.estimate(asking(input=[short])) == KIND.estimate(asking(input=[long]))


def test_what_is_asked_for():
    asked = asking(input="Hi", stream=True, max_output_tokens=7, service_tier="flex")
    assert (asked.stream, asked.max_output_tokens, asked.service_tier, asked.state) == (True, 7, "flex", None)
    assert asked.max_output_param == "max_output_tokens"
    assert asked.include_usage, "it is told always: upstream is not asked for it"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"input": None}, "input"),
        ({"input": 5}, "input"),
        ({"input": ["Hi"]}, "input[0]"),
        ({"input": [{"role": "user", "content": ["Hi"]}]}, "input[0].content[]"),
        ({"input": [{"type": 5}]}, "input[0].type"),
        ({"input": [{"type": "reasoning", "summary": [5]}]}, "input[0].summary[]"),
        ({"instructions": 5}, "instructions"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": "many"}, "max_output_tokens"),
        ({"stream": 1}, "stream"),
        ({"store": "no"}, "store"),
        ({"background": 1}, "background"),
        ({"tools": {}}, "tools"),
        ({"tools": ["web_search"]}, "tools[0]"),
        ({"temperature": 3}, "temperature"),
        ({"text": []}, "text"),
        ({"conversation": 5}, "conversation"),
        ({"prompt": "pmpt_1"}, "prompt"),
    ],
)
@pytest.mark.parametrize("kind", [KIND, COUNT])
def test_what_is_refused(kind, fields, param):
    with pytest.raises(InvalidRequest) as caught:
        asking(kind, **{"input": "Hi", **fields})
    assert caught.value.param == param


INTERPRETER = {"type": "code_interpreter", "container": "cntr_1"}
STATE = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"previous_response_id": ""}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"conversation": {"id": "conv_1"}}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"input": [{"role": "user", "content": "a"}, {"type": "item_reference", "id": "msg_1"}]}, "input[1]"),
    ({"input": [{"id": "msg_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}, "input[0]"),
    ({"input": [{"type": "function_call_output", "output": [{"type": "input_image", "file_id": "f"}]}]}, "input[0]"),
    ({"tools": [TOOL, {"type": "file_search", "vector_store_ids": ["vs_1"]}]}, "tools[1]"),
    ({"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}, "tools[0]"),
    ({"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]}, "tools[0]"),
    ({"tools": [{"type": "mcp", "server_label": "s", "tunnel_id": "t"}]}, "tools[0]"),
    ({"tools": [{"type": "namespace", "name": "n", "tools": [TOOL, INTERPRETER]}]}, "tools[0]"),
    ({"input": [{"type": "additional_tools", "role": "developer", "tools": [TOOL, INTERPRETER]}]}, "input[0]"),
    (
        {"input": [{"type": "tool_search_output", "tools": [{"type": "file_search", "vector_store_ids": ["v"]}]}]},
        "input[0]",
    ),
    ({"input": [{"type": "image_generation_call", "id": "ig_1"}]}, "input[0]"),
]


@pytest.mark.parametrize(("fields", "param"), STATE)
def test_what_refers_to_something_kept_upstream(fields, param):
    assert asking(**{"input": "Hi", **fields}).state == param
    assert asking(COUNT, **{"input": "Hi", **fields}).state == param
    free = {"input": "Hi", "store": False, "temperature": 0, **fields}
    assert KIND.nondeterminism(free) is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": None, "conversation": None, "prompt": None, "background": False},
        {"store": True},
        {"tools": [TOOL]},
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": []}}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": None, "image_url": "data:,"}]}]},
        {"input": [{"id": "msg_1", "role": "assistant", "content": "it says file_id"}]},
        {"input": [{"type": "image_generation_call", "id": "ig_1", "result": "iVBORw0KGgo="}]},
        {"input": [{"type": "additional_tools", "role": "developer", "tools": [TOOL]}]},
        {"input": [{"type": "tool_search_output", "tools": [{"type": "namespace", "tools": [TOOL]}]}]},
        {"tools": [{"type": "namespace", "name": "n", "tools": [TOOL]}]},
    ],
)
def test_what_refers_to_nothing(fields):
    assert asking(**{"input": "Hi", **fields}).state is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"temperature": 1, "top_p": 0}, None),
        ({"temperature": 1}, "temperature"),
        ({"temperature": 1, "seed": 5}, "temperature"),
        ({"store": None}, "store"),
        ({"store": True}, "store"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": {}}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [TOOL]}, None),
        ({"tools": [{"type": "custom", "name": "f"}]}, None),
        ({"tools": [TOOL, {"type": "web_search"}]}, "tools"),
        ({"tools": [{}]}, "tools"),
        ({"model": "gpt-4o-search-preview"}, "model"),
        ({"input": [image("data:image/png;base64,A")]}, None),
        ({"input": [image("https://x/y.png")]}, "image_url"),
        ({"input": [image("https://x/y.png")], "store": True}, "store"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}]}, "file"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "A"}]}]}, None),
        ({"input": [{"type": "item_reference", "id": "m"}]}, "reference"),
        ({"input": [{"type": "unheard_of"}]}, "content"),
        ({"input": [{"role": "user", "content": [{"type": "unheard_of"}]}]}, "content"),
        ({"input": [{"type": "function_call_output", "output": [image("https://x")["content"][0]]}]}, "image_url"),
    ],
)
def test_what_is_deterministic(fields, reason):
    assert KIND.nondeterminism({"input": "Hi", "store": False, "temperature": 0, **fields}) == reason


def test_it_is_kept_upstream_unless_told_otherwise():
    assert KIND.nondeterminism({"input": "Hi", "temperature": 0}) == "store"


def test_a_count_costs_no_tokens():
    asked = asking(COUNT, input="Hi" * 1_000, max_output_tokens=500, stream=True)
    assert (COUNT.estimate(asked), estimate_output(asked, 1_024, None), asked.stream) == (0, 0, False)
    read = COUNT.read(b'{"object":"response.input_tokens","input_tokens":500}')
    assert (read.usage, read.storable) == (NO_USAGE, False)
    assert COUNT.nondeterminism({"temperature": 0, "store": False}) == "endpoint"


@given(fields=REQUESTS, cuts=st.lists(st.integers(0, 6_000), max_size=6), usage=st.booleans())
def test_a_stream_is_read_however_it_is_cut(fields, cuts, usage):
    answer = responses_endpoint(Behaviour())(raw_of(**fields, stream=True))
    whole = b"".join(frame.data for frame in answer.frames(STAMP, usage=usage))
    stream = ResponsesStream()
    at = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    assert b"".join(stream.feed(whole[start:end]) for start, end in pairwise(at)) + stream.rest() == whole
    assert stream.usage == (Usage(answer.input_tokens, answer.output_tokens) if usage else None)
    assert stream.complete
    assert stream.storable is (usage and not answer.cut)
    assert "".join(stream.transcript.said().texts) == "".join(answer.pieces)
    plain = read_response(answer.body(STAMP, usage=usage))
    assert plain.usage == stream.usage
    assert plain.storable is stream.storable
    assert usage or "".join(plain.said.texts) == "".join(answer.pieces)


def test_a_break_is_told_in_its_own_form_and_numbered_on():
    stream = ResponsesStream()
    assert stream.error_event("gone", "upstream_broken").startswith(b'event: error\ndata: {"type":"error"')
    stream.feed(b'event: response.created\ndata: {"type":"response.created","sequence_number":6}\n\n')
    event = json.loads(stream.error_event("gone", "upstream_broken").partition(b"data: ")[2])
    assert event == {
        "type": "error",
        "sequence_number": 7,
        "code": "upstream_broken",
        "message": "gone",
        "param": None,
    }
    stream.feed(b'data: {"type":"response.in_progress","sequence_number":"x"}\n\n')
    assert not stream.malformed


@pytest.mark.parametrize(
    ("changes", "storable", "unfinished"),
    [
        ({}, True, False),
        ({"status": "incomplete"}, False, False),
        ({"status": "failed", "error": {"code": "x"}}, False, False),
        ({"error": {"code": "x"}}, False, False),
        ({"output": []}, False, False),
        ({"usage": None}, False, False),
        ({"status": "queued", "usage": None}, False, True),
        ({"status": "in_progress", "usage": None}, False, True),
    ],
)
def test_what_is_kept_and_what_goes_on(changes, storable, unfinished):
    message = {"type": "message", "content": [{"type": "output_text", "text": "a"}]}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    body = {"status": "completed", "error": None, "output": [message], "usage": usage, **changes}
    read = read_response(json.dumps(body).encode())
    assert (read.storable, read.unfinished) == (storable, unfinished)


def test_a_call_without_usage_is_counted():
    call = {"type": "function_call", "name": "depth_of", "arguments": "a" * 40}
    read = read_response(json.dumps({"status": "completed", "output": [call]}).encode())
    assert read.usage is None
    assert read.counted_output_tokens == 12 + 7
    assert (read.said.texts, read.said.more_tokens) == (("depth_of", "a" * 40), 7)


def test_a_stream_is_told_again_as_it_came_and_in_no_other_form():
    assert KIND.telling.retold(b"any", include_usage=False) == b"any"
    with pytest.raises(NotTellable):
        KIND.telling.plain_of(b"any")
    with pytest.raises(NotTellable):
        KIND.telling.stream_of(b"any", include_usage=False)
