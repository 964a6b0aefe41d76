"""What a chat completion request asks for, as far as the simulator looks at it."""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec

from proxy.simulator.refusal import Refusal

__all__ = ["ChatRequest", "Message", "StreamOptions", "decode", "parse"]

Request = TypeVar("Request")
Positive = Annotated[int, msgspec.Meta(ge=1)]


class Part(msgspec.Struct, frozen=True):
    """One part of a message's content; only text counts."""

    type: str
    text: str | None = None


class Message(msgspec.Struct, frozen=True):
    """One message."""

    role: str
    content: str | list[Part] | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class Function(msgspec.Struct, frozen=True):
    """A function the model may call."""

    name: str
    parameters: dict[str, object] | None = None


class Tool(msgspec.Struct, frozen=True):
    """A tool; those that are no functions are never called."""

    type: str
    function: Function | None = None


class StreamOptions(msgspec.Struct, frozen=True):
    """Options of a stream."""

    include_usage: bool | None = None


class JsonSchema(msgspec.Struct, frozen=True):
    """The schema of a structured answer."""

    schema: dict[str, object] | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form of the text: `text`, `json_object` or `json_schema`."""

    type: str
    json_schema: JsonSchema | None = None


class ChatRequest(msgspec.Struct, frozen=True):
    """The body; fields not named here are taken and ignored."""

    model: str
    messages: Annotated[list[Message], msgspec.Meta(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=128)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=20)] | None = None
    seed: int | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Tool | None = None
    response_format: ResponseFormat | None = None

    @property
    def max_output_tokens(self) -> int | None:
        """The cut, under its old name or its new one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def text(self) -> str:
        """The text of the last user message."""
        return next((message.text for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def tool(self) -> Function | None:
        """The function that must be called. Raises `Refusal` when `tool_choice` names one that is not there."""
        functions = [tool.function for tool in self.tools or () if tool.function is not None]
        if isinstance(self.tool_choice, Tool):
            name = self.tool_choice.function.name if self.tool_choice.function else None
            for function in functions:
                if function.name == name:
                    return function
            raise Refusal(400, f"Tool choice '{name}' is not among the tools.", param="tool_choice")
        if self.tool_choice == "required":
            if functions:
                return functions[0]
            raise Refusal(400, "'tool_choice' is only allowed when 'tools' are given.", param="tool_choice")
        return None


_DECODER = msgspec.json.Decoder(ChatRequest)
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]+)`")
_MISSING = re.compile(r"missing required field `(?P<field>\w+)`")


def decode(decoder: msgspec.json.Decoder[Request], body: bytes) -> Request:
    """Read a body. Raises `Refusal` 400 with the field it is about."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refusal(400, "The body of the request is not valid JSON.") from None


def parse(body: bytes) -> ChatRequest:
    """Read a body. Raises `Refusal` 400 with the field it is about."""
    request = decode(_DECODER, body)
    if request.stream_options is not None and not request.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise Refusal(400, message, param="stream_options")
    return request


def _invalid(message: str) -> Refusal:
    at = _PATH.search(message)
    path = at["path"] if at else ""
    if missing := _MISSING.search(message):
        param = ".".join(step for step in (path, missing["field"]) if step)
        return Refusal(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    what = _PATH.sub("", message)
    return Refusal(400, f"Invalid value for '{path}': {what}.", param=path or None, code="invalid_type")
