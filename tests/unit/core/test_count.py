import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.chat import parse_chat
from proxy.core.count import Said, Transcript, encoding_of, prompt_of
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import IMAGE_TOKENS
from proxy.core.strict_json import parse_object


def said_by(messages, **members):
    body = json.dumps({"model": "gpt-4o-mini", "messages": messages} | members).encode()
    return prompt_of(parse_chat(parse_object(body), body))


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4", "cl100k_base"),
        ("gpt-4-0613", "cl100k_base"),
        ("gpt-4-turbo-2024-04-09", "cl100k_base"),
        ("gpt-3.5-turbo", "cl100k_base"),
        ("ft:gpt-3.5-turbo-0125:org::id", "cl100k_base"),
        ("ft:gpt-4:org::id", "cl100k_base"),
        ("text-embedding-3-small", "cl100k_base"),
        ("gpt-4o", "o200k_base"),
        ("gpt-4.1-mini", "o200k_base"),
        ("ft:gpt-4o-mini-2024-07-18:org::id", "o200k_base"),
        ("gpt-5", "o200k_base"),
        ("o3", "o200k_base"),
        ("llama", "o200k_base"),
    ],
)
def test_a_model_has_a_vocabulary(model, encoding):
    assert encoding_of(model) == encoding


def test_a_message_is_three_tokens_its_role_and_its_text():
    assert said_by([{"role": "user", "content": "Hello"}]) == Said(("user", "Hello"), 3 + 3)
    both = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hi", "name": "ada"}]
    assert said_by(both) == Said(("system", "Be brief", "user", "Hi", "ada"), 3 + 3 + 3 + 1)


def test_parts_that_are_no_text_are_taken_at_their_estimate():
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10_000}},
        {"type": "input_audio", "input_audio": {"data": "B" * 3_199, "format": "mp3"}},
    ]
    said = said_by([{"role": "user", "content": parts}])
    assert said == Said(("user", "What is this?"), 3 + 3 + IMAGE_TOKENS + 3)


def test_calls_and_tools_count():
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
    ]
    tools = [{"type": "function", "function": {"name": "look"}}]
    said = said_by(messages, tools=tools)
    assert said.texts == ("assistant", "look", '{"at": 1}', "tool", "call_1", "rain",
                          '[{"type":"function","function":{"name":"look"}}]')  # fmt: skip
    assert said.more_tokens == 3 + 3 + 3 + 7


values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(["content", "name", "tool_calls", "refusal", "audio", "function_call", "x"])


@given(st.lists(st.dictionaries(names, values, max_size=4), min_size=1, max_size=3), st.lists(values, max_size=2))
def test_whatever_a_message_holds_is_counted(messages, tools):
    try:
        said = said_by([{"role": "user"} | message for message in messages], tools=tools)
    except InvalidRequest:
        return
    assert all(isinstance(text, str) for text in said.texts)
    assert said.more_tokens >= 3 + 3 * len(messages)
    assert said.characters == sum(map(len, said.texts)) >= 4 * len(messages)


@given(st.lists(st.tuples(st.integers(0, 2), st.text(max_size=9)), max_size=30))
def test_a_transcript_keeps_each_voice_by_itself(pieces):
    transcript = Transcript()
    for voice, text in pieces:
        transcript.add(voice, text)
    spoken = {voice: "".join(text for each, text in pieces if each == voice) for voice, _ in pieces}
    assert transcript.said() == Said(tuple(spoken.values()), 0)
    assert transcript.characters == sum(map(len, spoken.values()))


def test_of_an_answer_without_end_a_million_characters_are_kept():
    transcript = Transcript()
    transcript.calls = 2
    for _ in range(300):
        transcript.add(0, "x" * 10_000)
    said = transcript.said()
    assert transcript.characters == 3_000_000
    assert said.characters == 1_040_000
    assert said.more_tokens == 2 * 7 + (3_000_000 - 1_040_000) // 4
