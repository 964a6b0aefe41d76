import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.answer import ChatStream, parse_completion
from proxy.core.usage import Usage

USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
}
COUNTED = Usage(11, 7, cached_input_tokens=4, reasoning_tokens=3)


def event(value):
    return b"data: " + json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"


def chunk(*, content=None, finish=None, index=0, **more):
    delta = {} if content is None else {"content": content}
    return {"id": "c", "choices": [{"index": index, "delta": delta, "finish_reason": finish}], **more}


def stream_of(contents, *, null_usage):
    usage = {"usage": None} if null_usage else {}
    return [
        *(chunk(content=content, **usage) for content in contents),
        chunk(finish="stop", **usage),
        {"id": "c", "choices": [], "usage": USAGE},
    ]


DONE = b"data: [DONE]\n\n"


@given(st.lists(st.text(), max_size=6), st.lists(st.integers(0, 5_000), max_size=12), st.booleans())
def test_hidden_usage_leaves_what_a_client_would_have_been_sent(contents, places, null_usage):
    sent = b"".join(event(part) for part in stream_of(contents, null_usage=null_usage)) + DONE
    never_asked = b"".join(event(part) for part in stream_of(contents, null_usage=False)[:-1]) + DONE
    borders = sorted({0, len(sent), *(place % len(sent) for place in places)})
    stream = ChatStream(choices=1, hide_usage=True)
    passed = b"".join(stream.feed(sent[a:b]) for a, b in itertools.pairwise(borders)) + stream.rest()
    assert passed == never_asked
    assert (stream.usage, stream.done, stream.complete, stream.storable) == (COUNTED, True, True, True)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_asked_for_usage_leaves_every_byte(noise, places):
    sent = noise + event(chunk(content="x", usage=None)) + DONE
    borders = sorted({0, len(sent), *(place % len(sent) for place in places)})
    stream = ChatStream(choices=1, hide_usage=False)
    pieces = [sent[a:b] for a, b in itertools.pairwise(borders)]
    assert [stream.feed(piece) for piece in pieces] == pieces
    assert stream.rest() == b""


@pytest.mark.parametrize(
    ("raw", "left"),
    [
        (b'{"choices":[{"index":0}],"usage":null,"obfuscation":"x"}', b'{"choices":[{"index":0}],"obfuscation":"x"}'),
        (b'{"usage":null,"choices":[{"index":0}]}', b'{"choices":[{"index":0}]}'),
        (b'{"choices": [{"index": 0}], "usage": null}', b'{"choices": [{"index": 0}]}'),
        (b'{"choices":[{"index":0}],"usage":{"prompt_tokens":1}}', b'{"choices":[{"index":0}]}'),
        (
            b'{"choices":[{"index":0,"delta":{"content":"\\"usage\\":null"}}],"usage":null}',
            b'{"choices":[{"index":0,"delta":{"content":"\\"usage\\":null"}}]}',
        ),
        (b'{"choices":[{"index":0,"usage":1}]}', b'{"choices":[{"index":0,"usage":1}]}'),
    ],
)
def test_usage_is_taken_out_wherever_it_stands(raw, left):
    assert ChatStream(choices=1, hide_usage=True).feed(b"data: " + raw + b"\n\n") == b"data: " + left + b"\n\n"


def test_what_is_no_chunk_passes_as_it_is():
    stream = ChatStream(choices=1, hide_usage=True)
    odd = b': keep-alive\n\ndata: not json "usage"\n\ndata: [1]\n\n'
    assert stream.feed(odd) == odd
    assert stream.malformed
    assert not stream.storable


def test_a_stream_without_done_is_complete_when_every_choice_has_finished():
    stream = ChatStream(choices=2, hide_usage=True)
    stream.feed(event(chunk(content="a", finish="stop", index=0)))
    assert not stream.complete
    stream.feed(event(chunk(content="b", finish="length", index=1)))
    assert stream.complete
    assert not stream.storable


def test_an_error_event_is_seen():
    stream = ChatStream(choices=1, hide_usage=True)
    error = event({"error": {"message": "no", "type": "server_error"}})
    assert stream.feed(error + DONE) == error + DONE
    assert stream.errored
    assert not stream.complete


