import copy
import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.core.replay import NotTellable, assemble, completion_of, explode, retold, stream_of

ABSENT = object()
LONG = 9_001
"""Characters of a text that no one piece holds."""

names = st.text("abc_", min_size=1, max_size=6)
texts = st.text(max_size=12) | st.builds(lambda seed: (seed * LONG)[:LONG], st.text(min_size=1, max_size=7))
nullable_texts = st.none() | texts


def some_of(required, **optional):
    """Objects with the required members and any of the optional ones."""
    return st.fixed_dictionaries(required, optional=optional)


entries = st.lists(some_of({"token": st.text(max_size=4), "logprob": st.floats(-9, 0)}), max_size=5)
many_entries = entries | entries.map(lambda some: some * 40)
logprobs = some_of({}, content=st.none() | many_entries, refusal=st.none() | entries)
calls = st.one_of(
    st.builds(
        lambda kind, member, call_id, name, text: {"id": call_id, "type": kind, kind: {"name": name, member: text}},
        *pair,
        names,
        names,
        texts,
    )
    for pair in (
        (st.just("function"), st.just("arguments")),
        (st.just("custom"), st.just("input")),
    )
)
messages = some_of(
    {"role": st.just("assistant")},
    content=nullable_texts,
    reasoning_content=nullable_texts,
    reasoning=nullable_texts,
    refusal=nullable_texts,
    annotations=st.none()
    | st.lists(some_of({"type": st.just("url_citation"), "url": st.text(max_size=3)}), max_size=3),
    audio=st.none(),
    function_call=st.none() | some_of({"name": names, "arguments": texts}),
    tool_calls=st.none() | st.lists(calls, max_size=3),
)
choices = st.lists(
    some_of({"message": messages, "finish_reason": names}, logprobs=st.none() | logprobs), min_size=1, max_size=3
).map(lambda some: [{"index": index, **choice} for index, choice in enumerate(some)])
usages = some_of({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)}, details=st.none())
completions = some_of(
    {
        "id": names,
        "object": st.just("chat.completion"),
        "created": st.integers(0, 2**40),
        "model": names,
        "choices": choices,
    },
    usage=usages,
    service_tier=st.none() | names,
    system_fingerprint=st.none() | names,
)


def without(whole, *members):
    return {name: value for name, value in whole.items() if name not in members}


@given(completions)
def test_taken_apart_and_put_together_it_is_what_it_was(whole):
    before = copy.deepcopy(whole)
    assert assemble(explode(whole, include_usage=True)) == before
    assert assemble(explode(whole, include_usage=False)) == without(before, "usage")
    assert whole == before


@given(completions)
def test_the_same_in_bytes(whole):
    stream = stream_of(json.dumps(whole).encode(), include_usage=True)
    assert json.loads(completion_of(stream)) == whole
    assert stream.endswith(b"\n\ndata: [DONE]\n\n")
    told = [json.loads(event.removeprefix(b"data: ")) for event in stream.split(b"\n\n")[:-2]]
    assert told == explode(whole, include_usage=True)


def halves(text, cuts):
    at = next(cuts) % (len(text) + 1)
    return text[:at], text[at:]


def cut(piece, cuts):
    """Several pieces of a choice that say what one said."""
    rest = copy.deepcopy(piece)
    tokens = rest.get("logprobs")
    if tokens and any(tokens.values()):
        for name in tokens:
            former, tokens[name] = halves(tokens[name] or [], cuts) if tokens[name] else (tokens[name], tokens[name])
            yield {**rest, "delta": {}, "finish_reason": None, "logprobs": {name: former}}
    for name, value in list(rest["delta"].items()):
        if name != "role" and isinstance(value, (str, list)) and name != "tool_calls":
            former, rest["delta"][name] = halves(value, cuts)
            yield {**without(rest, "logprobs"), "delta": {name: former}, "finish_reason": None}
        if name == "tool_calls" and value:
            (call,) = value
            kind = "function" if "function" in call else "custom"
            member = {"function": "arguments", "custom": "input"}[kind]
            former, later = halves(call[kind][member], cuts)
            call[kind][member] = former
            yield {**without(rest, "logprobs"), "finish_reason": None}
            rest["delta"] = {"tool_calls": [{"index": call["index"], "id": None, kind: {member: later}}]}
    yield rest


