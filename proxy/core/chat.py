"""What a chat completion request asks for.

Source of names and ranges: OpenAI's API specification, `CreateChatCompletionRequest`. Checked is what we act upon and
what is plainly of the wrong type; everything else is upstream's to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from proxy.core.errors import InvalidRequest
from proxy.core.strict_json import JsonObject, member_spans

__all__ = ["ChatRequest", "ask_for_usage", "parse_chat"]

_MAX_OUTPUT_TOKENS = 2**31 - 1
_MAX_CHOICES = 128
_MAX_MODEL_CHARACTERS = 256

_NUMBER = (int, float)
_TYPES: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {
        "frequency_penalty": _NUMBER,
        "logit_bias": (dict,),
        "logprobs": (bool,),
        "max_completion_tokens": (int,),
        "max_tokens": (int,),
        "messages": (list,),
        "metadata": (dict,),
        "modalities": (list,),
        "model": (str,),
        "n": (int,),
        "parallel_tool_calls": (bool,),
        "presence_penalty": _NUMBER,
        "response_format": (dict,),
        "seed": (int,),
        "service_tier": (str,),
        "stop": (str, list),
        "store": (bool,),
        "stream": (bool,),
        "stream_options": (dict,),
        "temperature": _NUMBER,
        "tool_choice": (str, dict),
        "tools": (list,),
        "top_logprobs": (int,),
        "top_p": _NUMBER,
        "user": (str,),
    }
)
_RANGES: Mapping[str, tuple[float, float]] = MappingProxyType(
    {
        "max_completion_tokens": (1, _MAX_OUTPUT_TOKENS),
        "max_tokens": (1, _MAX_OUTPUT_TOKENS),
        "n": (1, _MAX_CHOICES),
        "temperature": (0, 2),
        "top_p": (0, 1),
    }
)
_JSON_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A checked request; `body` is the parsed object, `raw` the bytes it came as."""

    body: JsonObject
    raw: bytes
    model: str
    messages: list[Mapping[str, Any]]
    stream: bool
    include_usage: bool
    """Whether the client asked for the usage chunk of a stream."""
    choices: int
    max_output_tokens: int | None
    """Per choice, as the client bounded it."""
    service_tier: str | None


def parse_chat(body: JsonObject, raw: bytes) -> ChatRequest:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    for name, value in body.items():
        kinds = _TYPES.get(name)
        if kinds is not None and value is not None:
            _check_type(name, value, kinds)
            if name in _RANGES:
                _check_range(name, value)
    model = body.get("model")
    if not model:
        raise InvalidRequest("You must provide a model parameter.", param="model", code="missing_required_parameter")
    if len(model) > _MAX_MODEL_CHARACTERS:
        raise InvalidRequest("The model's name is too long.", param="model")
    options = body.get("stream_options") or {}
    if not isinstance(options.get("include_usage"), bool | None):
        raise _wrong_type("stream_options.include_usage", (bool,))
    # Both names are sent by some clients; upstream lets the newer one win.
    maximum = body.get("max_completion_tokens") or body.get("max_tokens")
    return ChatRequest(
        body=body,
        raw=raw,
        model=model,
        messages=_checked_messages(body.get("messages")),
        stream=body.get("stream") is True,
        include_usage=options.get("include_usage") is True,
        choices=body.get("n") or 1,
        max_output_tokens=maximum,
        service_tier=body.get("service_tier"),
    )


def ask_for_usage(request: ChatRequest) -> bytes:
    """Return the raw body with `stream_options.include_usage` set, every other byte as the client wrote it."""
    text = request.raw.decode("utf-8")
    spans = member_spans(text)
    span = spans.get("stream_options")
    if span is None:
        brace = text.index("{") + 1
        return f'{text[:brace]}"stream_options":{{"include_usage":true}},{text[brace:]}'.encode()
    _, start, end = span
    # A value that is no object is null: anything else was refused.
    options = _with_usage(text[start:end]) if text[start] == "{" else '{"include_usage":true}'
    return f"{text[:start]}{options}{text[end:]}".encode()


def _check_type(param: str, value: object, kinds: tuple[type, ...]) -> None:
    # bool is an int to Python, never to JSON.
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise _wrong_type(param, kinds)


def _check_range(param: str, value: float) -> None:
    low, high = _RANGES[param]
    if not low <= value <= high:
        raise _out_of_range(param, value, low, high)


def _with_usage(options: str) -> str:
    span = member_spans(options).get("include_usage")
    if span is not None:
        return f"{options[: span[1]]}true{options[span[2] :]}"
    rest = options[1:]
    return f'{{"include_usage":true{"" if rest.lstrip().startswith("}") else ","}{rest}'


def _checked_messages(messages: list[Any] | None) -> list[Mapping[str, Any]]:
    if not messages:
        raise InvalidRequest(
            "You must provide messages, at least one.", param="messages", code="missing_required_parameter"
        )
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong_type(f"messages[{index}]", (dict,))
        if not isinstance(message.get("role"), str):
            raise _wrong_type(f"messages[{index}].role", (str,))
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise _wrong_type(f"messages[{index}].content", (str, list))
        if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
            raise _wrong_type(f"messages[{index}].content[]", (dict,))
    return messages


def _wrong_type(param: str, kinds: tuple[type, ...]) -> InvalidRequest:
    names = " or ".join(
        "a number" if kinds is _NUMBER else _JSON_NAMES[kind] for kind in kinds[: 1 if kinds is _NUMBER else None]
    )
    return InvalidRequest(f"Invalid type for '{param}': expected {names}.", param=param, code="invalid_type")


def _out_of_range(param: str, value: float, low: float, high: float) -> InvalidRequest:
    side, bound = ("below_min", low) if value < low else ("above_max", high)
    kind = "decimal" if float in _TYPES[param] else "integer"
    words = "at least" if value < low else "at most"
    return InvalidRequest(
        f"Invalid '{param}': {words} {bound:g} is expected.", param=param, code=f"{kind}_{side}_value"
    )
