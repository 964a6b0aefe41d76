"""A response in its two forms on the wire: one object, or events that build it up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from proxy.simulator.endpoint import Frame, Stamp
from proxy.simulator.heads import JSON

__all__ = ["ResponseAnswer"]

_ERROR_EVENT = b"event: error\ndata: " + msgspec.json.encode(
    {
        "type": "error",
        "sequence_number": 0,
        "code": "server_error",
        "message": "The server had an error while processing your request.",
        "param": None,
    }
) + b"\n\n"  # fmt: skip


class _FrameMaker(Protocol):
    def __call__(self, kind: str, members: Mapping[str, object], tokens: int = 0) -> Frame: ...


@dataclass(frozen=True, slots=True)
class ResponseAnswer:
    """The answer to one request: text in pieces, or a call of `tool` with its arguments. See `endpoint.Answer`."""

    model: str
    pieces: tuple[str, ...]
    cut: bool
    """It was longer than it was allowed to be."""
    tool: str | None
    input_tokens: int
    limit_tokens: int
    stream: bool
    background: bool
    echoed: Mapping[str, object]
    """Members of the request that the answer repeats."""
    terminator: bytes = b""
    error_event: bytes = _ERROR_EVENT
    content_type: str = JSON

    @property
    def pauses(self) -> int:
        """One between any two pieces of text."""
        return max(self.output_tokens - 1, 0)

    @property
    def output_tokens(self) -> int:
        """Pieces of text."""
        return len(self.pieces)

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        return msgspec.json.encode(self._last(stamp, usage=usage))

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:
        """The streamed form: numbered events, the last with the whole response."""
        numbers = itertools.count()

        def frame(kind: str, members: Mapping[str, object], tokens: int = 0) -> Frame:
            event = {"type": kind, "sequence_number": next(numbers), **members}
            return Frame(f"event: {kind}\ndata: ".encode() + msgspec.json.encode(event) + b"\n\n", tokens)

        begun = {"response": self._response(stamp, "in_progress", [])}
        yield frame("response.created", begun)
        yield frame("response.in_progress", begun)
        item = self._item(stamp, "in_progress", None)
        yield frame("response.output_item.added", {"output_index": 0, "item": item})
        yield from self._text(stamp, frame) if self.tool is None else self._arguments(stamp, frame)
        last = self._last(stamp, usage=usage)
        item = self._item(stamp, str(last["status"]), "".join(self.pieces))
        yield frame("response.output_item.done", {"output_index": 0, "item": item})
        yield frame(f"response.{last['status']}", {"response": last})

    def _text(self, stamp: Stamp, frame: _FrameMaker) -> Iterator[Frame]:
        place = {"item_id": f"msg_{stamp.serial}", "output_index": 0, "content_index": 0}
        yield frame("response.content_part.added", {**place, "part": _part("")})
        for piece in self.pieces:
            yield frame("response.output_text.delta", {**place, "delta": piece, "logprobs": []}, 1)
        text = "".join(self.pieces)
        yield frame("response.output_text.done", {**place, "text": text, "logprobs": []})
        yield frame("response.content_part.done", {**place, "part": _part(text)})

    def _arguments(self, stamp: Stamp, frame: _FrameMaker) -> Iterator[Frame]:
        place = {"item_id": f"fc_{stamp.serial}", "output_index": 0}
        for piece in self.pieces:
            yield frame("response.function_call_arguments.delta", {**place, "delta": piece}, 1)
        text = "".join(self.pieces)
        yield frame("response.function_call_arguments.done", {**place, "name": self.tool, "arguments": text})

    def _item(self, stamp: Stamp, status: str, text: str | None) -> dict[str, object]:
        """The message or the call; without `text` as it is when it begins."""
        if self.tool is None:
            content = [] if text is None else [_part(text)]
            head = {"id": f"msg_{stamp.serial}", "type": "message", "status": status, "role": "assistant"}
            return {**head, "content": content}
        head = {"id": f"fc_{stamp.serial}", "type": "function_call", "status": status, "name": self.tool}
        return {**head, "call_id": f"call_{stamp.serial}", "arguments": text or ""}

    def _last(self, stamp: Stamp, *, usage: bool) -> dict[str, object]:
        """The response as it is when it has ended."""
        if self.background:
            return self._response(stamp, "queued", [])
        status = "incomplete" if self.cut else "completed"
        response = self._response(stamp, status, [self._item(stamp, status, "".join(self.pieces))])
        if self.cut:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        if usage:
            response["usage"] = {
                "input_tokens": self.input_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": self.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": self.input_tokens + self.output_tokens,
            }
        return response

    def _response(self, stamp: Stamp, status: str, output: list[object]) -> dict[str, object]:
        return {
            "id": f"resp_{stamp.serial}",
            "object": "response",
            "created_at": stamp.created,
            "status": status,
            "background": self.background,
            "error": None,
            "incomplete_details": None,
            "model": self.model,
            "output": output,
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
            "usage": None,
            "user": None,
            **self.echoed,
        }


def _part(text: str) -> dict[str, object]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
