"""The members of a chat completion, whole and in chunks, as far as both forms have a place for them.

What is absent stays absent and null stays null; a member that is not here makes an answer `NotTellable`.

Source: OpenAI's API specification, `CreateChatCompletionResponse` and `CreateChatCompletionStreamResponse`; `reasoning`
and `reasoning_content` are what compatible upstreams add to both. A streamed custom tool is as a plain one is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from proxy.core.strict_json import JsonObject

__all__ = ["CALL_TEXT", "HEAD", "TEXTS", "CallPiece", "CallTextPiece", "Choice", "Chunk", "ChunkChoice", "Completion",
           "CustomCall", "FunctionCall", "Logprobs", "Message", "NotTellable"]  # fmt: skip

TEXTS = ("reasoning_content", "reasoning", "content", "refusal")
"""Members of a message that are text, in the order in which a model says them."""
CALL_TEXT = {"function": "arguments", "custom": "input"}
"""Kind of a tool call -> its member that is text."""
HEAD = ("service_tier", "system_fingerprint")
"""What a completion and each of its chunks may say beside id, time and model."""


class NotTellable(ValueError):
    """An answer that can be told in the form it came in, and not in the other."""


Text = str | UnsetType | None
Entries = list[JsonObject] | UnsetType | None
Name = Annotated[str, Meta(min_length=1)]


class Logprobs(Struct, forbid_unknown_fields=True):
    """Log probabilities of a choice's tokens, or of those of a piece."""

    content: Entries = UNSET
    refusal: Entries = UNSET


class FunctionText(Struct, forbid_unknown_fields=True):
    """What a function is called with."""

    name: Name
    arguments: str


class CustomText(Struct, forbid_unknown_fields=True):
    """What a custom tool is called with."""

    name: Name
    input: str


class FunctionCall(Struct, forbid_unknown_fields=True, tag_field="type", tag="function"):
    """A call of a function."""

    id: Name
    function: FunctionText


class CustomCall(Struct, forbid_unknown_fields=True, tag_field="type", tag="custom"):
    """A call of a custom tool."""

    id: Name
    custom: CustomText


class Message(Struct, forbid_unknown_fields=True):
    """The message of a plain answer."""

    role: Name
    content: Text = UNSET
    reasoning_content: Text = UNSET
    reasoning: Text = UNSET
    refusal: Text = UNSET
    annotations: Entries = UNSET
    audio: UnsetType | None = UNSET
    function_call: FunctionText | UnsetType | None = UNSET
    tool_calls: list[FunctionCall | CustomCall] | UnsetType | None = UNSET


class Choice(Struct, forbid_unknown_fields=True):
    """One choice of a plain answer."""

    index: int
    message: Message
    finish_reason: Name
    logprobs: Logprobs | UnsetType | None = UNSET


class Completion(Struct, forbid_unknown_fields=True):
    """A plain answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: JsonObject | UnsetType = UNSET
    service_tier: Text = UNSET
    system_fingerprint: Text = UNSET


class CallTextPiece(Struct, forbid_unknown_fields=True):
    """A piece of what is called, and with what; null is nothing said."""

    name: str | None = None
    arguments: str | None = None
    input: str | None = None


class CallPiece(Struct, forbid_unknown_fields=True):
    """A piece of a tool call."""

    index: int
    id: str | None = None
    type: str | None = None
    function: CallTextPiece | None = None
    custom: CallTextPiece | None = None


class Delta(Struct, forbid_unknown_fields=True):
    """A piece of a message."""

    role: str | None = None
    content: Text = UNSET
    reasoning_content: Text = UNSET
    reasoning: Text = UNSET
    refusal: Text = UNSET
    annotations: Entries = UNSET
    audio: UnsetType | None = UNSET
    function_call: CallTextPiece | UnsetType | None = UNSET
    tool_calls: list[CallPiece] | UnsetType | None = UNSET


class ChunkChoice(Struct, forbid_unknown_fields=True):
    """A piece of one choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | UnsetType | None = UNSET
    finish_reason: str | None = None


class Chunk(Struct, forbid_unknown_fields=True):
    """One event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    service_tier: Text = UNSET
    system_fingerprint: Text = UNSET
    usage: JsonObject | None = None
    obfuscation: str | None = None
