"""Streams of the Responses API, in the shapes of OpenAI's API specification (`ResponseStreamEvent`)."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.count import Said
from proxy.core.responses_answer import ResponsesStream
from proxy.core.usage import Usage

USAGE = {
    "input_tokens": 37,
    "input_tokens_details": {"cached_tokens": 11, "cache_write_tokens": 2},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 5},
    "total_tokens": 48,
}
COUNTED = Usage(37, 11, cached_input_tokens=11, cache_write_tokens=2, reasoning_tokens=5)


def event(kind, **members):
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **members})}\n\n".encode()


def response(status, usage=None, tier="auto"):
    return {"id": "resp_1", "object": "response", "status": status, "service_tier": tier, "usage": usage, "output": []}


def delta(text, kind="response.output_text.delta", item="msg_1"):
    return event(kind, item_id=item, output_index=0, content_index=0, delta=text, sequence_number=3, obfuscation="xyz")


BEGIN = event("response.created", response=response("in_progress")) + event(
    "response.output_item.added", output_index=0, item={"id": "msg_1", "type": "message", "role": "assistant"}
)
END = event("response.completed", response=response("completed", USAGE, "default"))


@given(st.lists(st.text(), max_size=6), st.lists(st.integers(0, 5_000), max_size=12))
def test_every_byte_passes_and_the_last_event_has_the_usage(texts, places):
    sent = BEGIN + b"".join(map(delta, texts)) + END
    borders = sorted({0, len(sent), *(place % len(sent) for place in places)})
    stream = ResponsesStream()
    pieces = [sent[a:b] for a, b in itertools.pairwise(borders)]
    assert [stream.feed(piece) for piece in pieces] == pieces
    assert (stream.usage, stream.service_tier, stream.status) == (COUNTED, "default", "completed")
    assert (stream.done, stream.complete, stream.storable, stream.passed_in_half) == (True, True, True, False)
    assert stream.transcript.said().texts == (("".join(texts),) if texts else ())


def test_what_has_run_is_counted_before_the_end():
    stream = ResponsesStream()
    stream.feed(BEGIN + delta("Hi") + delta(" there") + delta("no", "response.refusal.delta"))
    stream.feed(delta("not this", "response.reasoning_summary_text.delta", "rs_1"))
    assert (stream.usage, stream.done, stream.counted_output_tokens) == (None, False, 3)
    item = {"id": "fc_1", "type": "function_call", "name": "look", "arguments": ""}
    stream.feed(event("response.output_item.added", output_index=1, item=item))
    stream.feed(delta('{"at":1}', "response.function_call_arguments.delta", "fc_1"))
    assert stream.transcript.said() == Said(("Hi there", "no", "look", '{"at":1}'), 7)
    assert stream.counted_output_tokens == max(4, -(-22 // 4)) + 7


@pytest.mark.parametrize(
    ("last", "status", "complete", "usage"),
    [
        (event("response.incomplete", response=response("incomplete", USAGE)), "incomplete", True, COUNTED),
        (event("response.failed", response=response("failed")), "failed", False, None),
        (event("response.failed", response=response("failed", USAGE)), "failed", False, COUNTED),
        (event("error", code="server_error", message="no", param=None), None, False, None),
    ],
)
def test_other_ends_are_no_answer_to_keep(last, status, complete, usage):
    stream = ResponsesStream()
    stream.feed(BEGIN + delta("Hi") + last)
    assert (stream.done, stream.status, stream.complete, stream.usage) == (True, status, complete, usage)
    assert not stream.storable


def test_a_stream_that_stops_is_not_complete():
    stream = ResponsesStream()
    stream.feed(BEGIN + delta("Hi") + END[:-2])
    assert (stream.done, stream.complete, stream.passed_in_half) == (False, False, True)


@pytest.mark.parametrize(
    "noise", [b"data: no\n\n", b"data: []\n\n", b'data: {"type": 5}\n\n', b"data: " + b"[" * 100_000 + b"\n\n"]
)
def test_what_cannot_be_read_is_passed_and_not_kept(noise):
    stream = ResponsesStream()
    assert stream.feed(noise + b": comment\n\n" + END) == noise + b": comment\n\n" + END
    assert (stream.complete, stream.malformed, stream.storable) == (True, True, False)
