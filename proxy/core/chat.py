"""What a chat completion request asks for.

Source of names and ranges: OpenAI's API specification, `CreateChatCompletionRequest`. Checked is what we act upon and
what is plainly of the wrong type; everything else is upstream's to judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

from proxy.core.asked import Asked
from proxy.core.fields import (
    MAX_OUTPUT_TOKENS,
    NUMBER,
    Ranges,
    Types,
    check_fields,
    checked_model,
    missing,
    wrong_type,
)
from proxy.core.strict_json import JsonObject, member_spans

__all__ = ["ask_for_usage", "asked_for_usage", "parse_chat"]

_MAX_CHOICES = 128

_TYPES: Types = MappingProxyType(
    {
        "frequency_penalty": NUMBER,
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
        "presence_penalty": NUMBER,
        "response_format": (dict,),
        "seed": (int,),
        "service_tier": (str,),
        "stop": (str, list),
        "store": (bool,),
        "stream": (bool,),
        "stream_options": (dict,),
        "temperature": NUMBER,
        "tool_choice": (str, dict),
        "tools": (list,),
        "top_logprobs": (int,),
        "top_p": NUMBER,
        "user": (str,),
    }
)
_RANGES: Ranges = MappingProxyType(
    {
        "max_completion_tokens": (1, MAX_OUTPUT_TOKENS),
        "max_tokens": (1, MAX_OUTPUT_TOKENS),
        "n": (1, _MAX_CHOICES),
        "temperature": (0, 2),
        "top_p": (0, 1),
    }
)


def parse_chat(body: JsonObject, raw: bytes) -> Asked:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _TYPES, _RANGES)
    model = checked_model(body.get("model"))
    include_usage = asked_for_usage(body)
    _check_messages(body.get("messages"))
    # Both names are sent by some clients; upstream lets the newer one win.
    newer = body.get("max_completion_tokens")
    choices = body.get("n") or 1
    return Asked(
        body=body,
        raw=raw,
        model=model,
        stream=body.get("stream") is True,
        include_usage=include_usage,
        choices=choices,
        generated=choices,
        max_output_tokens=newer or body.get("max_tokens"),
        max_output_param="max_completion_tokens" if newer else "max_tokens",
        service_tier=body.get("service_tier"),
        state=next(_references(body), None),
    )


def _references(body: JsonObject) -> Iterator[str]:
    """The parameters that name a voice, audio or a file kept at OpenAI, as they would be written."""
    audio = body.get("audio")
    if isinstance(audio, dict) and isinstance(audio.get("voice"), dict):
        yield "audio.voice"
    for index, message in enumerate(body["messages"]):
        if message.get("audio") is not None:
            yield f"messages[{index}].audio"
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            file = part.get("file")
            if isinstance(file, dict) and file.get("file_id") is not None:
                yield f"messages[{index}].content[{place}].file.file_id"


def asked_for_usage(body: JsonObject) -> bool:
    """Whether the client asked for the usage chunk of a stream. Raises `InvalidRequest`."""
    options = body.get("stream_options") or {}
    if not isinstance(options.get("include_usage"), bool | None):
        raise wrong_type("stream_options.include_usage", (bool,))
    return options.get("include_usage") is True


def ask_for_usage(request: Asked) -> bytes:
    """Return the raw body with `stream_options.include_usage` set, every other byte as the client wrote it."""
    raw = request.raw
    if "stream_options" not in request.body:
        # Tens of megabytes of images need not be read again for that.
        inside = raw.index(b"{") + 1
        return b'%b"stream_options":{"include_usage":true},%b' % (raw[:inside], raw[inside:])
    text = raw.decode("utf-8")
    _, start, end = member_spans(text)["stream_options"]
    # A value that is no object is null: anything else was refused.
    options = _with_usage(text[start:end]) if text[start] == "{" else '{"include_usage":true}'
    return f"{text[:start]}{options}{text[end:]}".encode()


def _with_usage(options: str) -> str:
    span = member_spans(options).get("include_usage")
    if span is not None:
        return f"{options[: span[1]]}true{options[span[2] :]}"
    rest = options[1:]
    return f'{{"include_usage":true{"" if rest.lstrip().startswith("}") else ","}{rest}'


def _check_messages(messages: list[Any] | None) -> None:
    if not messages:
        raise missing("messages", "You must provide messages, at least one.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise wrong_type(f"messages[{index}]", (dict,))
        if not isinstance(message.get("role"), str):
            raise wrong_type(f"messages[{index}].role", (str,))
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise wrong_type(f"messages[{index}].content", (str, list))
        if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
            raise wrong_type(f"messages[{index}].content[]", (dict,))
