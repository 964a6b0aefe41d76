"""A chat completion in its two forms on the wire.

What does not differ between two answers to the same request is encoded once; an id and a time are put before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import msgspec

from proxy.simulator.endpoint import ERROR_EVENT, Frame, Stamp
from proxy.simulator.heads import JSON

__all__ = ["ChatAnswer", "Choice"]

_FINGERPRINT = "fp_5f20662549"
_TIER = "default"
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice: text in pieces, a refusal, or a call of `tool` with the pieces of its arguments.

    `alternatives`: tokens told beside each of its own; None: nothing is told of how likely they are.
    """

    index: int
    pieces: tuple[str, ...]
    finish_reason: str
    tool: str | None
    call_id: str
    refuses: bool = False
    alternatives: int | None = None

    def message(self) -> dict[str, object]:
        """The message of the plain form."""
        text = "".join(self.pieces)
        if self.refuses:
            return {"role": "assistant", "content": None, "refusal": text, "annotations": []}
        if self.tool is None:
            return {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        function = {"name": self.tool, "arguments": text}
        calls = [{"id": self.call_id, "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None, "annotations": []}

    def opening(self) -> dict[str, object]:
        """The first delta, which carries the role."""
        if self.refuses:
            return {"role": "assistant", "content": None, "refusal": ""}
        if self.tool is None:
            return {"role": "assistant", "content": "", "refusal": None}
        function = {"name": self.tool, "arguments": ""}
        calls = [{"index": 0, "id": self.call_id, "type": "function", "function": function}]
        return {"role": "assistant", "content": None, "tool_calls": calls, "refusal": None}

    def delta(self, piece: str) -> dict[str, object]:
        """The delta of one piece of text."""
        if self.refuses:
            return {"refusal": piece}
        if self.tool is None:
            return {"content": piece}
        return {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}

    def logprobs(self, pieces: tuple[str, ...]) -> dict[str, object] | None:
        """How likely these pieces were: numbers that follow from the piece, and in order beside it."""
        if self.alternatives is None:
            return None
        told = [_likely(piece, self.alternatives) for piece in pieces]
        return {"content": None, "refusal": told} if self.refuses else {"content": told, "refusal": None}


def _likely(piece: str, alternatives: int) -> dict[str, object]:
    def told(text: str, rank: int) -> dict[str, object]:
        return {"token": text, "logprob": -len(text) / 8 - rank, "bytes": list(text.encode("utf-8", "replace"))}

    others = [told(piece if rank == 0 else f"{piece}{rank}", rank) for rank in range(alternatives)]
    return {**told(piece, 0), "top_logprobs": others}


class _Plain(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    choices: msgspec.Raw
    usage: msgspec.Raw | msgspec.UnsetType
    service_tier: str
    system_fingerprint: str


class _ChunkHead(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    service_tier: str
    system_fingerprint: str


@dataclass(frozen=True)
class ChatAnswer:
    """The answer to one request; see `endpoint.Answer`."""

    model: str
    choices: tuple[Choice, ...]
    input_tokens: int
    limit_tokens: int
    stream: bool
    include_usage: bool
    terminator: bytes = _DONE
    error_event: bytes = ERROR_EVENT
    content_type: str = JSON

    @property
    def pauses(self) -> int:
        """One between any two pieces of text."""
        return max(self.output_tokens - 1, 0)

    @cached_property
    def output_tokens(self) -> int:
        """Pieces of text, over all choices."""
        return sum(len(choice.pieces) for choice in self.choices)

    @cached_property
    def _usage(self) -> bytes:
        cached = self.input_tokens // 128 * 128 if self.input_tokens >= 1_024 else 0
        return msgspec.json.encode(
            {
                "prompt_tokens": self.input_tokens,
                "completion_tokens": self.output_tokens,
                "total_tokens": self.input_tokens + self.output_tokens,
                "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 0,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            }
        )

    @cached_property
    def _plain_choices(self) -> bytes:
        return msgspec.json.encode(
            [
                {
                    "index": choice.index,
                    "message": choice.message(),
                    "logprobs": choice.logprobs(choice.pieces),
                    "finish_reason": choice.finish_reason,
                }
                for choice in self.choices
            ]
        )

    @cached_property
    def _deltas(self) -> tuple[Frame, ...]:
        """The frames from `"choices"` to the end of that list: roles, pieces in turn, finish reasons."""
        frames = [_frame(choice.index, choice.opening()) for choice in self.choices]
        for turn in range(max(len(choice.pieces) for choice in self.choices)):
            frames += [
                _frame(
                    choice.index,
                    choice.delta(choice.pieces[turn]),
                    tokens=1,
                    logprobs=choice.logprobs(choice.pieces[turn : turn + 1]),
                )
                for choice in self.choices
                if turn < len(choice.pieces)
            ]
        frames += [_frame(choice.index, {}, choice.finish_reason) for choice in self.choices]
        return tuple(frames)

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        return msgspec.json.encode(
            _Plain(
                id=f"chatcmpl-{stamp.serial}",
                object="chat.completion",
                created=stamp.created,
                model=self.model,
                choices=msgspec.Raw(self._plain_choices),
                usage=msgspec.Raw(self._usage) if usage else msgspec.UNSET,
                service_tier=_TIER,
                system_fingerprint=_FINGERPRINT,
            )
        )

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:
        """The streamed form: a usage field in every chunk and a last chunk for it, where they were asked for."""
        head = msgspec.json.encode(
            _ChunkHead(
                id=f"chatcmpl-{stamp.serial}",
                object="chat.completion.chunk",
                created=stamp.created,
                model=self.model,
                service_tier=_TIER,
                system_fingerprint=_FINGERPRINT,
            )
        )
        head = b"data: " + head[:-1] + b","
        usage = usage and self.include_usage
        tail = b',"usage":null}\n\n' if usage else b"}\n\n"
        for delta in self._deltas:
            yield Frame(head + delta.data + tail, delta.tokens)
        if usage:
            yield Frame(head + b'"choices":[],"usage":' + self._usage + b"}\n\n")


def _frame(
    index: int,
    delta: dict[str, object],
    finish_reason: str | None = None,
    tokens: int = 0,
    logprobs: dict[str, object] | None = None,
) -> Frame:
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return Frame(b'"choices":[' + msgspec.json.encode(choice) + b"]", tokens)
