import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.answer import ChatStream, parse_completion
from proxy.core.chat import ask_for_usage
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import estimate_output
from proxy.core.kinds import KINDS
from proxy.core.replay import NotTellable
from proxy.core.strict_json import parse_object
from proxy.core.usage import Usage
from proxy.simulator.behaviour import Behaviour
from proxy.simulator.completions import completions_endpoint
from proxy.simulator.endpoint import Stamp

KIND = KINDS["text_completion"]
MODEL = "gpt-3.5-turbo-instruct"
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
PROMPTS = st.one_of(
    TEXT,
    st.lists(TEXT, min_size=1, max_size=4),
    st.lists(st.integers(0, 9), min_size=1, max_size=9),
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4),
)
REQUESTS = st.fixed_dictionaries(
    {"prompt": PROMPTS},
    optional={
        "n": st.integers(1, 4),
        "max_tokens": st.none() | st.integers(0, 40),
        "suffix": TEXT,
        "echo": st.booleans(),
        "stream": st.booleans(),
        "stream_options": st.just({"include_usage": True}),
    },
)
STAMP = Stamp("s" * 29, 1)


def raw_of(**fields):
    return json.dumps({"model": MODEL, **fields}).encode()


def asking(**fields):
    raw = raw_of(**fields)
    return KIND.parse(parse_object(raw), raw)


@given(fields=REQUESTS, more=st.integers(0, 3), length=st.integers(0, 40))
def test_what_is_reserved_is_enough_for_what_upstream_bills(fields, more, length):
    candidates = fields.get("n", 1) + more
    fields |= {"best_of": candidates} if more and not fields.get("stream") else {}
    answer = completions_endpoint(Behaviour(tokens=length))(raw_of(**fields))
    asked = asking(**fields)
    assert KIND.estimate(asked) == answer.input_tokens
    assert estimate_output(asked, 1, 0) >= answer.output_tokens
    assert asked.choices == len(answer.choices)


@given(fields=REQUESTS, cuts=st.lists(st.integers(0, 3_000), max_size=6), hide=st.booleans())
def test_a_stream_is_read_however_it_is_cut(fields, cuts, hide):
    fields |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = completions_endpoint(Behaviour())(raw_of(**fields))
    whole = b"".join(frame.data for frame in answer.frames(STAMP, usage=True)) + answer.terminator
    stream = ChatStream(choices=asking(**fields).choices, hide_usage=hide)
    at = sorted({0, *(cut for cut in cuts if cut < len(whole)), len(whole)})
    passed = b"".join(stream.feed(whole[start:end]) for start, end in pairwise(at))
    passed += stream.rest()
    bare = completions_endpoint(Behaviour())(raw_of(**{**fields, "stream_options": None}))
    without = b"".join(frame.data for frame in bare.frames(STAMP, usage=True)) + bare.terminator
    assert passed == (without if hide else whole)
    assert stream.usage == Usage(answer.input_tokens, answer.output_tokens)
    assert stream.complete
    assert stream.storable
    said = "".join(choice.opening + "".join(choice.pieces) for choice in answer.choices)
    assert sorted("".join(stream.transcript.said().texts)) == sorted(said)


def test_what_is_asked_for():
    asked = asking(prompt=["a", "b"], n=2, best_of=5, max_tokens=7)
    assert (asked.choices, asked.generated, asked.max_output_tokens) == (4, 10, 7)
    assert estimate_output(asked, 1_024, None) == 70


def test_the_maximum_is_sixteen_unless_told_otherwise():
    assert asking(prompt="a").max_output_tokens == asking(prompt="a", max_tokens=None).max_output_tokens == 16
    assert asking(prompt="a", max_tokens=0).max_output_tokens == 0
    assert estimate_output(asking(prompt="a", n=3), 1_024, None) == 48


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 5}, "model"),
        ({"model": None}, "model"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"best_of": 21}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": True}, "best_of"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"suffix": 5}, "suffix"),
        ({"echo": 1}, "echo"),
        ({"temperature": 3}, "temperature"),
        ({"prompt": {}}, "prompt"),
    ],
)
def test_what_is_refused(fields, param):
    with pytest.raises(InvalidRequest) as caught:
        asking(**{"prompt": "a", **fields})
    assert caught.value.param == param


def test_upstream_is_asked_for_the_usage_of_a_stream():
    told = json.loads(ask_for_usage(asking(prompt="a", stream=True)))
    assert told == {"model": MODEL, "prompt": "a", "stream": True, "stream_options": {"include_usage": True}}


def test_what_is_deterministic():
    check = KIND.nondeterminism
    assert check({"temperature": 0}) is check({"top_p": 0}) is check({"seed": 1}) is None
    assert check({}) == check({"temperature": 1}) == "temperature"
    assert check({"store": True, "temperature": 0}) == "store"
    # What is no field of a completion is upstream's to judge.
    assert check({"seed": 1, "messages": [5], "tools": 5, "modalities": 5}) is None


@pytest.mark.parametrize(("reason", "kept"), [("stop", True), ("length", True), ("content_filter", False)])
def test_what_is_kept(reason, kept):
    choice = {"text": "a", "index": 0, "logprobs": None, "finish_reason": reason}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    body = json.dumps({"object": "text_completion", "choices": [choice], "usage": usage}).encode()
    assert parse_completion(body).storable is kept


def test_each_form_is_told_by_itself():
    with pytest.raises(NotTellable):
        KIND.telling.plain_of(b"data: [DONE]\n\n")
    with pytest.raises(NotTellable):
        KIND.telling.stream_of(b"{}", include_usage=True)
