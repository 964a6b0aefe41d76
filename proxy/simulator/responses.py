"""The Responses API: from a request to its text and usage, without time or chance.

Counting rule, as for chat. Input: per message 3, 1 for its role and one for every four characters of its text or part
of them; plus 3; instructions are a message. Output: the pieces of text, or of a function's arguments. A text of the
last user message that begins with `echo:` is answered with what comes after it. What runs in the background, and is not
streamed, is never done.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat import ECHO
from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import Endpoint
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.plain_answer import PlainAnswer
from proxy.simulator.refusal import Refusal
from proxy.simulator.responses_answer import ResponseAnswer
from proxy.simulator.schema import instance
from proxy.simulator.words import PIECE_CHARACTERS, digest_of, split, words

__all__ = ["input_tokens_endpoint", "responses_endpoint"]


class _Part(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None


class _Item(msgspec.Struct, frozen=True):
    type: str | None = None
    role: str | None = None
    content: str | list[_Part] | None = None
    output: str | list[_Part] | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        said = self.content if self.content is not None else self.output
        return "".join(part.text or "" for part in said) if isinstance(said, list) else said or ""


class _Tool(msgspec.Struct, frozen=True):
    type: str
    name: str | None = None
    parameters: dict[str, object] | None = None


class _Request(msgspec.Struct, frozen=True):
    model: str
    input: str | list[_Item] | None = None
    instructions: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    stream: bool | None = None
    store: bool | None = None
    background: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[_Tool] | None = None
    tool_choice: str | _Tool | None = None
    metadata: dict[str, str] | None = None

    def items(self) -> list[_Item]:
        """The input as items."""
        return [_Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input or []

    def tool(self) -> _Tool | None:
        """The function that must be called. Raises `Refusal` when `tool_choice` names one that is not there."""
        functions = [tool for tool in self.tools or () if tool.type == "function"]
        if isinstance(self.tool_choice, _Tool):
            functions = [tool for tool in functions if tool.name == self.tool_choice.name]
        elif self.tool_choice != "required":
            return None
        if not functions:
            raise Refusal(400, "The tool to call is not among the tools.", param="tool_choice")
        return functions[0]


_DECODER = msgspec.json.Decoder(_Request)


def responses_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/responses`."""

    def endpoint(body: bytes) -> ResponseAnswer:
        request = decode(_DECODER, body)
        model = resolve(request.model, ModelKind.CHAT)
        tool = request.tool()
        pieces = _pieces(request, tool, behaviour)
        most = request.max_output_tokens
        cut = most is not None and most < len(pieces)
        read = _input_tokens(request)
        hidden = bool(request.background) and not request.stream
        return ResponseAnswer(
            model=model,
            pieces=() if hidden else tuple(pieces[:most]),
            cut=cut,
            tool=tool.name if tool is not None else None,
            input_tokens=read,
            limit_tokens=max(most or 0, read, 1),
            stream=bool(request.stream),
            background=hidden,
            echoed={
                "instructions": request.instructions,
                "max_output_tokens": most,
                "metadata": request.metadata or {},
                "store": request.store is not False,
                "temperature": 1.0 if request.temperature is None else request.temperature,
                "top_p": 1.0 if request.top_p is None else request.top_p,
            },
        )

    return endpoint


def input_tokens_endpoint(body: bytes) -> PlainAnswer:
    """`POST /v1/responses/input_tokens`."""
    request = decode(_DECODER, body)
    model = resolve(request.model, ModelKind.CHAT)
    members = {"object": "response.input_tokens", "input_tokens": _input_tokens(request)}
    return PlainAnswer(model=model, input_tokens=0, write=lambda _: dict(members))


def _input_tokens(request: _Request) -> int:
    texts = [item.text for item in request.items()]
    if request.instructions:
        texts.append(request.instructions)
    return 3 + sum(4 + -(-len(text) // PIECE_CHARACTERS) for text in texts)


def _pieces(request: _Request, tool: _Tool | None, behaviour: Behaviour) -> list[str]:
    said = [(item.role, item.text) for item in request.items()]
    text = next((text for role, text in reversed(said) if role == "user"), "")
    if text.startswith(ECHO):
        return split(text.removeprefix(ECHO))
    if tool is not None:
        return split(msgspec.json.encode(instance(tool.parameters or {"type": "object"})).decode())
    return words(digest_of(behaviour.seed, request.model, request.instructions, said), behaviour.tokens)
