"""Tokens to reserve before an answer is known.

OpenAI's own limiter takes characters / 4 for text and the asked-for maximum for the answer; no tokenizer is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.core.asked import Asked

__all__ = ["IMAGE_TOKENS", "estimate_input", "estimate_output", "part_characters_and_tokens", "text_tokens"]

CHARACTERS_PER_TOKEN = 4
IMAGE_TOKENS = 1_105
"""A 2048 x 4096 image at high detail on gpt-4o, the largest figure of OpenAI's vision guide for that model."""
AUDIO_BASE64_CHARACTERS_PER_TOKEN = 1_600
"""Ten tokens a second of input audio, at the 16 kB/s of a good MP3."""


def text_tokens(characters: int) -> int:
    """Tokens in a text of so many characters, rounded up."""
    return -(-characters // CHARACTERS_PER_TOKEN)


def estimate_input(request: Asked) -> int:
    """Tokens of the prompt of a chat: messages, tools and response format."""
    characters = 0
    flat = 0
    for message in request.body["messages"]:
        for name, value in message.items():
            if name != "content":
                characters += _characters(value)
            elif isinstance(value, str):
                characters += len(value)
            else:
                for part in value or ():
                    part_characters, part_tokens = part_characters_and_tokens(part)
                    characters += part_characters
                    flat += part_tokens
    for name in ("tools", "functions", "response_format"):
        characters += _characters(request.body.get(name))
    return flat + text_tokens(characters)


def estimate_output(request: Asked, default_tokens: int, room_tokens: int | None) -> int:
    """Tokens to reserve for the answer, all that is generated together.

    Without a maximum it is `default_tokens` an answer, clamped to `room_tokens` (what the smallest
    bucket can hold beside the prompt; None: unlimited), so that the default alone never makes a request impossible.
    """
    if request.max_output_tokens is not None:
        return request.generated * request.max_output_tokens
    asked = request.generated * default_tokens
    return asked if room_tokens is None else max(0, min(asked, room_tokens))


def part_characters_and_tokens(part: Mapping[str, Any]) -> tuple[int, int]:
    """Characters of text and flat tokens of one content part."""
    match part.get("type"):
        case "text":
            return _characters(part.get("text")), 0
        case "image_url":
            return 0, IMAGE_TOKENS
        case "input_audio":
            return 0, -(-_characters(part.get("input_audio")) // AUDIO_BASE64_CHARACTERS_PER_TOKEN)
        case _:
            return _characters(part), 0


def _characters(value: object) -> int:
    """Characters in all strings of a JSON value, names of members included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(len(name) + _characters(member) for name, member in value.items())
    if isinstance(value, list):
        return sum(map(_characters, value))
    return 0
