"""Answers with images or audio in them, followed as they pass: what is read of them is their usage.

Source of the forms: OpenAI's API specification. Plain: `ImagesResponse`, `CreateTranscriptionResponseJson` and its
siblings, whose usage is one of tokens or one of seconds. Streamed: `image_generation.completed`,
`image_edit.completed`, `speech.audio.done` and `transcript.text.done` are the last events, and carry it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from proxy.core.members import MemberScanner
from proxy.core.usage import Usage
from proxy.core.usage_forms import UNREADABLE

__all__ = ["Media", "MediaAnswer", "Metered", "image_usage", "speech_usage", "transcript_usage"]

_OURS = ("image_", "speech.", "transcript.")
"""How the types of OpenAI's events begin. Other upstreams have streams of their own, whose ends nobody can know."""
_LAST = frozenset({"image_generation.completed", "image_edit.completed", "speech.audio.done", "transcript.text.done"})
_BEYOND_ANY_METER = 2**40


class _InputDetails(msgspec.Struct):
    text_tokens: int | None = None
    image_tokens: int | None = None
    audio_tokens: int | None = None
    cached_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    text_tokens: int | None = None
    image_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _InputDetails | None = None
    input_token_details: _InputDetails | None = None
    output_tokens_details: _OutputDetails | None = None


@dataclass(frozen=True, slots=True)
class Metered:
    """Tokens of an answer, and whether the kinds that prices have tell what they cost."""

    usage: Usage
    priceable: bool


Read = Callable[[_Usage], Metered | None]


def image_usage(usage: _Usage) -> Metered | None:
    """Tokens of images.

    Images and text that are read have prices of their own, and so have images and text that are made: a price table
    has one for what is read, which is text, and one for what is made, which are images. Anything else has no price.
    """
    read, made = usage.input_tokens_details or _InputDetails(), usage.output_tokens_details or _OutputDetails()
    cached = read.cached_tokens or 0
    counted = _counted(usage, cached_input_tokens=cached)
    priceable = not (read.image_tokens or made.text_tokens) and usage.input_tokens_details is not None
    return None if counted is None else Metered(counted, priceable)


def speech_usage(usage: _Usage) -> Metered | None:
    """Tokens of speech: all that is made is audio."""
    counted = _counted(usage, audio_output_tokens=usage.output_tokens or 0)
    return None if counted is None else Metered(counted, priceable=True)


def transcript_usage(usage: _Usage) -> Metered | None:
    """Tokens of a transcription; one that is paid by its seconds has none."""
    details = usage.input_token_details or usage.input_tokens_details
    counted = _counted(usage, audio_input_tokens=(details.audio_tokens or 0) if details else 0)
    # Without details nobody knows how much of it was audio.
    return None if counted is None else Metered(counted, priceable=details is not None)


def _counted(usage: _Usage, **parts: int) -> Usage | None:
    if usage.input_tokens is None and usage.output_tokens is None:
        return None
    counts = (usage.input_tokens or 0, usage.output_tokens or 0, *parts.values())
    if not all(0 <= count < _BEYOND_ANY_METER for count in counts):
        return None
    return Usage(counts[0], counts[1], **parts)


_decode_usage = msgspec.json.Decoder(_Usage).decode


class MediaAnswer(Protocol):
    """One answer as it passes."""

    def feed(self, chunk: bytes) -> None:
        """Take upstream's next bytes."""
        ...

    @property
    def metered(self) -> Metered | None:
        """What it has said it used."""
        ...

    @property
    def done(self) -> bool:
        """Whether it has said all that an account needs; some never say it."""
        ...

    @property
    def errored(self) -> bool:
        """Whether it is a stream that has told of an error."""
        ...

    @property
    def acceptable(self) -> bool:
        """Whether what has come so far may be the answer of such an endpoint."""
        ...

    @property
    def whole(self) -> bool:
        """Whether it may end here."""
        ...

    @property
    def between_events(self) -> bool:
        """Whether it is a stream that more is to come of, and all that has come is whole events."""
        ...


@dataclass(frozen=True, slots=True)
class Media:
    """How the answers of one endpoint are followed."""

    read: Read

    def follow(self, content_type: str) -> MediaAnswer:
        """What follows an answer of this type."""
        match content_type.partition(";")[0].strip().lower():
            case "text/event-stream":
                return _Events(self.read)
            case "application/json":
                return _Object(self.read)
            case "text/html":
                # A page of some machine on the way.
                return _Opaque(acceptable=False)
            case _:
                return _Opaque()


