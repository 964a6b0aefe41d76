"""What a request of the Responses API asks for.

Source of names, ranges and defaults: OpenAI's API specification, `CreateResponse`, `InputItem`, `ItemReferenceParam`.
An answer is kept at OpenAI unless `store` is false. What refers to something kept there, in the one account that all
teams share, is named in `Asked.state`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec
from msgspec.structs import replace

from proxy.core.asked import Asked
from proxy.core.count import TOOL_CALL_TOKENS, Said
from proxy.core.determinism import LOCAL_TOOLS, is_searching
from proxy.core.estimate import IMAGE_TOKENS, text_tokens
from proxy.core.fields import MAX_OUTPUT_TOKENS, NUMBER, Ranges, Types, check_fields, checked_model, missing, wrong_type
from proxy.core.strict_json import JsonObject

__all__ = ["estimate_response", "no_cache", "nothing", "parse_input_tokens", "parse_response", "prompt_of_response",
           "response_nondeterminism"]  # fmt: skip

_TYPES: Types = MappingProxyType(
    {
        "background": (bool,),
        "conversation": (str, dict),
        "include": (list,),
        "input": (str, list),
        "instructions": (str,),
        "max_output_tokens": (int,),
        "max_tool_calls": (int,),
        "metadata": (dict,),
        "model": (str,),
        "parallel_tool_calls": (bool,),
        "previous_response_id": (str,),
        "prompt": (dict,),
        "reasoning": (dict,),
        "service_tier": (str,),
        "store": (bool,),
        "stream": (bool,),
        "stream_options": (dict,),
        "temperature": NUMBER,
        "text": (dict,),
        "tool_choice": (str, dict),
        "tools": (list,),
        "top_logprobs": (int,),
        "top_p": NUMBER,
        "truncation": (str,),
        "user": (str,),
    }
)
_RANGES: Ranges = MappingProxyType(
    {"max_output_tokens": (1, MAX_OUTPUT_TOKENS), "temperature": (0, 2), "top_p": (0, 1)}
)
_STATE = ("previous_response_id", "conversation", "background", "prompt")
_KEPT = frozenset({"container_id", "file_id", "file_ids", "skill_id", "tunnel_id", "vector_store_ids"})
"""Members of items and tools that name what is kept at OpenAI."""
_MESSAGE_TOKENS = 3
_ANSWER_TOKENS = 3
_TEXT_PARTS = ("input_text", "output_text", "refusal", "reasoning_text", "summary_text")
_SELF_CONTAINED_ITEMS = (
    "message", "function_call", "function_call_output", "custom_tool_call", "custom_tool_call_output", "reasoning",
)  # fmt: skip


def parse_response(body: JsonObject, raw: bytes) -> Asked:
    """Check `body`, the strictly parsed form of `raw`. Raises `InvalidRequest` naming the parameter."""
    check_fields(body, _TYPES, _RANGES)
    model = checked_model(body.get("model"))
    state = next((name for name in _STATE if body.get(name) not in (None, False)), None)
    if state is None and body.get("input") is None:
        raise missing("input", "You must provide 'input'.")
    for index, item in enumerate(_items(body)):
        _check_item(f"input[{index}]", item)
    for index, tool in enumerate(body.get("tools") or ()):
        if not isinstance(tool, dict):
            raise wrong_type(f"tools[{index}]", (dict,))
    return Asked(
        body=body,
        raw=raw,
        model=model,
        stream=body.get("stream") is True,
        include_usage=True,
        max_output_tokens=body.get("max_output_tokens"),
        max_output_param="max_output_tokens",
        service_tier=body.get("service_tier"),
        state=state or next(_references(body), None),
    )


def parse_input_tokens(body: JsonObject, raw: bytes) -> Asked:
    """Check a request whose tokens are to be counted: it is no more than a question. Raises `InvalidRequest`."""
    return replace(parse_response(body, raw), stream=False, max_output_tokens=0)


def nothing(_: Asked) -> int:
    """Tokens of a request that uses none."""
    return 0


def no_cache(_: JsonObject) -> str:
    """`endpoint`: whatever is asked there, its answers are not kept."""
    return "endpoint"


def estimate_response(asked: Asked) -> int:
    """Tokens of instructions, items, tools and the form of the text."""
    said = prompt_of_response(asked)
    return said.more_tokens + sum(text_tokens(len(text)) for text in said.texts)


def prompt_of_response(asked: Asked) -> Said:
    """What upstream reads; what it has kept, and is referred to, is not in it."""
    body = asked.body
    texts: list[str] = []
    tokens = _ANSWER_TOKENS
    for text in (body.get("instructions"), body.get("input")):
        if isinstance(text, str) and text:
            tokens += _MESSAGE_TOKENS
            texts += [text, "user"]
    for item in _items(body):
        tokens += _MESSAGE_TOKENS + _read_item(item, texts)
    texts.extend(_json(tool) for tool in body.get("tools") or ())
    if (form := (body.get("text") or {}).get("format")) is not None:
        texts.append(_json(form))
    return Said(tuple(texts), tokens)


def response_nondeterminism(body: JsonObject) -> str | None:
    """Name what keeps this request from being answered twice with one answer, or None when nothing does.

    It is deterministic when `temperature` or `top_p` is 0, upstream is to keep nothing of it, and nothing in it is kept
    there. What cannot be waived is named before what can.
    """
    return next(_reasons(body), None)


def _reasons(body: JsonObject) -> Iterator[str]:
    if body.get("store") is not False:
        yield "store"
    for name in _STATE:
        if body.get(name) not in (None, False):
            yield name
    if any(_references(body)):
        yield "reference"
    if any(tool.get("type") not in LOCAL_TOOLS for tool in body.get("tools") or ()):
        yield "tools"
    if is_searching(body):
        yield "model"
    found = {reason for item in _items(body) for reason in _elsewhere(item)}
    yield from (reason for reason in ("file", "image_url", "content") if reason in found)
    if not (body.get("temperature") == 0 or body.get("top_p") == 0):
        yield "temperature"


def _elsewhere(item: Mapping[str, Any]) -> Iterator[str]:
    """Name what an item only points at, or what nobody here has heard of."""
    if (item.get("type") or "message") not in _SELF_CONTAINED_ITEMS:
        yield "content"
    for part in _parts(item):
        match part.get("type"):
            case "input_image":
                if str(part.get("image_url"))[:5].lower() != "data:":
                    yield "image_url"
            case "input_file":
                if not part.get("file_data") or part.get("file_url"):
                    yield "file"
            case kind if kind not in (*_TEXT_PARTS, "input_audio"):
                yield "content"


def _references(body: JsonObject) -> Iterator[str]:
    """The items and tools that name something kept at OpenAI."""
    for index, item in enumerate(_items(body)):
        if _is_reference(item) or _uses_kept(item):
            yield f"input[{index}]"
    for index, tool in enumerate(body.get("tools") or ()):
        if _uses_kept(tool):
            yield f"tools[{index}]"


def _is_reference(item: Mapping[str, Any]) -> bool:
    """Whether an item stands for one that is kept, and says nothing itself."""
    match item.get("type"):
        case None:
            return "role" not in item
        case "image_generation_call":
            return not item.get("result")
        case kind:
            return bool(kind == "item_reference")


def _uses_kept(value: Mapping[str, Any]) -> bool:
    """Whether an item or a tool names what is kept, or a tool does that is inside of it."""
    if value.get("type") in LOCAL_TOOLS:
        return False  # the schemas of a client's own functions may use any name
    tools = value.get("tools")
    inside = [each for each in tools if isinstance(each, dict)] if isinstance(tools, list) else []
    rest = {name: member for name, member in value.items() if name != "tools"} if inside else value
    return isinstance(value.get("container"), str) or _names_kept(rest) or any(map(_uses_kept, inside))


def _names_kept(value: object) -> bool:
    if isinstance(value, dict):
        return any(
            (name in _KEPT and member not in (None, [])) or _names_kept(member) for name, member in value.items()
        )
    return isinstance(value, list) and any(map(_names_kept, value))


def _items(body: JsonObject) -> list[dict[str, Any]]:
    value = body.get("input")
    return value if isinstance(value, list) else []


def _parts(item: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The parts of a message, of what a tool gave back, of a train of thought."""
    for name in ("content", "output", "summary"):
        value = item.get(name)
        yield from value if isinstance(value, list) else ()


