"""Transcriptions and translations: text that follows from model, file and prompt alone, in all forms it is told in.

A file lasts one second for every 16,000 bytes or part of them. Counting rule, for the models that count tokens: ten for
each second, one for every four characters of the prompt or part of them, one for each piece of the text; the oldest
model counts seconds. A prompt that begins with `echo:` is answered with what comes after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat import ECHO
from proxy.simulator.endpoint import ERROR_EVENT, Answer, Asked, Frame, Operation, Stamp
from proxy.simulator.heads import JSON
from proxy.simulator.images import of_form
from proxy.simulator.models import ModelKind, resolve
from proxy.simulator.refusal import Refusal
from proxy.simulator.words import PIECE_CHARACTERS, digest_of, split, words

__all__ = ["transcriptions_operation", "translations_operation"]

_BYTES_A_SECOND = 16_000
_TOKENS_A_SECOND = 10
_OLDEST = "whisper-1"
_SEGMENT_PIECES = 8
TEXT = "text/plain; charset=utf-8"

_Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class _Request(msgspec.Struct, frozen=True):
    model: str
    response_format: _Format = "json"
    prompt: str = ""
    language: str = "english"
    temperature: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.0
    stream: bool = False


def transcriptions_operation(behaviour: Behaviour) -> Operation:
    """`POST /v1/audio/transcriptions`."""
    return lambda asked: _heard(asked, behaviour, "transcribe")


def translations_operation(behaviour: Behaviour) -> Operation:
    """`POST /v1/audio/translations`: into English; the oldest model alone does it, and tells no usage."""
    return lambda asked: _heard(asked, behaviour, "translate")


def _heard(asked: Asked, behaviour: Behaviour, task: str) -> Answer:
    form = asked.needed_form()
    file, request = form.file("file"), of_form(form, _Request)
    model = resolve(request.model, ModelKind.TRANSCRIPTION)
    oldest = model == _OLDEST
    if not oldest and (task == "translate" or request.response_format not in {"json", "text"}):
        message = f"The model `{model}` does not take response_format '{request.response_format}' to {task}."
        raise Refusal(400, message, param="response_format", code="unsupported_value")
    prompt = request.prompt
    digest = digest_of(behaviour.seed, model, task, file.sha256, prompt)
    pieces = split(prompt.removeprefix(ECHO)) if prompt.startswith(ECHO) else words(digest, behaviour.tokens)
    seconds = max(1, -(-file.length // _BYTES_A_SECOND))
    return _Transcript(
        model=model,
        task=task,
        pieces=tuple(pieces),
        seconds=seconds,
        form="json" if request.stream and not oldest else request.response_format,
        language="english" if task == "translate" else request.language,
        temperature=request.temperature,
        grains=tuple(form.fields.get("timestamp_granularities", ("segment",))),
        audio_tokens=0 if oldest else seconds * _TOKENS_A_SECOND,
        text_tokens=0 if oldest else -(-len(prompt) // PIECE_CHARACTERS),
        stream=request.stream and not oldest and task == "transcribe",
    )


@dataclass(frozen=True, slots=True)
class _Transcript:
    """What was heard; see `endpoint.Answer`."""

    model: str
    task: str
    pieces: tuple[str, ...]
    seconds: int
    form: _Format
    language: str
    temperature: float
    grains: tuple[str, ...]
    audio_tokens: int
    text_tokens: int
    stream: bool
    terminator: bytes = b""
    error_event: bytes = ERROR_EVENT

    @property
    def input_tokens(self) -> int:
        """Of sound and prompt; none where seconds are counted."""
        return self.audio_tokens + self.text_tokens

    @property
    def output_tokens(self) -> int:
        """Pieces of text; none where seconds are counted."""
        return len(self.pieces) if self.audio_tokens else 0

    @property
    def limit_tokens(self) -> int:
        """What a token limit is charged."""
        return self.input_tokens

    @property
    def pauses(self) -> int:
        """One between any two pieces of text."""
        return max(len(self.pieces) - 1, 0)

    @property
    def content_type(self) -> str:
        """Of the plain form."""
        return JSON if self.form.endswith("json") else TEXT

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:  # noqa: ARG002 - it has no id
        """The plain form; `usage` false leaves the usage out, and so do those that are no JSON."""
        told = {"usage": self._usage()} if usage and self.task == "transcribe" else {}
        if self.form == "json":
            return msgspec.json.encode({"text": self._text, **told})
        if self.form == "verbose_json":
            return msgspec.json.encode({**self._verbose(), **told})
        lines: dict[str, Callable[[], str]] = {"text": lambda: self._text + "\n", "srt": self._srt, "vtt": self._vtt}
        return lines[self.form]().encode()

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - it has no id
        """The streamed form: one event for each piece of text, and one with all of it."""
        for piece in self.pieces:
            yield _frame({"type": "transcript.text.delta", "delta": piece}, 1)
        told = {"usage": self._usage()} if usage else {}
        yield _frame({"type": "transcript.text.done", "text": self._text, **told})

    @property
    def _text(self) -> str:
        return "".join(self.pieces)

    def _usage(self) -> dict[str, object]:
        if not self.audio_tokens:
            return {"type": "duration", "seconds": self.seconds}
        return {
            "type": "tokens",
            "input_tokens": self.input_tokens,
            "input_token_details": {"text_tokens": self.text_tokens, "audio_tokens": self.audio_tokens},
            "output_tokens": self.output_tokens,
            "total_tokens": self.input_tokens + self.output_tokens,
        }

    def _segments(self) -> list[tuple[float, float, str]]:
        """Begin and end in seconds, and what is said between them."""
        count = max(1, -(-len(self.pieces) // _SEGMENT_PIECES))
        bounds = [round(self.seconds * number / count, 3) for number in range(count + 1)]
        texts = ["".join(self.pieces[at * _SEGMENT_PIECES : (at + 1) * _SEGMENT_PIECES]) for at in range(count)]
        return list(zip(bounds[:-1], bounds[1:], texts, strict=True))

    def _verbose(self) -> dict[str, object]:
        told: dict[str, object] = {
            "task": self.task,
            "language": self.language,
            "duration": float(self.seconds),
            "text": self._text,
        }
        if "segment" in self.grains:
            told["segments"] = [
                {
                    "id": number,
                    "seek": 0,
                    "start": start,
                    "end": end,
                    "text": text,
                    "tokens": [50_364 + number],
                    "temperature": self.temperature,
                    "avg_logprob": -0.25,
                    "compression_ratio": 1.5,
                    "no_speech_prob": 0.01,
                }
                for number, (start, end, text) in enumerate(self._segments())
            ]
        if "word" in self.grains:
            said = self._text.split()
            step = self.seconds / max(1, len(said))
            told["words"] = [
                {"word": word, "start": round(at * step, 3), "end": round((at + 1) * step, 3)}
                for at, word in enumerate(said)
            ]
        return told

    def _srt(self) -> str:
        return "".join(
            f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text.strip()}\n\n"
            for number, (start, end, text) in enumerate(self._segments(), 1)
        )

    def _vtt(self) -> str:
        return "WEBVTT\n\n" + "".join(
            f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text.strip()}\n\n" for start, end, text in self._segments()
        )


def _frame(event: dict[str, object], tokens: int = 0) -> Frame:
    return Frame(b"data: " + msgspec.json.encode(event) + b"\n\n", tokens)


def _clock(seconds: float, point: str) -> str:
    ms = round(seconds * 1_000)
    return f"{ms // 3_600_000:02d}:{ms // 60_000 % 60:02d}:{ms // 1_000 % 60:02d}{point}{ms % 1_000:03d}"
