"""A chat completion, taken apart into the chunks of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest

from msgspec import UNSET

from proxy.core.chat_forms import (
    CALL_TEXT,
    HEAD,
    TEXTS,
    Choice,
    Completion,
    FunctionCall,
    Logprobs,
    Message,
    NotTellable,
)
from proxy.core.strict_json import JsonObject

__all__ = ["apart"]

_PIECE_CHARACTERS = 4_096
_PIECE_TOKENS = 64
"""A piece is bounded because line readers are: asyncio's takes 64 KiB at most."""


def apart(completion: Completion, *, include_usage: bool) -> Iterator[JsonObject]:
    """Return the chunks that tell a completion. Raises `NotTellable`."""
    indices = [choice.index for choice in completion.choices]
    if not indices or indices != sorted(set(indices)):
        raise NotTellable("no choices, or choices out of order")
    head: JsonObject = {
        "id": completion.id,
        "object": "chat.completion.chunk",
        "created": completion.created,
        "model": completion.model,
        **{name: value for name in HEAD if (value := getattr(completion, name)) is not UNSET},
    }
    tail = {"usage": None} if include_usage else {}
    for choice in completion.choices:
        for piece in _choice_pieces(choice):
            yield {**head, "choices": [{"index": choice.index, **piece}], **tail}
    if include_usage and completion.usage is not UNSET:
        yield {**head, "choices": [], "usage": completion.usage}


def _choice_pieces(choice: Choice) -> Iterator[JsonObject]:
    message, tokens = choice.message, _tokens(choice)
    null: JsonObject = {} if choice.logprobs is UNSET else {"logprobs": None}
    empty: JsonObject = {name: None if entries is None else [] for name, entries in tokens.items()}
    # Lists without an entry have no piece that could carry them.
    stated = isinstance(choice.logprobs, Logprobs) and not any(tokens.values())
    yield {"delta": _opening(message), **({"logprobs": empty} if stated else null), "finish_reason": None}
    for name in TEXTS:
        for text, entries in _text_pieces(getattr(message, name) or "", tokens.get(name) or []):
            said = {"logprobs": {**empty, name: entries}} if entries else null
            yield {"delta": {name: text} if text else {}, **said, "finish_reason": None}
    for delta in _call_deltas(message):
        yield {"delta": delta, **null, "finish_reason": None}
    yield {"delta": {}, **null, "finish_reason": choice.finish_reason}


def _tokens(choice: Choice) -> dict[str, list[JsonObject] | None]:
    """Name of a text -> its tokens, for those that are there."""
    said = choice.logprobs if isinstance(choice.logprobs, Logprobs) else Logprobs()
    lists = {"content": said.content, "refusal": said.refusal}
    return {name: entries for name, entries in lists.items() if entries is not UNSET}


def _opening(message: Message) -> JsonObject:
    """Make the first delta: the role, and every member that is null or empty, since no piece would tell of it."""
    opening: JsonObject = {"role": message.role}
    if message.content is not UNSET:
        opening["content"] = None if message.content is None else ""
    if message.refusal is not UNSET:
        opening["refusal"] = "" if message.refusal == "" else None
    for name in ("reasoning_content", "reasoning", "annotations", "audio", "function_call", "tool_calls"):
        value = getattr(message, name)
        if value is not UNSET and not value:
            opening[name] = value
    return opening


def _text_pieces(text: str, tokens: list[JsonObject]) -> Iterator[tuple[str, list[JsonObject]]]:
    """Cut a text, and the log probabilities of its tokens: at the same places where the tokens spell it out."""
    batches = [tokens[at : at + _PIECE_TOKENS] for at in range(0, len(tokens), _PIECE_TOKENS)]
    texts = ["".join(str(entry.get("token")) for entry in batch) for batch in batches]
    if "".join(texts) != text:
        texts = _cut(text)
    for piece, batch in zip_longest(texts, batches):
        yield piece or "", batch or []


def _call_deltas(message: Message) -> Iterator[JsonObject]:
    if message.annotations:
        yield {"annotations": message.annotations}
    if message.function_call:
        yield {"function_call": {"name": message.function_call.name, "arguments": ""}}
        for piece in _cut(message.function_call.arguments):
            yield {"function_call": {"arguments": piece}}
    for index, call in enumerate(message.tool_calls or ()):
        if isinstance(call, FunctionCall):
            kind, name, text = "function", call.function.name, call.function.arguments
        else:
            kind, name, text = "custom", call.custom.name, call.custom.input
        member = CALL_TEXT[kind]
        yield {"tool_calls": [{"index": index, "id": call.id, "type": kind, kind: {"name": name, member: ""}}]}
        for piece in _cut(text):
            yield {"tool_calls": [{"index": index, kind: {member: piece}}]}


def _cut(text: str) -> list[str]:
    return [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]
