"""Images in their two forms on the wire: one object, or an event for each image and for what precedes it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from proxy.simulator.endpoint import Frame, Stamp
from proxy.simulator.heads import JSON
from proxy.simulator.pictures import picture
from proxy.simulator.refusal import error_fields
from proxy.simulator.words import digest_of

__all__ = ["ImageAnswer"]

_ERROR = {"type": "error", "error": error_fields("The server had an error while drawing.", "image_generation_error")}
_ERROR_EVENT = b"event: error\ndata: " + msgspec.json.encode(_ERROR) + b"\n\n"


@dataclass(frozen=True, slots=True)
class ImageAnswer:
    """The images of one request; see `endpoint.Answer`. `look` and the tokens are empty for models without usage."""

    model: str
    kind: str
    """What its events are called, before the dot."""
    digests: tuple[bytes, ...]
    """One for each image, of which it is drawn."""
    as_url: bool = False
    revised_prompt: str | None = None
    look: Mapping[str, str] = field(default_factory=dict)
    input_details: Mapping[str, int] = field(default_factory=dict)
    output_tokens: int = 0
    partials: int = 0
    """Partial images of a stream."""
    partial_tokens: int = 0
    stream: bool = False
    terminator: bytes = b""
    error_event: bytes = _ERROR_EVENT
    content_type: str = JSON

    @property
    def input_tokens(self) -> int:
        """Of the prompt and of the images sent in."""
        return sum(self.input_details.values())

    @property
    def limit_tokens(self) -> int:
        """What a token limit is charged."""
        return self.input_tokens + self.output_tokens

    @property
    def pauses(self) -> int:
        """One before each image but the first."""
        return self.partials + len(self.digests) - 1

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        data = [self._entry(digest) for digest in self.digests]
        told = {"usage": self._usage()} if usage and self.look else {}
        return msgspec.json.encode({"created": stamp.created, **self.look, "data": data, **told})

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:
        """The streamed form: partial images of the first one, then each image, the last with the usage."""
        common = {"created_at": stamp.created, **self.look}
        for number in range(self.partials):
            image = picture(digest_of(self.digests[0], number))
            members = {"b64_json": _base64(image), "partial_image_index": number, **common}
            yield self._frame("partial_image", members, self.partial_tokens)
        drawn = self.output_tokens - self.partials * self.partial_tokens
        each, left = divmod(drawn, len(self.digests))
        for digest in self.digests:
            last = digest == self.digests[-1]
            told = {"usage": self._usage()} if usage and last else {}
            members = {"b64_json": _base64(picture(digest)), **common, **told}
            yield self._frame("completed", members, each + left * last)

    def _entry(self, digest: bytes) -> dict[str, object]:
        if self.as_url:
            entry: dict[str, object] = {"url": f"https://images.invalid/{digest.hex()[:32]}.png"}
        else:
            entry = {"b64_json": _base64(picture(digest))}
        return entry | ({"revised_prompt": self.revised_prompt} if self.revised_prompt else {})

    def _frame(self, what: str, members: Mapping[str, object], tokens: int) -> Frame:
        name = f"{self.kind}.{what}"
        event = msgspec.json.encode({"type": name, **members})
        return Frame(f"event: {name}\ndata: ".encode() + event + b"\n\n", tokens)

    def _usage(self) -> dict[str, object]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": dict(self.input_details),
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"image_tokens": self.output_tokens, "text_tokens": 0},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