def test_what_has_run_is_counted():
    stream = ChatStream(choices=1, hide_usage=True)
    for content in ("", "one", " two", "three four five six"):
        stream.feed(event(chunk(content=content)))
    assert stream.counted_output_tokens == 7  # 26 characters / 4
    call = {"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}
    stream.feed(event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}))
    assert stream.counted_output_tokens == 7 + 7


@pytest.mark.parametrize("reason", ["content_filter", "unheard_of"])
def test_a_filtered_answer_is_not_stored(reason):
    stream = ChatStream(choices=1, hide_usage=True)
    stream.feed(event(chunk(content="a", finish=reason)) + event({"choices": [], "usage": USAGE}) + DONE)
    assert stream.done
    assert not stream.storable
    body = {"choices": [{"finish_reason": reason}], "usage": USAGE}
    assert not parse_completion(json.dumps(body).encode()).storable


@pytest.mark.parametrize(
    "events",
    [
        [chunk(content="a", finish="content_filter"), chunk(finish="stop")],
        [chunk(content="a"), chunk(content="b", index=1), chunk(finish="stop")],
        [chunk(content="a"), {"choices": [{"index": 0, "finish_reason": "stop", "error": {"code": 502}}]}],
    ],
    ids=["filtered-and-then-not", "a-choice-without-an-end", "an-error-in-a-choice"],
)
def test_what_only_looks_whole_is_not_stored(events):
    stream = ChatStream(choices=1, hide_usage=False)
    stream.feed(b"".join(map(event, [*events, {"choices": [], "usage": USAGE}])) + DONE)
    assert stream.done
    assert not stream.storable


@pytest.mark.parametrize("name", [b"event: error\n", b"event:error\r\n", b"id: 1\nevent: error\n"])
def test_an_error_by_name_is_seen(name):
    stream = ChatStream(choices=1, hide_usage=True)
    stream.feed(event(chunk(content="a", finish="stop")) + name + b'data: {"message": "no"}\n\n')
    assert stream.errored
    assert not stream.complete


def test_another_name_or_the_word_in_a_text_is_no_error():
    stream = ChatStream(choices=1, hide_usage=True)
    stream.feed(b"event: errors\n" + event(chunk(content="a")) + event(chunk(content="event: error\n", finish="stop")))
    assert not stream.errored
    assert stream.complete


@pytest.mark.parametrize("place", ["beside the choices", "in a choice"])
def test_a_plain_answer_with_an_error_in_it_is_not_stored(place):
    choice = {"finish_reason": "stop", "message": {"content": "x"}}
    body = {"choices": [choice], "usage": USAGE, "error": None}
    assert parse_completion(json.dumps(body).encode()).storable
    (body if place == "beside the choices" else choice)["error"] = {"message": "the provider broke off"}
    completion = parse_completion(json.dumps(body).encode())
    assert (completion.usage, completion.storable) == (COUNTED, False)


def test_a_plain_answer():
    body = {"choices": [{"finish_reason": "stop", "message": {"content": "x"}}], "usage": USAGE, "service_tier": "flex"}
    completion = parse_completion(json.dumps(body).encode())
    assert (completion.usage, completion.service_tier, completion.storable) == (COUNTED, "flex", True)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"total_tokens": 9},
        {"prompt_tokens": None},
        {"prompt_tokens": -1},
        {"prompt_tokens": 2**50},
        {"prompt_tokens": "9"},
        "lots",
        {"prompt_tokens": 1.5},
    ],
)
def test_usage_that_no_meter_can_show_is_none(usage):
    body = {"choices": [{"finish_reason": "stop", "message": {"content": "12345678"}}], "usage": usage}
    completion = parse_completion(json.dumps(body).encode())
    assert completion.usage is None
    assert not completion.storable
    assert completion.counted_output_tokens > 0


def test_nesting_by_the_thousand_is_no_answer():
    deep = b'{"choices":' + b"[" * 100_000
    assert not parse_completion(deep + b"]" * 100_000 + b"}").storable
    stream = ChatStream(choices=1, hide_usage=True)
    stream.feed(b"data: " + deep + b"\n\n")
    assert stream.malformed
