"""What answers with images and audio say they used, however they are cut."""

import json

import pytest

from proxy.core.media_answer import Media, Metered, image_usage, speech_usage, transcript_usage
from proxy.core.usage import Usage

IMAGE_USAGE = {
    "total_tokens": 100, "input_tokens": 50, "output_tokens": 50,
    "input_tokens_details": {"text_tokens": 50, "image_tokens": 0},
}  # fmt: skip
CUTS = [1, 2, 5, 64, 10_000]


def follow(read, content_type, data, cut=7):
    following = Media(read).follow(content_type)
    for at in range(0, len(data), cut):
        following.feed(data[at : at + cut])
    return following


def plain(read, cut=7, **members):
    return follow(read, "application/json", json.dumps(members).encode(), cut)


def event(**members):
    return f"event: {members.get('type')}\ndata: {json.dumps(members)}\n\n".encode()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("first", [True, False])
def test_images_tell_their_usage_before_or_behind_them(cut, first):
    data = [{"b64_json": "A" * 3_000, "revised_prompt": 'of "usage": {"input_tokens": 9}'}]
    members = {"usage": IMAGE_USAGE, "data": data} if first else {"created": 1, "data": data, "usage": IMAGE_USAGE}
    got = plain(image_usage, cut, **members)
    assert got.metered == Metered(Usage(50, 50), priceable=True)
    assert got.done
    assert got.whole


@pytest.mark.parametrize(
    ("change", "priceable"),
    [
        ({"input_tokens_details": {"text_tokens": 10, "image_tokens": 40}}, False),
        ({"input_tokens_details": None}, False),
        ({"output_tokens_details": {"text_tokens": 5, "image_tokens": 45}}, False),
        ({"output_tokens_details": {"text_tokens": 0, "image_tokens": 50}}, True),
        ({"input_tokens_details": {"text_tokens": 50, "cached_tokens": 20}}, True),
    ],
)
def test_tokens_that_no_price_is_for_are_counted_and_not_priced(change, priceable):
    metered = plain(image_usage, usage=IMAGE_USAGE | change).metered
    assert metered.priceable is priceable
    assert metered.usage.total_tokens == 100


def test_transcriptions_of_tokens_and_of_seconds():
    tokens = {"type": "tokens", "input_tokens": 14, "output_tokens": 31, "total_tokens": 45}
    details = {"input_token_details": {"text_tokens": 10, "audio_tokens": 4}}
    assert plain(transcript_usage, text="x", usage=tokens | details).metered == Metered(
        Usage(14, 31, audio_input_tokens=4), priceable=True
    )
    assert not plain(transcript_usage, text="x", usage=tokens).metered.priceable
    assert plain(transcript_usage, text="x", usage={"type": "duration", "seconds": 9}).metered is None
    assert plain(transcript_usage, text="x").metered is None


@pytest.mark.parametrize(
    "usage",
    [None, 5, [], {}, {"input_tokens": -1}, {"input_tokens": 2**41}, {"input_tokens": "5"}, {"input_tokens": 1.5}],
)
def test_what_is_no_usage_is_none(usage):
    assert plain(image_usage, data=[], usage=usage).metered is None


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_streams_tell_it_with_their_last_event(cut, line_end):
    head = event(type="image_generation.partial_image", b64_json="A" * 500, usage={"input_tokens": 1})
    last = event(type="image_generation.completed", b64_json="A" * 500, usage=IMAGE_USAGE)
    before = follow(image_usage, "text/event-stream; charset=utf-8", head.replace(b"\n", line_end), cut)
    assert (before.metered, before.done, before.whole) == (None, False, False)
    got = follow(image_usage, "text/event-stream", (head + last).replace(b"\n", line_end), cut)
    assert (got.metered, got.done, got.whole) == (Metered(Usage(50, 50), priceable=True), True, True)


def test_speech_is_made_of_audio_alone():
    last = event(type="speech.audio.done", usage={"input_tokens": 5, "output_tokens": 70, "total_tokens": 75})
    got = follow(speech_usage, "text/event-stream", event(type="speech.audio.delta", audio="AAAA") + last)
    assert got.metered == Metered(Usage(5, 70, audio_output_tokens=70), priceable=True)


def test_a_transcript_that_is_streamed():
    usage = {"type": "tokens", "input_tokens": 14, "input_token_details": {"audio_tokens": 14}, "output_tokens": 3}
    got = follow(transcript_usage, "text/event-stream", event(type="transcript.text.done", text="x", usage=usage))
    assert got.metered == Metered(Usage(14, 3, audio_input_tokens=14), priceable=True)
    # One that is paid by its seconds ends as well.
    assert follow(transcript_usage, "text/event-stream", event(type="transcript.text.done", text="x")).whole


def test_streams_that_do_not_end_well():
    begun = event(type="transcript.text.delta", delta="x")
    assert not follow(transcript_usage, "text/event-stream", begun).whole
    assert not follow(transcript_usage, "text/event-stream", begun + b'data: {"error": {"message": "no"}}\n\n').whole
    assert not follow(transcript_usage, "text/event-stream", begun + event(type="error", message="no")).whole
    assert not follow(transcript_usage, "text/event-stream", b'data: {"error": {"message": "no"}}\n\n').whole
    # Another upstream's stream, whose last event nobody here knows.
    assert follow(transcript_usage, "text/event-stream", b'data: {"choices": []}\n\ndata: [DONE]\n\n').whole


def test_sound_and_text_say_nothing():
    for content_type in ("audio/mpeg", "text/plain; charset=utf-8", "application/x-subrip", ""):
        got = follow(transcript_usage, content_type, b"1\n00:00:00,000 --> usage")
        assert (got.metered, got.done, got.whole, got.acceptable) == (None, False, True, True)


def test_what_cannot_be_an_answer():
    assert not follow(image_usage, "text/html; charset=utf-8", b"<html>").acceptable
    assert not follow(image_usage, "application/json", b"[]").acceptable
    assert not follow(image_usage, "application/json", b'{"created": 1, "da').whole
    assert not follow(image_usage, "application/json", b"").whole
