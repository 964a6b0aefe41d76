"""What upstream's answer says: usage, completion, errors; typed partial decoding, the bytes pass untouched."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Protocol

import msgspec

from proxy.core.count import TOOL_CALL_TOKENS, Said, Transcript
from proxy.core.estimate import text_tokens
from proxy.core.sse import Event, SseParser
from proxy.core.strict_json import member_spans
from proxy.core.usage import Usage
from proxy.core.usage_forms import UNREADABLE, WireUsage

__all__ = ["AnswerStream", "ChatStream", "Completion", "parse_completion"]

_DONE = b"[DONE]"
_NO_USAGE = b',"usage":null'
_ERROR_NAME = re.compile(rb"(?:^|[\r\n])event: ?error[\r\n]")
_STORABLE = frozenset({"stop", "length", "tool_calls", "function_call"})


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _ChunkChoice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    """Of a legacy completion, in the place of a delta."""
    finish_reason: str | None = None
    error: object = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    usage: WireUsage | None = None
    service_tier: str | None = None
    error: object = None


class _FullChoice(msgspec.Struct):
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    error: object = None
    """OpenRouter tells here of a provider that failed."""


class _Spoken(msgspec.Struct):
    choices: list[_FullChoice] | None = None


class _Full(_Spoken):
    usage: WireUsage | None = None
    service_tier: str | None = None
    error: object = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_full = msgspec.json.Decoder(_Full).decode
_decode_spoken = msgspec.json.Decoder(_Spoken).decode


class Completion(msgspec.Struct, frozen=True, gc=False):
    """What a plain answer says of itself."""

    usage: Usage | None
    service_tier: str | None
    storable: bool
    """Complete and unfiltered: it may be given to the next one who asks the same."""
    counted_output_tokens: int
    """Our own count of the answer, for one that came without usage."""
    said: Said | None = None
    """What such an answer says, for a count by tokenizer."""
    unfinished: bool = False
    """Upstream goes on with it after it has answered."""


def parse_completion(body: bytes) -> Completion:
    """Read a plain answer; one that is not a completion has no usage and is not storable."""
    try:
        full = _decode_full(body)
    except UNREADABLE:
        return _without_usage(body)
    usage = full.usage.counted() if full.usage else None
    if usage is None:
        return _counted(full, full.service_tier)
    choices = full.choices or ()
    storable = bool(choices) and full.error is None and all(map(_has_ended_well, choices))
    return Completion(usage, full.service_tier, storable=storable, counted_output_tokens=0)


def _has_ended_well(choice: _FullChoice) -> bool:
    return choice.finish_reason in _STORABLE and choice.error is None


def _without_usage(body: bytes) -> Completion:
    """Read what an answer says whose usage, or whatever else, is not of its type."""
    try:
        return _counted(_decode_spoken(body), None)
    except UNREADABLE:
        return Completion(None, None, storable=False, counted_output_tokens=text_tokens(len(body)))


def _counted(spoken: _Spoken, service_tier: str | None) -> Completion:
    transcript = Transcript()
    for index, choice in enumerate(spoken.choices or ()):
        _hear(transcript, index, choice.message, choice.text)
    counted = text_tokens(transcript.characters) + TOOL_CALL_TOKENS * transcript.calls
    return Completion(None, service_tier, storable=False, counted_output_tokens=counted, said=transcript.said())


def _hear(transcript: Transcript, choice: int, delta: _Delta | None, text: str | None) -> None:
    """Note what a message, or a piece of one, says."""
    if text:
        transcript.add(choice, text)
    if delta is None:
        return
    if delta.content:
        transcript.add(choice, delta.content)
    if delta.refusal:
        transcript.add((choice, "refusal"), delta.refusal)
    if delta.reasoning_content:
        transcript.add((choice, "reasoning"), delta.reasoning_content)
    for call in delta.tool_calls or ():
        transcript.calls += call.id is not None
        _hear_function(transcript, (choice, call.index), call.function)
    if delta.function_call is not None:
        _hear_function(transcript, (choice, "function"), delta.function_call)


def _hear_function(transcript: Transcript, voice: Hashable, function: _Function | None) -> None:
    if function is not None and function.name:
        transcript.add((voice, "name"), function.name)
    if function is not None and function.arguments:
        transcript.add(voice, function.arguments)


class AnswerStream(Protocol):
    """One streamed answer as it passes, whatever the endpoint."""

    usage: Usage | None
    service_tier: str | None
    done: bool
    """Upstream has said all it had to say."""
    errored: bool
    transcript: Transcript

    def feed(self, chunk: bytes) -> bytes:
        """Take upstream's next bytes, return what the client is to get now. Raises `EventTooLongError`."""
        ...

    def rest(self) -> bytes:
        """What is left to send when upstream has ended."""
        ...

    def error_event(self, message: str, code: str) -> bytes:
        """The event that tells the client that upstream broke off."""
        ...

    @property
    def passed_in_half(self) -> bool:
        """Whether the client has the beginning of an event and not its end."""
        ...

    @property
    def complete(self) -> bool:
        """Whether upstream said all it had to say, and no error."""
        ...

    @property
    def storable(self) -> bool:
        """Whether the answer may be given to the next one who asks the same."""
        ...

    @property
    def counted_output_tokens(self) -> int:
        """A count of what has run that needs no tokenizer, for a stream whose usage did not come."""
        ...


