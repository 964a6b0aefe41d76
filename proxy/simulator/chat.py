"""Chat completions: from a request to its text and usage, without time or chance.

Counting rule. Prompt: per message 3, 1 for its role and one for every four characters of its text or part of them; plus
3. Completion: the pieces of text that a stream sends, over all choices (for a tool call, the pieces of its arguments).
Prompts from 1,024 tokens up count as seen before: the largest multiple of 128 below their length is cached.

The text follows from model, seed, n and messages alone. Content of the last user message that begins with `echo:` is
answered with what comes after it, in pieces of four characters; `refuse:` with a refusal in those words.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat_answer import ChatAnswer, Choice
from proxy.simulator.chat_request import ChatRequest, Message, parse
from proxy.simulator.endpoint import Endpoint
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.refusal import Refusal
from proxy.simulator.schema import instance
from proxy.simulator.words import PIECE_CHARACTERS, digest_of, split, words

__all__ = ["ECHO", "chat_endpoint", "compose", "prompt_tokens"]

ECHO = "echo:"
REFUSE = "refuse:"
_REMEMBERED_BYTES = 16_384
_REMEMBERED_TOKENS = 1_024
_REMEMBERED_ANSWERS = 256
_MAX_PIECES = 2_000_000


def chat_endpoint(behaviour: Behaviour) -> Endpoint:
    """`POST /v1/chat/completions`. The last few hundred short answers to short bodies are remembered by those bytes."""
    remembered: OrderedDict[bytes, ChatAnswer] = OrderedDict()

    def endpoint(body: bytes) -> ChatAnswer:
        if (known := remembered.get(body)) is not None:
            return known
        answer = compose(parse(body), behaviour)
        if len(body) <= _REMEMBERED_BYTES and answer.output_tokens <= _REMEMBERED_TOKENS:
            remembered[body] = answer
            if len(remembered) > _REMEMBERED_ANSWERS:
                remembered.popitem(last=False)
        return answer

    return endpoint


def prompt_tokens(messages: list[Message]) -> int:
    """Tokens of a prompt by the rule above."""
    return 3 + sum(4 + -(-len(message.text) // PIECE_CHARACTERS) for message in messages)


def compose(request: ChatRequest, behaviour: Behaviour) -> ChatAnswer:
    """The answer to a request. Raises `Refusal` for a model that does not exist and the like."""
    snapshot = resolve(request.model, ModelKind.CHAT)
    choices = tuple(_choice(request, behaviour, index) for index in range(request.n or 1))
    characters = sum(len(message.text) for message in request.messages)
    return ChatAnswer(
        model=snapshot,
        choices=choices,
        input_tokens=prompt_tokens(request.messages),
        limit_tokens=max(request.max_output_tokens or 0, characters // PIECE_CHARACTERS, 1),
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


@dataclass(frozen=True, slots=True)
class _Source:
    digest: bytes
    count: int
    echo: str | None


def _choice(request: ChatRequest, behaviour: Behaviour, index: int) -> Choice:
    said = [(message.role, message.text) for message in request.messages]
    digest = digest_of(behaviour.seed, request.model, request.seed, request.n or 1, index, said)
    if behaviour.tokens * (request.n or 1) > _MAX_PIECES:
        raise Refusal(400, f"More than {_MAX_PIECES} tokens in one answer.", param="n")
    text = request.text
    source = _Source(digest, behaviour.tokens, text.removeprefix(ECHO) if text.startswith(ECHO) else None)
    refuses = text.startswith(REFUSE)
    tool = None if refuses else request.tool
    if refuses:
        pieces, finish = split(text.removeprefix(REFUSE)), "stop"
    elif tool is not None:
        pieces = split(msgspec.json.encode(instance(tool.parameters or {"type": "object"})).decode())
        pieces = pieces if source.echo is None else split(source.echo)
        # OpenAI says `stop` for a function that was named and `tool_calls` for one that was chosen.
        finish = "tool_calls" if request.tool_choice == "required" else "stop"
    else:
        pieces, finish = _text(request, source), "stop"
    most = request.max_output_tokens
    if most is not None and most < len(pieces):
        pieces, finish = pieces[:most], "length"
    return Choice(
        index,
        tuple(pieces),
        finish,
        tool.name if tool else None,
        f"call_{digest.hex()[:24]}",
        refuses=refuses,
        alternatives=(request.top_logprobs or 0) if request.logprobs and tool is None else None,
    )


def _text(request: ChatRequest, source: _Source) -> list[str]:
    if source.echo is not None:
        return split(source.echo)
    form = request.response_format
    if form is not None and form.type == "json_schema":
        schema = form.json_schema.schema if form.json_schema else None
        return split(msgspec.json.encode(instance(schema or {"type": "object"})).decode())
    if form is not None and form.type == "json_object":
        return ['{"text":"', *words(source.digest, max(source.count - 2, 0)), '"}']
    return words(source.digest, source.count)
