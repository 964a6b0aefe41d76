"""Chunks of a chat completion, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import UNSET, UnsetType

from proxy.core.chat_forms import (
    CALL_TEXT,
    HEAD,
    TEXTS,
    CallPiece,
    CallTextPiece,
    Chunk,
    ChunkChoice,
    Logprobs,
    NotTellable,
)
from proxy.core.strict_json import JsonObject

__all__ = ["together"]


def together(chunks: Sequence[Chunk]) -> JsonObject:
    """Return the completion that the chunks of one whole stream tell. Raises `NotTellable`."""
    if not chunks:
        raise NotTellable("no chunks")
    first = chunks[0]
    choices: dict[int, _Gathered] = {}
    head: JsonObject = {}
    usage: JsonObject | None = None
    for chunk in chunks:
        if chunk.id != first.id or chunk.model != first.model:
            raise NotTellable("chunks of two answers")
        for name in HEAD:
            value = getattr(chunk, name)
            if value is not UNSET and (value is not None or name not in head):
                head[name] = value
        usage = usage if chunk.usage is None else chunk.usage
        for choice in chunk.choices:
            gathered = choices.get(choice.index)
            if gathered is None:
                gathered = choices[choice.index] = _Gathered()
            gathered.add(choice)
    if not choices:
        raise NotTellable("no choices")
    whole: JsonObject = {"id": first.id, "object": "chat.completion", "created": first.created, "model": first.model}
    whole["choices"] = [{"index": index, **choices[index].whole()} for index in sorted(choices)]
    return {**whole, **({} if usage is None else {"usage": usage}), **head}


class _Gathered:
    """One choice, as far as its pieces have come."""

    __slots__ = ("calls", "finish_reason", "function_call", "logprobs", "message", "role")

    def __init__(self) -> None:
        self.role: str | None = None
        self.message: dict[str, Any] = {}
        """Lists of pieces; None for a member that was null and nothing else so far."""
        self.calls: dict[int, _GatheredCall] = {}
        self.function_call: _GatheredCall | None = None
        self.logprobs: dict[str, Any] | UnsetType | None = UNSET
        self.finish_reason: str | None = None

    def add(self, choice: ChunkChoice) -> None:
        said = choice.delta
        self.role = _one(self.role, said.role)
        self.finish_reason = _one(self.finish_reason, choice.finish_reason)
        for name in TEXTS:
            text = getattr(said, name)
            if text is not UNSET:
                _extend(self.message, name, None if text is None else (text,))
        if said.annotations is not UNSET:
            _extend(self.message, "annotations", said.annotations)
        if said.audio is not UNSET:
            self.message["audio"] = None
        if said.function_call is not UNSET:
            self._add_function_call(said.function_call)
        if said.tool_calls is not UNSET:
            _extend(self.message, "tool_calls", None if said.tool_calls is None else ())
            for call in said.tool_calls or ():
                self._add_call(call)
        if choice.logprobs is not UNSET:
            self._add_logprobs(choice.logprobs)

    def whole(self) -> JsonObject:
        if self.role is None or self.finish_reason is None:
            raise NotTellable("a choice without a role or an end")
        message: JsonObject = {"role": self.role}
        for name, pieces in self.message.items():
            message[name] = "".join(pieces) if name in TEXTS and pieces is not None else pieces
        if self.calls:
            message["tool_calls"] = [self.calls[index].whole() for index in sorted(self.calls)]
        if self.function_call is not None:
            message["function_call"] = self.function_call.said("arguments")
        logprobs = {} if self.logprobs is UNSET else {"logprobs": self.logprobs}
        return {"message": message, **logprobs, "finish_reason": self.finish_reason}

    def _add_call(self, call: CallPiece) -> None:
        gathered = self.calls.get(call.index)
        if gathered is None:
            gathered = self.calls[call.index] = _GatheredCall()
        gathered.id, gathered.type = _one(gathered.id, call.id), _one(gathered.type, call.type)
        for kind, text in (("function", call.function), ("custom", call.custom)):
            if text is not None:
                gathered.kind = _one(gathered.kind, kind)
                gathered.add(text)

    def _add_function_call(self, text: CallTextPiece | None) -> None:
        self.message.setdefault("function_call", None)
        if text is not None:
            self.function_call = self.function_call or _GatheredCall()
            self.function_call.add(text)

    def _add_logprobs(self, logprobs: Logprobs | None) -> None:
        if self.logprobs is UNSET:
            self.logprobs = None
        if logprobs is not None:
            self.logprobs = self.logprobs or {}
            for name in ("content", "refusal"):
                entries = getattr(logprobs, name)
                if entries is not UNSET:
                    _extend(self.logprobs, name, entries)


class _GatheredCall:
    """One call, as far as its pieces have come."""

    __slots__ = ("id", "kind", "name", "pieces", "type")

    def __init__(self) -> None:
        self.id: str | None = None
        self.type: str | None = None
        self.kind: str | None = None
        self.name: str | None = None
        self.pieces: dict[str, list[str]] = {}

    def add(self, text: CallTextPiece) -> None:
        if text.name:
            if self.name is not None:
                raise NotTellable("a call that is named twice")
            self.name = text.name
        for name in CALL_TEXT.values():
            if (piece := getattr(text, name)) is not None:
                _extend(self.pieces, name, (piece,))

    def said(self, member: str) -> JsonObject:
        if self.name is None or self.pieces.keys() - {member}:
            raise NotTellable("a call without a name, or of two kinds")
        return {"name": self.name, member: "".join(self.pieces.get(member, ()))}

    def whole(self) -> JsonObject:
        if self.id is None or self.kind is None or (self.type or self.kind) != self.kind:
            raise NotTellable("a tool call without an id, or of two kinds")
        return {"id": self.id, "type": self.kind, self.kind: self.said(CALL_TEXT[self.kind])}


def _extend(members: dict[str, Any], name: str, more: Sequence[Any] | None) -> None:
    """Add pieces to a member; null only says that it is there."""
    pieces = members.get(name)
    if more is None:
        members.setdefault(name, None)
    elif pieces is None:
        members[name] = list(more)
    else:
        pieces.extend(more)


def _one(known: str | None, new: str | None) -> str | None:
    """What may be said again, and never differently."""
    if known and new and known != new:
        raise NotTellable("a member with two values")
    return known or new