class ChatStream:
    """One streamed answer as it passes: what to send on, and what it has said so far.

    With `hide_usage` (the client did not ask for usage, we did) the usage chunk and the `usage` members are taken out
    and whole events pass; without it every byte passes at once as it came.
    """

    __slots__ = ("_begun", "_choices", "_finished", "_hide_usage", "_parser", "done", "errored", "malformed",
                 "pieces", "service_tier", "transcript", "usage")  # fmt: skip

    def __init__(self, *, choices: int, hide_usage: bool) -> None:
        self._parser = SseParser()
        self._choices = choices
        self._hide_usage = hide_usage
        self._begun: set[int] = set()
        self._finished: dict[int, str] = {}
        self.usage: Usage | None = None
        self.service_tier: str | None = None
        self.done = False
        self.errored = False
        self.malformed = False
        self.pieces = 0
        """Events that carried text: OpenAI sends about one token in each."""
        self.transcript = Transcript()

    def feed(self, chunk: bytes) -> bytes:
        """Take upstream's next bytes, return what the client is to get now. Raises `EventTooLongError`."""
        events = self._parser.feed(chunk)
        if not self._hide_usage:
            for event in events:
                self._read(event)
            return chunk
        if len(events) == 1:
            return self._without_usage(events[0])
        return b"".join([self._without_usage(event) for event in events])

    def rest(self) -> bytes:
        """What is left to send when upstream has ended: bytes of an event that never closed."""
        return self._parser.pending if self._hide_usage else b""

    def error_event(self, message: str, code: str) -> bytes:
        """The event that tells the client that upstream broke off."""
        error = {"message": message, "type": "server_error", "param": None, "code": code}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"

    @property
    def passed_in_half(self) -> bool:
        """Whether the client has the beginning of an event and not its end."""
        return not self._hide_usage and bool(self._parser.pending)

    @property
    def complete(self) -> bool:
        """Whether upstream said all it had to say: `[DONE]`, or a finish reason for every choice."""
        return not self.errored and (self.done or len(self._finished) >= self._choices)

    @property
    def storable(self) -> bool:
        """Whether the answer may be given to the next one who asks the same."""
        return (
            self.complete
            and self.done
            and not self.malformed
            and self.usage is not None
            and len(self._finished) >= self._choices
            and self._begun <= self._finished.keys()
            and all(reason in _STORABLE for reason in self._finished.values())
        )

    @property
    def counted_output_tokens(self) -> int:
        """A count of what has run that needs no tokenizer, for a stream whose usage did not come."""
        return max(self.pieces, text_tokens(self.transcript.characters)) + TOOL_CALL_TOKENS * self.transcript.calls

    def _read(self, event: Event) -> _Chunk | None:
        data = event.data
        if data is None:
            return None
        if data == _DONE:
            self.done = True
            return None
        try:
            chunk = _decode_chunk(data)
        except UNREADABLE:
            self.malformed = True
            return None
        if chunk.error is not None or (not event.raw.startswith(b"data:") and _ERROR_NAME.search(event.raw)):
            self.errored = True
        if chunk.usage is not None:
            self.usage = chunk.usage.counted()
        if chunk.service_tier is not None:
            self.service_tier = chunk.service_tier
        for choice in chunk.choices or ():
            self._begun.add(choice.index)
            if choice.error is not None:
                self.malformed = True
            # What ended once as it should not does not become whole by a better reason behind it.
            if choice.finish_reason is not None and self._finished.get(choice.index, "stop") in _STORABLE:
                self._finished[choice.index] = choice.finish_reason
            before = self.transcript.characters
            _hear(self.transcript, choice.index, choice.delta, choice.text)
            self.pieces += self.transcript.characters > before
        return chunk

    def _without_usage(self, event: Event) -> bytes:
        chunk = self._read(event)
        if chunk is None or b'"usage"' not in event.raw:
            return event.raw
        if not chunk.choices and chunk.usage is not None:
            return b""
        return _strip_usage(event)


def _strip_usage(event: Event) -> bytes:
    """Take the member `usage` out of an event, every other byte as it was."""
    raw = event.raw
    at = raw.rfind(_NO_USAGE)
    if at >= 0 and raw.count(b'"usage"') == 1:
        # Unescaped quotes cannot stand inside a JSON string, so this is a member and no text.
        return raw[:at] + raw[at + len(_NO_USAGE) :]
    try:
        text = (event.data or b"").decode("utf-8")
        spans = member_spans(text)
    except ValueError:
        return event.raw  # what cannot be read strictly is passed as it is
    if "usage" not in spans:
        return event.raw
    start, _, end = spans["usage"]
    others = [(at, value_end) for name, (at, _, value_end) in spans.items() if name != "usage"]
    before = max((value_end for at, value_end in others if at < start), default=None)
    after = min((at for at, _ in others if at > start), default=None)
    if before is not None:
        start = before
    elif after is not None:
        end = after
    return b"data: " + (text[:start] + text[end:]).encode() + b"\n\n"
