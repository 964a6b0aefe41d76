"""What upstream's answer says: usage, completion, errors; typed partial decoding, the bytes pass untouched."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from proxy.core.estimate import text_tokens
from proxy.core.sse import Event, SseParser
from proxy.core.strict_json import member_spans
from proxy.core.usage import Usage

__all__ = ["ChatStream", "Completion", "parse_completion"]

_DONE = b"[DONE]"
_STORABLE = frozenset({"stop", "length", "tool_calls", "function_call"})
_TOOL_CALL_TOKENS = 7
"""What a tool call adds beside its text (measured on recorded answers)."""


class _InputDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _InputDetails | None = None
    completion_tokens_details: _OutputDetails | None = None

    def counted(self) -> Usage | None:
        if self.prompt_tokens is None and self.completion_tokens is None:
            return None  # an object without a count is not a count of nothing
        inputs = self.prompt_tokens_details or _InputDetails()
        outputs = self.completion_tokens_details or _OutputDetails()
        counts = (
            self.prompt_tokens or 0,
            self.completion_tokens or 0,
            inputs.cached_tokens or 0,
            inputs.cache_write_tokens or 0,
            outputs.reasoning_tokens or 0,
            inputs.audio_tokens or 0,
            outputs.audio_tokens or 0,
        )
        # Money is counted by these: what no meter can show is no usage at all.
        return Usage(*counts) if all(0 <= count < 2**40 for count in counts) else None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
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
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_ChunkChoice] | None = None
    usage: _Usage | None = None
    service_tier: str | None = None
    error: object = None


class _FullChoice(msgspec.Struct):
    message: _Delta | None = None
    finish_reason: str | None = None


class _Full(msgspec.Struct):
    choices: list[_FullChoice] | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


_UNREADABLE = (msgspec.MsgspecError, RecursionError)
"""What decoding raises for what is no chunk and no completion; the second for nesting by the thousand."""
_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_full = msgspec.json.Decoder(_Full).decode


@dataclass(frozen=True, slots=True)
class Completion:
    """What a plain answer says of itself."""

    usage: Usage | None
    service_tier: str | None
    storable: bool
    """Complete and unfiltered: it may be given to the next one who asks the same."""
    counted_output_tokens: int
    """Our own count of the answer, for one that came without usage."""


def parse_completion(body: bytes) -> Completion:
    """Read a plain answer; one that is not a completion has no usage and is not storable."""
    try:
        full = _decode_full(body)
    except _UNREADABLE:
        return Completion(None, None, storable=False, counted_output_tokens=text_tokens(len(body)))
    usage = full.usage.counted() if full.usage else None
    reasons = [choice.finish_reason for choice in full.choices or ()]
    storable = usage is not None and bool(reasons) and all(reason in _STORABLE for reason in reasons)
    counted = 0
    if usage is None:
        said = [_said(choice.message) for choice in full.choices or ()]
        characters, calls = sum(text for text, _ in said), sum(calls for _, calls in said)
        counted = text_tokens(characters) + _TOOL_CALL_TOKENS * calls
    return Completion(usage, full.service_tier, storable=storable, counted_output_tokens=counted)


def _said(delta: _Delta | None) -> tuple[int, int]:
    """Characters of text in a message or a piece of one, and the tool calls that begin in it."""
    if delta is None:
        return 0, 0
    characters = len(delta.content or "") + len(delta.refusal or "") + len(delta.reasoning_content or "")
    calls = 0
    for call in delta.tool_calls or ():
        calls += call.id is not None
        characters += _function_characters(call.function)
    return characters + _function_characters(delta.function_call), calls


def _function_characters(function: _Function | None) -> int:
    return len(function.name or "") + len(function.arguments or "") if function else 0


class ChatStream:
    """One streamed answer as it passes: what to send on, and what it has said so far.

    With `hide_usage` (the client did not ask for usage, we did) the usage chunk and the `usage` members are taken out
    and whole events pass; without it every byte passes at once as it came.
    """

    __slots__ = ("_choices", "_finished", "_hide_usage", "_parser", "characters", "done", "errored", "malformed",
                 "pieces", "service_tier", "tool_calls", "usage")  # fmt: skip

    def __init__(self, *, choices: int, hide_usage: bool) -> None:
        self._parser = SseParser()
        self._choices = choices
        self._hide_usage = hide_usage
        self._finished: dict[int, str] = {}
        self.usage: Usage | None = None
        self.service_tier: str | None = None
        self.done = False
        self.errored = False
        self.malformed = False
        self.pieces = 0
        """Events that carried text: OpenAI sends about one token in each."""
        self.characters = 0
        self.tool_calls = 0

    def feed(self, chunk: bytes) -> bytes:
        """Take upstream's next bytes, return what the client is to get now. Raises `EventTooLongError`."""
        events = self._parser.feed(chunk)
        if not self._hide_usage:
            for event in events:
                self._read(event)
            return chunk
        return b"".join([self._without_usage(event) for event in events])

    def rest(self) -> bytes:
        """What is left to send when upstream has ended: bytes of an event that never closed."""
        return self._parser.pending if self._hide_usage else b""

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
            and all(reason in _STORABLE for reason in self._finished.values())
        )

    @property
    def counted_output_tokens(self) -> int:
        """Our own count of what has run, for a stream whose usage did not come."""
        return max(self.pieces, text_tokens(self.characters)) + _TOOL_CALL_TOKENS * self.tool_calls

    def _read(self, event: Event) -> _Chunk | None:
        data = event.data
        if data is None:
            return None
        if data == _DONE:
            self.done = True
            return None
        try:
            chunk = _decode_chunk(data)
        except _UNREADABLE:
            self.malformed = True
            return None
        if chunk.error is not None:
            self.errored = True
        if chunk.usage is not None:
            self.usage = chunk.usage.counted()
        if chunk.service_tier is not None:
            self.service_tier = chunk.service_tier
        for choice in chunk.choices or ():
            if choice.finish_reason is not None:
                self._finished[choice.index] = choice.finish_reason
            if choice.delta is not None:
                self._count(choice.delta)
        return chunk

    def _count(self, delta: _Delta) -> None:
        characters, calls = _said(delta)
        self.tool_calls += calls
        if characters:
            self.pieces += 1
            self.characters += characters

    def _without_usage(self, event: Event) -> bytes:
        chunk = self._read(event)
        if chunk is None or b'"usage"' not in event.raw:
            return event.raw
        if not chunk.choices and chunk.usage is not None:
            return b""
        return _strip_usage(event)


def _strip_usage(event: Event) -> bytes:
    """Take the member `usage` out of an event, every other byte as it was."""
    if event.raw.count(b'"usage"') == 1 and b',"usage":null' in event.raw:
        # Unescaped quotes cannot stand inside a JSON string, so this is a member and no text.
        return event.raw.replace(b',"usage":null', b"", 1)
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
