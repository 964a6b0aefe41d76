import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chat import ask_for_usage, parse_chat
from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import parse_object

ASK = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Hi"}]}


def parsed(**more):
    raw = json.dumps({**ASK, **more}).encode()
    return parse_chat(parse_object(raw), raw)


def test_what_is_asked_for():
    request = parsed(stream=True, n=3, max_tokens=7, stream_options={"include_usage": True}, service_tier="flex")
    assert (request.model, request.stream, request.choices, request.max_output_tokens) == ("gpt-4o-mini", True, 3, 7)
    assert (request.include_usage, request.service_tier) == (True, "flex")


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
         "messages[0].content[0].file.file_id"),
        ({"messages": [*ASK["messages"], {"role": "assistant", "audio": {"id": "audio_1"}}]}, "messages[1].audio"),
        ({"audio": {"format": "mp3", "voice": {"id": "voice_1"}}}, "audio.voice"),
        ({"audio": {"format": "mp3", "voice": "alloy"}}, None),
        ({"messages": [{"role": "assistant", "audio": None, "content": "Hi"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "A"}}]}]}, None),
    ],
)  # fmt: skip
def test_what_refers_to_something_kept_upstream(more, param):
    assert parsed(**more).state == param


def test_the_newer_name_of_the_maximum_wins():
    assert parsed(max_tokens=7, max_completion_tokens=9).max_output_tokens == 9


def test_null_is_as_good_as_absent():
    request = parsed(stream=None, n=None, max_tokens=None, stream_options=None, temperature=None)
    assert (request.stream, request.choices, request.max_output_tokens) == (False, 1, None)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": 4}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["Hi"]}]}, "messages[0].content[]"),
        ({"stream": "yes"}, "stream"),
        ({"stream": 1}, "stream"),
        ({"n": True}, "n"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": 2**31}, "max_tokens"),
        ({"max_completion_tokens": -5}, "max_completion_tokens"),
        ({"max_completion_tokens": 2**62}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"seed": 1.5}, "seed"),
        ({"tools": {}}, "tools"),
        ({"stream_options": []}, "stream_options"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop": 5}, "stop"),
        ({"metadata": "x"}, "metadata"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(more, param):
    with pytest.raises(InvalidRequest) as refused:
        parsed(**more)
    assert refused.value.param == param
    assert param in refused.value.message


extras = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name not in {"stream_options", "include_usage"}),
    st.none() | st.booleans() | st.integers(-9, 9) | st.text() | st.lists(st.text()),
    max_size=4,
)
options = (
    st.none() | extras | st.builds(lambda more, on: {**more, "include_usage": on}, extras, st.none() | st.booleans())
)


@given(st.none() | options, st.integers(0, 4), st.booleans(), st.booleans())
def test_usage_is_asked_for_and_nothing_else_changes(stream_options, indent, first, absent):
    body = {**ASK, "stream": True, "x_unknown": {"é": [1.50, "\u2028"]}}
    if not absent:
        body = {"stream_options": stream_options, **body} if first else {**body, "stream_options": stream_options}
    raw = json.dumps(body, indent=indent or None, ensure_ascii=False).encode()
    request = parse_chat(parse_object(raw), raw)
    asked = json.loads(ask_for_usage(request))
    expected = {**body, "stream_options": {**(body.get("stream_options") or {}), "include_usage": True}}
    assert asked == expected
    untouched = {name: value for name, value in body.items() if name != "stream_options"}
    for name, value in untouched.items():
        written = json.dumps(value, indent=indent or None, ensure_ascii=False)
        if indent == 0:
            assert f'"{name}": {written}'.encode() in ask_for_usage(request)
