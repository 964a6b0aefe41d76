"""What a tokenizer is to count of a request and its answer, where upstream gave no usage.

A chat prompt is three tokens a message, role and content, and three that begin the answer; a tool call is about seven
beside its name and arguments. Both were measured on recorded requests; what has no text is taken at its estimate.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from proxy.core.asked import Asked
from proxy.core.estimate import part_characters_and_tokens

__all__ = ["TOOL_CALL_TOKENS", "Encoding", "Said", "Transcript", "encoding_of", "prompt_of"]

Encoding = str
"""Name of a vocabulary: `o200k_base`, `cl100k_base`."""

TOOL_CALL_TOKENS = 7
_MESSAGE_TOKENS = 3
_ANSWER_TOKENS = 3
_NAME_TOKENS = 1
_NEWEST: Encoding = "o200k_base"
_OLDER: Encoding = "cl100k_base"
_OLDER_FAMILIES = ("gpt-3.5", "gpt-35", "text-embedding-", "davinci-002", "babbage-002")
_OLDER_MODELS = ("gpt-4", "gpt-4-")
_KEPT_CHARACTERS = 1 << 20


def encoding_of(model: str) -> Encoding:
    """The vocabulary of a model; of one that is not known, the newest."""
    name = model.removeprefix("ft:")
    older = name.startswith((*_OLDER_FAMILIES, _OLDER_MODELS[1])) or name.partition(":")[0] == _OLDER_MODELS[0]
    return _OLDER if older else _NEWEST


class Said(msgspec.Struct, frozen=True, gc=False):
    """Texts, each of which is counted by itself, and tokens that are no text."""

    texts: tuple[str, ...] = ()
    more_tokens: int = 0

    @property
    def characters(self) -> int:
        """In all texts together."""
        return sum(map(len, self.texts))


def prompt_of(request: Asked) -> Said:
    """What upstream reads of a chat request."""
    texts: list[str] = []
    tokens = _ANSWER_TOKENS
    for message in request.body["messages"]:
        tokens += _MESSAGE_TOKENS
        for name, value in message.items():
            tokens += _member(name, value, texts)
    for name in ("tools", "functions", "response_format"):
        value = request.body.get(name)
        if value is not None:
            texts.append(_json(value))
    return Said(tuple(texts), tokens)


class Transcript:
    """What an answer has said so far, each voice by itself: a choice's text, its refusal, one call's arguments.

    Of an answer without end only the first million characters are kept; `characters` counts all of them.
    """

    __slots__ = ("_voices", "calls", "characters")

    def __init__(self) -> None:
        self._voices: dict[Hashable, io.StringIO] = {}
        self.characters = 0
        self.calls = 0
        """Tool calls that have begun."""

    def add(self, voice: Hashable, text: str) -> None:
        """Take the next piece of a voice."""
        self.characters += len(text)
        if self.characters > _KEPT_CHARACTERS:
            return
        kept = self._voices.get(voice)
        if kept is None:
            kept = self._voices[voice] = io.StringIO(newline="")
        kept.write(text)

    def said(self) -> Said:
        """All of it, what was not kept at four characters a token."""
        texts = tuple(voice.getvalue() for voice in self._voices.values())
        left_out = self.characters - sum(map(len, texts))
        return Said(texts, TOOL_CALL_TOKENS * self.calls - (-left_out // 4))


def _member(name: str, value: object, texts: list[str]) -> int:
    """Add the texts of one member of a message; returns the tokens that come beside them."""
    match name, value:
        case _, None:
            pass
        case "content", list(parts):
            return sum(_part(part, texts) for part in parts)
        case "tool_calls", list(calls):
            texts.extend(_call_texts(calls))
            return TOOL_CALL_TOKENS * len(calls)
        case _:
            texts.append(value if isinstance(value, str) else _json(value))
    return _NAME_TOKENS if name == "name" and value is not None else 0


def _part(part: Mapping[str, Any], texts: list[str]) -> int:
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        texts.append(part["text"])
        return 0
    characters, tokens = part_characters_and_tokens(part)
    return tokens - (-characters // 4)


def _call_texts(calls: Iterable[object]) -> Iterator[str]:
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        said = function.values() if isinstance(function, dict) else ()
        yield from (text for text in said if isinstance(text, str))


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