class _Opaque:
    """Sound, or text without a frame: it says nothing of itself."""

    __slots__ = ("acceptable", "between_events", "done", "errored", "metered", "whole")

    def __init__(self, *, acceptable: bool = True) -> None:
        self.metered: Metered | None = None
        self.done = False
        self.acceptable = acceptable
        self.whole = True
        self.errored = self.between_events = False

    def feed(self, chunk: bytes) -> None:
        """Nothing is looked at."""


class _Object:
    """One JSON object."""

    __slots__ = ("_read", "_scanner", "between_events", "done", "errored")

    def __init__(self, read: Read) -> None:
        self._read = read
        self._scanner = MemberScanner(("usage",))
        self.done = self.errored = self.between_events = False

    def feed(self, chunk: bytes) -> None:
        """Look for its usage."""
        self._scanner.feed(chunk)
        self.done = self._scanner.ended

    @property
    def metered(self) -> Metered | None:
        """What it used, once it has ended: of several members of one name the last counts."""
        return _metered(self._scanner, self._read) if self._scanner.ended else None

    @property
    def acceptable(self) -> bool:
        """Whether it is an object so far."""
        return not self._scanner.broken

    @property
    def whole(self) -> bool:
        """Whether it is closed, with nothing behind it."""
        return self._scanner.ended and not self._scanner.broken


class _Events:
    """A stream of events, each of which is one JSON object, however long."""

    __slots__ = ("_events", "_field", "_is_fresh", "_known", "_read", "_scanner", "_value", "acceptable", "done",
                 "errored", "metered")  # fmt: skip

    def __init__(self, read: Read) -> None:
        self._read = read
        self._scanner = self._new()
        self._field = b""
        """What the line has so far, until it is known whether it is data."""
        self._value = False
        """The rest of the line is data."""
        self._known = False
        self._events = 0
        self._is_fresh = True
        """Nothing has come of the next event."""
        self.metered: Metered | None = None
        self.done = False
        self.errored = False
        self.acceptable = True

    @staticmethod
    def _new() -> MemberScanner:
        return MemberScanner(("type", "usage", "error"))

    def feed(self, chunk: bytes) -> None:
        """Look for events that carry usage. Lines end with LF, with or without CR."""
        at = 0
        while at < len(chunk):
            end = chunk.find(b"\n", at)
            stop = len(chunk) if end < 0 else end
            self._line(chunk[at:stop])
            if end >= 0:
                self._end_line()
            at = stop + 1

    @property
    def between_events(self) -> bool:
        """Whether the last event has not come yet, and nothing of the next."""
        return self._is_fresh and not (self.done or self.errored)

    def _line(self, piece: bytes) -> None:
        self._is_fresh = self._is_fresh and not piece
        if not self._value and len(self._field) < len(_DATA):
            taken = len(_DATA) - len(self._field)
            self._field, piece = self._field + piece[:taken], piece[taken:]
            self._value = self._field == _DATA
        if self._value:
            self._scanner.feed(piece)

    def _end_line(self) -> None:
        if not self._field.strip(b"\r"):
            self._end_event()
        self._field, self._value = b"", False

    def _end_event(self) -> None:
        scanner, self._scanner, self._is_fresh = self._scanner, self._new(), True
        kind = scanner.values.get("type", b"").strip(b'"').decode("utf-8", "replace")
        self._events += 1
        self._known = self._known or kind.startswith(_OURS)
        if kind in _LAST:
            self.metered = _metered(scanner, self._read) or self.metered
            self.done = True
        elif kind == "error" or scanner.values.get("error", b"null") != b"null":
            self.errored = True

    @property
    def whole(self) -> bool:
        """Whether its last event has come, and no error; another protocol's has to be cut between two events."""
        ended = self._events > 0 and self._is_fresh and not self._known
        return not self.errored and (self.done or ended)


_DATA = b"data:"


def _metered(scanner: MemberScanner, read: Read) -> Metered | None:
    try:
        usage = _decode_usage(scanner.values["usage"])
    except (KeyError, *UNREADABLE):
        return None
    return read(usage)
