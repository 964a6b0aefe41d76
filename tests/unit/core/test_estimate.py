import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chat import parse_chat
from proxy.core.estimate import IMAGE_TOKENS, estimate_input, estimate_output
from proxy.core.strict_json import parse_object


def asking(messages, **more):
    raw = json.dumps({"model": "m", "messages": messages, **more}).encode()
    return parse_chat(parse_object(raw), raw)


def user(content, **more):
    return {"role": "user", "content": content, **more}


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_text_is_characters_over_four_rounded_up(contents):
    request = asking([user(content) for content in contents])
    assert estimate_input(request) == -(-sum(len(text) + len("user") for text in contents) // 4)


def test_an_image_counts_the_same_however_long_its_data():
    def parts(url):
        return [user([{"type": "text", "text": "what"}, {"type": "image_url", "image_url": {"url": url}}])]

    short, long = asking(parts("https://x/y.png")), asking(parts("data:image/png;base64," + "A" * 100_000))
    assert estimate_input(short) == estimate_input(long) == IMAGE_TOKENS + 2


def test_tools_and_tool_calls_are_part_of_the_prompt():
    bare = estimate_input(asking([user("x")]))
    tools = [{"type": "function", "function": {"name": "f", "description": "d" * 400}}]
    assert estimate_input(asking([user("x")], tools=tools)) >= bare + 100
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "a" * 400}}
    spoken = [{"role": "assistant", "content": None, "tool_calls": [call]}, user("x")]
    assert estimate_input(asking(spoken)) >= bare + 100


@pytest.mark.parametrize(
    ("more", "room", "tokens"),
    [
        ({}, None, 1_024),
        ({"n": 3}, None, 3_072),
        ({"max_tokens": 10}, None, 10),
        ({"max_tokens": 10, "n": 4}, None, 40),
        ({}, 100, 100),
        ({}, -5, 0),
        ({"max_tokens": 10}, 5, 10),
    ],
)
def test_the_answer_is_reserved_at_its_maximum_and_the_default_never_overflows(more, room, tokens):
    assert estimate_output(asking([user("x")], **more), 1_024, room) == tokens