@given(completions, st.lists(st.integers(0, 2**16), min_size=1, max_size=20), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_how_it_was_cut_and_mixed_makes_no_difference(whole, numbers, random):
    chunks = explode(whole, include_usage=True)
    cuts = iter(number for _ in range(10_000) for number in numbers)
    queues = [
        [part for chunk in chunks for piece in chunk["choices"] if piece["index"] == index for part in cut(piece, cuts)]
        for index in range(len(whole["choices"]))
    ]
    head = without(chunks[0], "choices", "usage")
    mixed = []
    while any(queues):
        turn = random.sample([queue for queue in queues if queue], random.randint(1, sum(map(bool, queues))))
        mixed.append({**head, "choices": [queue.pop(0) for queue in turn], "obfuscation": "x" * random.randint(0, 9)})
    mixed += [chunk for chunk in chunks if not chunk["choices"]]
    assert assemble(mixed) == whole


@given(completions, st.booleans())
def test_no_chunk_says_nothing(whole, include_usage):
    chunks = explode(whole, include_usage=include_usage)
    for index, choice in enumerate(whole["choices"]):
        first, *middle, last = [chunk["choices"][0] for chunk in chunks if chunk["choices"][:1] and
                                chunk["choices"][0]["index"] == index]  # fmt: skip
        assert first["delta"]["role"] == "assistant"
        assert (last["delta"], last["finish_reason"]) == ({}, choice["finish_reason"])
        for piece in middle:
            assert piece["finish_reason"] is None
            assert any(piece["delta"].values()) or any(piece["logprobs"].values())
            assert all(len(text) <= 4_096 for text in piece["delta"].values() if isinstance(text, str))
    *others, final = chunks
    assert [chunk.get("usage", ABSENT) for chunk in others] == [None if include_usage else ABSENT] * len(others)
    if include_usage and "usage" in whole:
        assert (final["choices"], final["usage"]) == ([], whole["usage"])


def completion(message=None, logprobs=ABSENT, **more):
    """What OpenAI sends for a plain question."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello there", "refusal": None, **(message or {})},
        "logprobs": None if logprobs is ABSENT else logprobs,
        "finish_reason": "stop",
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_741_570_283,
        "model": "gpt-4o-2024-08-06",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
        "service_tier": "default",
        "system_fingerprint": "fp_1",
        **more,
    }


def test_a_stream_as_openai_sends_it():
    head = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1_741_570_283,
        "model": "gpt-4o-2024-08-06",
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }

    def chunk(delta, finish_reason=None):
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**head, "choices": [choice], "usage": None}

    assert explode(completion(), include_usage=True) == [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        chunk({"content": "Hello there"}),
        chunk({}, "stop"),
        {**head, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
    ]


def call(number, **said):
    return {"id": f"call_{number}", "type": "function", "function": {"name": f"f{number}", **said}}


def token(text):
    return {"token": text, "logprob": -0.25, "bytes": list(text.encode()), "top_logprobs": []}


@pytest.mark.parametrize(
    "whole",
    [
        completion(),
        completion({"content": None, "refusal": "I am sorry."}),
        completion({"content": None, "tool_calls": [call(1, arguments='{"a":1}'), call(2, arguments="{}")]}),
        completion({"content": None, "function_call": {"name": "f", "arguments": "{}"}}),
        completion(logprobs={"content": [token("Hello"), token(" there")], "refusal": None}),
        completion({"annotations": [{"type": "url_citation", "url_citation": {"url": "https://e.org", "title": "E",
                                     "start_index": 0, "end_index": 1}}]}),
        completion(choices=[{**completion()["choices"][0], "index": index} for index in range(3)]),
    ],
)  # fmt: skip
def test_the_official_sdk_puts_the_same_together(whole):
    state = ChatCompletionStreamState()
    for chunk in explode(whole, include_usage=True):
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    final = state.get_final_completion().to_dict(exclude_unset=True)
    for choice in final["choices"]:
        # What the SDK leaves of the stream, and what it parses for its user.
        choice["message"].pop("parsed", None)
        for each in choice["message"].get("tool_calls") or ():
            del each["index"], each["function"]["parsed_arguments"]
    expected = ChatCompletion.model_validate(whole)
    assert ChatCompletion.model_validate(final).model_dump(exclude_none=True) == expected.model_dump(exclude_none=True)


def test_tokens_stand_beside_the_text_they_spell():
    spelled = [token(f"word{number} ") for number in range(150)]
    text = "".join(each["token"] for each in spelled)
    whole = completion({"content": text}, logprobs={"content": spelled, "refusal": None})
    pieces = [chunk["choices"][0] for chunk in explode(whole, include_usage=False)[1:-1]]
    assert len(pieces) == 3
    for piece in pieces:
        assert piece["delta"]["content"] == "".join(each["token"] for each in piece["logprobs"]["content"])


def changed(whole, path, value):
    whole = copy.deepcopy(whole)
    *way, last = path
    place = whole
    for step in way:
        place = place[step]
    place[last] = value
    return whole


MESSAGE = ("choices", 0, "message")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("prompt_filter_results",), []),
        (("a member of tomorrow",), None),
        (("object",), "text_completion"),
        (("usage",), None),
        (("choices",), []),
        (("choices", 0, "stop_reason"), None),
        (("choices", 0, "content_filter_results"), {}),
        (("choices", 0, "finish_reason"), None),
        (("choices", 0, "index"), "0"),
        (("choices", 0, "logprobs"), {"text": []}),
        ((*MESSAGE, "role"), ""),
        ((*MESSAGE, "audio"), {"id": "audio_1"}),
        ((*MESSAGE, "content"), [{"type": "text", "text": "x"}]),
        ((*MESSAGE, "images"), []),
        ((*MESSAGE, "function_call"), {"name": "f"}),
        ((*MESSAGE, "tool_calls"), [{"id": "1", "type": "function", "function": {"name": "f"}}]),
        ((*MESSAGE, "tool_calls"), [{"id": "1", "type": "mcp", "mcp": {"name": "f"}}]),
        ((*MESSAGE, "tool_calls"), [{**call(1, arguments=""), "index": 0}]),
        ((*MESSAGE, "tool_calls"), [{**call(1, arguments=""), "id": ""}]),
        ((*MESSAGE, "tool_calls"), [call(1, arguments="", strict=True)]),
    ],
)
def test_a_plain_answer_that_no_stream_can_tell(path, value):
    whole = changed(completion(), path, value)
    with pytest.raises(NotTellable):
        explode(whole, include_usage=False)
    with pytest.raises(NotTellable):
        stream_of(json.dumps(whole).encode(), include_usage=False)


def test_choices_out_of_order_cannot_be_told():
    one = completion()["choices"][0]
    with pytest.raises(NotTellable):
        explode(completion(choices=[{**one, "index": 1}, one]), include_usage=False)


def chunks_of(**message):
    return explode(completion(message), include_usage=True)


def stream_as_it_came(chunks):
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def delta(**members):
    return [*chunks_of()[:-2], changed(chunks_of()[1], ("choices", 0, "delta"), members), *chunks_of()[-2:]]


def piece(**members):
    return delta(tool_calls=[{"index": 0, **members}])


WHOLE_PIECE = {"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        chunks_of()[1:],
        chunks_of()[:2],
        chunks_of()[-1:],
        [*chunks_of(), changed(chunks_of()[1], ("id",), "another")],
        [*chunks_of(), changed(chunks_of()[1], ("model",), "another")],
        [*chunks_of(), changed(chunks_of()[2], ("choices", 0, "finish_reason"), "length")],
        changed(chunks_of(), (0, "a member of tomorrow"), None),
        changed(chunks_of(), (0, "choices", 0, "content_filter_results"), {}),
        changed(chunks_of(), (0, "choices", 0, "logprobs"), {"text": []}),
        changed(chunks_of(), (0, "object"), "chat.completion"),
        delta(audio={"data": ""}),
        delta(content=[]),
        delta(content=1),
        delta(thinking_blocks=[]),
        delta(role="tool"),
        delta(function_call={"arguments": "no name"}),
        delta(tool_calls=[WHOLE_PIECE]),
        piece(function={"name": "f"}),
        piece(id="1", type="function"),
        piece(**WHOLE_PIECE | {"type": "custom"}),
        piece(**WHOLE_PIECE, custom={"input": ""}),
        piece(**WHOLE_PIECE | {"function": {"name": "f", "input": ""}}),
        [*piece(**WHOLE_PIECE), *piece(**WHOLE_PIECE)[1:]],
        [*piece(**WHOLE_PIECE), *piece(id="2")[1:]],
        piece(**WHOLE_PIECE, extra_content={}),
    ],
)
def test_a_stream_that_no_plain_answer_can_tell(chunks):
    with pytest.raises(NotTellable):
        assemble(chunks)
    with pytest.raises(NotTellable):
        completion_of(stream_as_it_came(chunks))


def test_what_one_upstream_says_twice_or_leaves_out():
    """A role in every delta, a null where nothing is said, usage that grows, a tier that is told at the end."""
    first, *_, finish, usage = chunks_of(content=None)
    pieces = (
        {**WHOLE_PIECE, "custom": None},
        {"id": "1", "type": "function", "function": {"name": None, "arguments": None}},
        {"id": None, "type": None, "function": {"name": "", "arguments": "{}"}},
    )
    chunks = [first, *(piece(**each)[2] for each in pieces), finish, usage]
    for chunk in chunks:
        chunk["service_tier"] = None
        for choice in chunk["choices"]:
            choice["delta"]["role"] = "assistant"
    chunks[1]["usage"], chunks[-1]["service_tier"] = {"completion_tokens": 1}, "flex"
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"content": None, "tool_calls": calls}
    assert assemble(chunks) == completion(message, service_tier="flex")


def test_parallel_calls_are_in_the_order_of_their_indices():
    first, *_, finish, usage = chunks_of(content=None)
    whole = completion({"content": None, "tool_calls": [call(number, arguments="{}") for number in range(3)]})
    pieces = explode(whole, include_usage=True)[1:-2]
    assert assemble([first, *reversed(pieces), finish, usage]) == whole


def test_comments_and_other_line_ends_are_read_over():
    stream = stream_of(json.dumps(completion()).encode(), include_usage=True)
    assert (
        json.loads(completion_of(b": hello\n\n" + stream.replace(b"\n", b"\r\n") + b"data: more\n\n")) == completion()
    )


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 9_999])
@pytest.mark.parametrize(
    "read", [completion_of, partial(retold, include_usage=True), partial(stream_of, include_usage=True)]
)
def test_what_is_no_answer_is_not_tellable(read, data):
    for garbage in (data, b"data: " + data + b"\n\n", b"data: " + data + b"\n\ndata: [DONE]\n\n"):
        with pytest.raises(NotTellable):
            read(garbage)


def test_a_stream_that_was_cut_off_is_not_tellable():
    stream = stream_of(json.dumps(completion()).encode(), include_usage=True)
    assert json.loads(completion_of(stream)) == completion()
    for at in range(len(stream)):
        with pytest.raises(NotTellable):
            completion_of(stream[:at])
        with pytest.raises(NotTellable):
            retold(stream[:at], include_usage=True)


@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_told_again_as_it_is(include_usage):
    first, *others, usage = chunks_of()
    first = {**first, "unheard": [1.5, None]}
    padded = [{**chunk, "obfuscation": "xyz"} for chunk in (first, *others, usage)]
    told = retold(stream_as_it_came(padded), include_usage=include_usage).split(b"\n\n")
    wanted = [first, *others, usage] if include_usage else [without(each, "usage") for each in (first, *others)]
    assert [json.loads(event.removeprefix(b"data: ")) for event in told[:-2]] == wanted
    assert told[-2:] == [b"data: [DONE]", b""]
