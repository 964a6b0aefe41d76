import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.sse import EventTooLongError, SseParser

lines = st.sampled_from([b"data: {}", b"data:x", b"data: a: b", b": comment", b"event: e", b"data", b"id: 1", b"x"])
ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
events = st.builds(
    lambda parts, end: b"".join(line + end for line in parts) + end, st.lists(lines, min_size=1, max_size=4), ends
)


def cut(text, places):
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


@given(st.lists(events, max_size=8), st.lists(st.integers(0, 10_000), max_size=30))
def test_events_are_the_same_however_the_bytes_are_cut(parts, places):
    text = b"".join(parts)
    parser, pieces = SseParser(), SseParser()
    whole = parser.feed(text)
    cut_up = [event for piece in cut(text, places) for event in pieces.feed(piece)]
    # A lone CR at the end of what has come may be half of a CRLF, so the last event may still be pending.
    assert b"".join(event.raw for event in whole) + parser.pending == text
    assert b"".join(event.raw for event in cut_up) + pieces.pending == text
    assert [event.data for event in whole] == [event.data for event in cut_up]


@pytest.mark.parametrize(
    ("raw", "data"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  two\n\n", b" two"),
        (b"data: a\ndata: b\n\n", b"a\nb"),
        (b"data: a\r\ndata: b\r\n\r\n", b"a\nb"),
        (b"event: e\ndata: x\nid: 1\n\n", b"x"),
        (b": keep-alive\n\n", None),
        (b"data\n\n", b""),
        (b"datum: x\n\n", None),
    ],
)
def test_data_of_an_event(raw, data):
    (event,) = SseParser().feed(raw)
    assert (event.raw, event.data) == (raw, data)


def test_a_crlf_in_two_pieces_is_one_line_end():
    parser = SseParser()
    assert parser.feed(b"data: x\r\n\r") == []
    (event,) = parser.feed(b"\n")
    assert event.raw == b"data: x\r\n\r\n"


def test_an_event_without_an_end_is_bounded():
    parser = SseParser(max_event_bytes=10)
    parser.feed(b"data: 4567")
    with pytest.raises(EventTooLongError):
        parser.feed(b"8")