def _check_item(name: str, item: object) -> None:
    if not isinstance(item, dict):
        raise wrong_type(name, (dict,))
    if not isinstance(item.get("type"), str | None):
        raise wrong_type(f"{name}.type", (str,))
    for member in ("content", "output", "summary"):
        value = item.get(member)
        if isinstance(value, list) and not all(isinstance(part, dict) for part in value):
            raise wrong_type(f"{name}.{member}[]", (dict,))


def _read_item(item: Mapping[str, Any], texts: list[str]) -> int:
    """Add the texts of an item; returns the tokens that come beside them."""
    texts.extend(
        value
        for name in ("role", "content", "output", "name", "arguments", "input")
        if isinstance(value := item.get(name), str)
    )
    tokens = TOOL_CALL_TOKENS if item.get("type") in {"function_call", "custom_tool_call"} else 0
    if isinstance(hidden := item.get("encrypted_content"), str):
        tokens += text_tokens(len(hidden))
    for part in _parts(item):
        if part.get("type") == "input_image":
            tokens += IMAGE_TOKENS
        else:
            texts.extend(value for name, value in part.items() if name != "type" and isinstance(value, str))
    if (item.get("type") or "message") not in _SELF_CONTAINED_ITEMS:
        texts.append(_json(item))
    return tokens


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
