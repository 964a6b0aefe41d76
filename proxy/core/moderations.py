"""What a moderation request asks for, and what its answer says.

Source of names: OpenAI's API specification, `CreateModerationRequest` and `CreateModerationResponse`. Such an answer
has no usage, so that what upstream has read is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from proxy.core.answer import Completion
from proxy.core.asked import Asked
from proxy.core.count import Said
from proxy.core.errors import InvalidRequest
from proxy.core.estimate import IMAGE_TOKENS, text_tokens
from proxy.core.fields import Types, check_fields, checked_model, missing, wrong_type
from proxy.core.inputs import MAX_INPUTS
from proxy.core.strict_json import JsonObject
from proxy.core.usage_forms import UNREADABLE, WireUsage

__all__ = ["DEFAULT_MODEL", "estimate_moderation", "moderation_nondeterminism", "parse_moderation",
           "prompt_of_moderation", "read_moderation"]  # fmt: skip

DEFAULT_MODEL = "omni-moderation-latest"
"""What answers a request that names no model."""

_TYPES: Types = MappingProxyType({"input": (str, list), "model": (str,)})


class _Answer(msgspec.Struct):
    results: list[msgspec.Raw] | None = None
    usage: WireUsage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


def parse_moderation(body: JsonObject, raw: bytes) -> Asked:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _TYPES, {})
    model = DEFAULT_MODEL if body.get("model") is None else checked_model(body["model"])
    _check_input(body.get("input"))
    return Asked(body, raw, model, max_output_tokens=0)


def prompt_of_moderation(asked: Asked) -> Said:
    """What upstream reads: texts, and a flat number of tokens for each image."""
    value = asked.body["input"]
    texts = [value] if isinstance(value, str) else [each for each in value if isinstance(each, str)]
    tokens = 0
    for part in _parts(asked.body):
        if part["type"] == "text":
            texts.append(part["text"])
        else:
            tokens += IMAGE_TOKENS
    return Said(tuple(texts), tokens)


def estimate_moderation(asked: Asked) -> int:
    """Tokens of all inputs."""
    said = prompt_of_moderation(asked)
    return said.more_tokens + sum(text_tokens(len(text)) for text in said.texts)


def moderation_nondeterminism(body: JsonObject) -> str | None:
    """`image_url` where an image is named and not enclosed: it may be another by the next time."""
    linked = any(part["type"] == "image_url" and not _is_enclosed(part["image_url"]["url"]) for part in _parts(body))
    return "image_url" if linked else None


def read_moderation(body: bytes) -> Completion:
    """Read an answer; one without results is not storable. There is no output to count."""
    try:
        answer = _decode(body)
    except UNREADABLE:
        answer = _Answer()
    usage = answer.usage.counted() if answer.usage is not None else None
    return Completion(usage, None, storable=bool(answer.results), counted_output_tokens=0, said=Said())


def _parts(body: JsonObject) -> Iterator[Mapping[str, Any]]:
    value = body["input"]
    yield from (each for each in value if isinstance(each, dict)) if isinstance(value, list) else ()


def _is_enclosed(url: str) -> bool:
    return url[:5].lower() == "data:"


def _check_input(value: str | list[Any] | None) -> None:
    if value is None or value == []:
        raise missing("input", "You must provide 'input', and it must not be empty.")
    if isinstance(value, str):
        return
    if len(value) > MAX_INPUTS:
        raise InvalidRequest(
            f"Invalid 'input': at most {MAX_INPUTS} are taken at once.", param="input", code="array_above_max_length"
        )
    if all(isinstance(text, str) for text in value):
        return
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise wrong_type(f"input[{index}]", (dict,))
        _check_part(f"input[{index}]", part)


def _check_part(name: str, part: Mapping[str, Any]) -> None:
    match part.get("type"):
        case "text":
            if not isinstance(part.get("text"), str):
                raise wrong_type(f"{name}.text", (str,))
        case "image_url":
            image = part.get("image_url")
            if not isinstance(image, dict):
                raise wrong_type(f"{name}.image_url", (dict,))
            if not isinstance(image.get("url"), str):
                raise wrong_type(f"{name}.image_url.url", (str,))
        case _:
            raise InvalidRequest(
                f"Invalid value for '{name}.type': 'text' or 'image_url' is expected.",
                param=f"{name}.type",
                code="invalid_value",
            )
