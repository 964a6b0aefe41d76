"""An answer of the Responses API, plain or as it passes: usage, how it ends, and what it has said.

Source: OpenAI's API specification, `ResponseStreamEvent`. Each event has a `type`; the last is one of
`response.completed`, `response.incomplete` and `response.failed`, carries the whole response, and is followed by
nothing. An error is an event of its own, flat: `{"type": "error", "code", "message", "param"}`.
"""

from __future__ import annotations

import msgspec

from proxy.core.answer import Completion
from proxy.core.count import TOOL_CALL_TOKENS, Said, Transcript
from proxy.core.estimate import text_tokens
from proxy.core.sse import Event, SseParser
from proxy.core.usage import NO_USAGE, Usage
from proxy.core.usage_forms import UNREADABLE, PlainAnswer, parse_plain

__all__ = ["ResponsesStream", "read_input_tokens", "read_response"]

_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
# Not those of a summary or of a transcript: what they tell was generated once, and is billed as what it sums up.
_PIECES = frozenset(
    {
        "response.output_text.delta",
        "response.refusal.delta",
        "response.reasoning_text.delta",
        "response.function_call_arguments.delta",
        "response.custom_tool_call_input.delta",
        "response.mcp_call_arguments.delta",
        "response.code_interpreter_call_code.delta",
    }
)
_GOING_ON = frozenset({"queued", "in_progress"})
_CALLS = frozenset({"function_call", "custom_tool_call", "mcp_call"})


class _Item(msgspec.Struct):
    type: str | None = None
    name: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: object = None
    item_id: str | None = None
    output_index: int | None = None
    content_index: int | None = None
    item: _Item | None = None
    response: PlainAnswer | None = None
    sequence_number: object = None


class _Part(msgspec.Struct):
    text: str | None = None
    refusal: str | None = None


class _Spoken(msgspec.Struct):
    type: str | None = None
    name: str | None = None
    arguments: str | None = None
    input: str | None = None
    content: list[_Part] | None = None


class _Whole(msgspec.Struct):
    output: list[_Spoken] | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Event).decode
_decode_whole = msgspec.json.Decoder(_Whole).decode


def read_response(body: bytes) -> Completion:
    """Read a plain response; one that cannot be read has no usage and is not storable."""
    answer = parse_plain(body)
    usage = answer.counted()
    try:
        whole = _decode_whole(body)
    except UNREADABLE:
        whole = _Whole()
    if usage is not None:
        storable = answer.status == "completed" and whole.error is None and bool(whole.output)
        return Completion(usage, answer.service_tier, storable=storable, counted_output_tokens=0)
    if answer.status in _GOING_ON:
        return Completion(None, answer.service_tier, storable=False, counted_output_tokens=0, unfinished=True)
    transcript = Transcript()
    for index, item in enumerate(whole.output or ()):
        transcript.calls += item.type in _CALLS
        for at, text in enumerate((item.name, item.arguments, item.input)):
            if text:
                transcript.add((index, at), text)
        for at, part in enumerate(item.content or ()):
            transcript.add((index, "content", at), part.text or part.refusal or "")
    counted = text_tokens(transcript.characters) + TOOL_CALL_TOKENS * transcript.calls
    return Completion(None, answer.service_tier, storable=False, counted_output_tokens=counted, said=transcript.said())


def read_input_tokens(_: bytes) -> Completion:
    """Read a count: it costs no tokens itself, and is kept nowhere."""
    return Completion(NO_USAGE, None, storable=False, counted_output_tokens=0, said=Said())


class ResponsesStream:
    """One streamed response. Every byte passes as it came: its usage is always sent and nothing is taken out."""

    __slots__ = (
        "_number",
        "_parser",
        "done",
        "errored",
        "malformed",
        "pieces",
        "service_tier",
        "status",
        "transcript",
        "usage",
    )

    def __init__(self) -> None:
        self._parser = SseParser()
        self._number = 0
        self.usage: Usage | None = None
        self.service_tier: str | None = None
        self.status: str | None = None
        """Of the response, once it has ended: `completed`, `incomplete`, `failed`."""
        self.done = False
        """Upstream has said all it had to say."""
        self.errored = False
        self.malformed = False
        self.pieces = 0
        self.transcript = Transcript()

    def feed(self, chunk: bytes) -> bytes:
        """Take upstream's next bytes, return what the client is to get now. Raises `EventTooLongError`."""
        for event in self._parser.feed(chunk):
            self._read(event)
        return chunk

    def rest(self) -> bytes:
        """Nothing: every byte has passed."""
        return b""

    def error_event(self, message: str, code: str) -> bytes:
        """The event that tells the client that upstream broke off."""
        error = {"type": "error", "sequence_number": self._number, "code": code, "message": message, "param": None}
        return b"event: error\ndata: " + msgspec.json.encode(error) + b"\n\n"

    @property
    def passed_in_half(self) -> bool:
        """Whether the client has the beginning of an event and not its end."""
        return bool(self._parser.pending)

    @property
    def complete(self) -> bool:
        """Whether upstream ended it without an error."""
        return self.done and not self.errored

    @property
    def storable(self) -> bool:
        """Whether the answer may be given to the next one who asks the same."""
        return self.complete and not self.malformed and self.status == "completed" and self.usage is not None

    @property
    def counted_output_tokens(self) -> int:
        """A count that needs no tokenizer, for a stream whose usage did not come."""
        return max(self.pieces, text_tokens(self.transcript.characters)) + TOOL_CALL_TOKENS * self.transcript.calls

    def _read(self, event: Event) -> None:
        if event.data is None:
            return
        try:
            found = _decode(event.data)
        except UNREADABLE:
            self.malformed = True
            return
        if isinstance(found.sequence_number, int):
            self._number = found.sequence_number + 1
        if found.type in _PIECES and isinstance(found.delta, str):
            self.pieces += 1
            self.transcript.add((found.type, found.output_index, found.content_index, found.item_id), found.delta)
        elif found.type == "response.output_item.added" and found.item is not None and found.item.type in _CALLS:
            self.transcript.calls += 1
            self.transcript.add((found.type, found.output_index), found.item.name or "")
        elif found.type == "error":
            self.errored = self.done = True
        if found.response is not None:
            self._note(found.type, found.response)

    def _note(self, kind: str, response: PlainAnswer) -> None:
        """Take what an event says of the whole response; the last one counts."""
        self.usage = response.counted() or self.usage
        self.service_tier = response.service_tier or self.service_tier
        if kind in _LAST:
            self.status = response.status or kind.removeprefix("response.")
            self.done = True
            self.errored = self.errored or kind == "response.failed"
