"""Usage as each endpoint writes it, in the shapes of OpenAI's API specification."""

import json

import pytest

from proxy.core.usage import Usage
from proxy.core.usage_forms import parse_plain

CHAT = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 2, "cache_write_tokens": 1, "text_tokens": 11},
    "completion_tokens_details": {
        "reasoning_tokens": 4,
        "audio_tokens": 3,
        "accepted_prediction_tokens": 1,
        "rejected_prediction_tokens": 1,
    },
}
RESPONSE = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 6},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
TRANSCRIPTION = {
    "type": "tokens",
    "input_tokens": 14,
    "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
    "output_tokens": 45,
    "total_tokens": 59,
}
IMAGE = {
    "total_tokens": 100,
    "input_tokens": 50,
    "output_tokens": 50,
    "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
}


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        (CHAT, Usage(19, 10, 5, 1, 4, 2, 3)),
        ({"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}, Usage(5, 7)),
        ({"prompt_tokens": 8, "total_tokens": 8}, Usage(8, 0)),
        (RESPONSE, Usage(36, 87, cached_input_tokens=7, cache_write_tokens=6, reasoning_tokens=64)),
        (TRANSCRIPTION, Usage(14, 45, audio_input_tokens=14)),
        (IMAGE, Usage(50, 50)),
        ({"prompt_tokens": 0, "completion_tokens": 0}, Usage(0, 0)),
        ({"type": "duration", "seconds": 12.5}, None),
        ({"total_tokens": 8}, None),
        ({"input_tokens": -1, "output_tokens": 3}, None),
        ({"input_tokens": 2**40, "output_tokens": 3}, None),
        (RESPONSE | {"output_tokens_details": {"reasoning_tokens": -1}}, None),
        (None, None),
    ],
    ids=str,
)
def test_every_form_of_usage(usage, counted):
    assert parse_plain(json.dumps({"object": "x", "usage": usage}).encode()).counted() == counted


def test_tier_and_status_come_along():
    answer = parse_plain(json.dumps({"usage": RESPONSE, "service_tier": "flex", "status": "incomplete"}).encode())
    assert (answer.service_tier, answer.status) == ("flex", "incomplete")


@pytest.mark.parametrize(
    "body", [b"", b"no", b"[]", b'{"usage": 5}', b'{"usage": {"input_tokens": 1.5}}', b'{"usage":' + b"[" * 100_000]
)
def test_what_cannot_be_read_says_nothing(body):
    assert parse_plain(body).counted() is None
