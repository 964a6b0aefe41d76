"""Speech: a text as sound, in bytes that follow from model, voice and text alone.

Counting rule, for the models that tell: one token for every four characters of the text and the instructions or part of
them; twenty for each piece of sound, of which there is one for every four characters of the text or part of them.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat_request import decode
from proxy.simulator.endpoint import ERROR_EVENT, Answer, Asked, Blob, Frame, Operation, Stamp
from proxy.simulator.heads import JSON
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import PIECE_CHARACTERS, digest_of

__all__ = ["speech_operation"]

_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
_PIECE_BYTES = 960
_PIECE_TOKENS = 20
_OLDER = frozenset({"tts-1", "tts-1-hd"})
_SAMPLES_PER_SECOND, _SAMPLE_BYTES = 24_000, 2
_UNKNOWN_LENGTH = 0xFFFF_FFFF


class _Voice(msgspec.Struct, frozen=True):
    id: str


class _Request(msgspec.Struct, frozen=True):
    model: str
    input: Annotated[str, msgspec.Meta(min_length=1, max_length=4_096)]
    voice: str | _Voice
    instructions: str = ""
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: Annotated[float, msgspec.Meta(ge=0.25, le=4)] | None = None
    stream_format: Literal["audio", "sse"] | None = None


_DECODER = msgspec.json.Decoder(_Request)


def speech_operation(behaviour: Behaviour) -> Operation:
    """`POST /v1/audio/speech`: sound as it is, or in events."""

    def operation(asked: Asked) -> Answer | Blob:
        request = decode(_DECODER, asked.body)
        model = resolve(request.model, ModelKind.SPEECH)
        kind = request.response_format or "mp3"
        digest = digest_of(behaviour.seed, model, repr(request.voice), request.input, request.instructions, kind)
        count = -(-len(request.input) // PIECE_CHARACTERS)
        limit_tokens = -(-(len(request.input) + len(request.instructions)) // PIECE_CHARACTERS)
        if request.stream_format != "sse":
            return Blob(lambda: _sound(digest, count, kind), _TYPES[kind], model=model, limit_tokens=limit_tokens)
        if model in _OLDER:
            raise Refusal(400, f"The model `{model}` does not stream events.", param="stream_format")
        return _SpeechAnswer(model, digest, count, kind, limit_tokens)

    return operation


@dataclass(frozen=True, slots=True)
class _SpeechAnswer:
    """Sound in events; see `endpoint.Answer`."""

    model: str
    digest: bytes
    count: int
    kind: str
    input_tokens: int
    stream: bool = True
    terminator: bytes = b""
    error_event: bytes = ERROR_EVENT
    content_type: str = JSON

    @property
    def output_tokens(self) -> int:
        """Of the sound."""
        return self.count * _PIECE_TOKENS

    @property
    def limit_tokens(self) -> int:
        """What a token limit is charged."""
        return self.input_tokens

    @property
    def pauses(self) -> int:
        """One between any two pieces."""
        return self.count - 1

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """All of its events: it has no other form."""
        return b"".join(frame.data for frame in self.frames(stamp, usage=usage))

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - it has no id
        """One event for each piece, and one for the end."""
        for piece in _sound(self.digest, self.count, self.kind):
            audio = base64.b64encode(piece).decode()
            yield _frame({"type": "speech.audio.delta", "audio": audio}, _PIECE_TOKENS)
        total = self.input_tokens + self.output_tokens
        used = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "total_tokens": total}
        yield _frame({"type": "speech.audio.done", **({"usage": used} if usage else {})})


def _frame(event: dict[str, object], tokens: int = 0) -> Frame:
    return Frame(b"data: " + msgspec.json.encode(event) + b"\n\n", tokens)


def _sound(digest: bytes, count: int, kind: str) -> Iterator[bytes]:
    for number in range(count):
        piece = hashlib.shake_256(digest + number.to_bytes(4, "big")).digest(_PIECE_BYTES)
        yield _wave_head() + piece if kind == "wav" and number == 0 else piece


def _wave_head() -> bytes:
    """As a stream has it, whose length nobody knows."""
    rate = _SAMPLES_PER_SECOND * _SAMPLE_BYTES
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, _SAMPLES_PER_SECOND, rate, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES)
    return (
        struct.pack("<4sI4s", b"RIFF", _UNKNOWN_LENGTH, b"WAVE") + form + struct.pack("<4sI", b"data", _UNKNOWN_LENGTH)
    )
