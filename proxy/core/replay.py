"""One chat completion in its two forms: chunks -> completion and completion -> chunks.

`assemble(explode(x)) == x`, and how a stream was cut or interleaved makes no difference. What one of the forms has no
place for is `NotTellable`: a member nobody has heard of, audio, a choice without an end. Nothing is dropped in silence
but `obfuscation`, which is padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from proxy.core.assemble import together
from proxy.core.chat_forms import Chunk, Completion, NotTellable
from proxy.core.explode import apart
from proxy.core.sse import SseParser
from proxy.core.strict_json import JsonObject

__all__ = [
    "AS_IT_CAME",
    "BOTH_FORMS",
    "EACH_FORM",
    "Form",
    "NotTellable",
    "Telling",
    "assemble",
    "completion_of",
    "explode",
    "retold",
    "stream_of",
]

_DONE = b"[DONE]"
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_decode_chunk = msgspec.json.Decoder(Chunk).decode
_decode_completion = msgspec.json.Decoder(Completion).decode
_decode_object = msgspec.json.Decoder(JsonObject).decode
_encode = msgspec.json.Encoder().encode


class Form(StrEnum):
    """How an answer is framed."""

    PLAIN = "plain"
    STREAM = "stream"


def assemble(chunks: Sequence[JsonObject]) -> JsonObject:
    """Put the `chat.completion.chunk` objects of one whole stream together. Raises `NotTellable`."""
    try:
        read = msgspec.convert(chunks, list[Chunk])
    except msgspec.ValidationError as error:
        raise NotTellable(str(error)) from None
    return together(read)


def explode(completion: JsonObject, *, include_usage: bool) -> list[JsonObject]:
    """Take a `chat.completion` apart into chunks. Raises `NotTellable`.

    Of each choice: a chunk with the role, text and calls in large pieces, a chunk with the finish reason. With
    `include_usage` a last chunk has the usage and every other one `"usage": null`, as OpenAI sends them.
    """
    try:
        read = msgspec.convert(completion, Completion)
    except msgspec.ValidationError as error:
        raise NotTellable(str(error)) from None
    return list(apart(read, include_usage=include_usage))


def completion_of(stream: bytes) -> bytes:
    """Turn the bytes of a stream, up to its `[DONE]`, into those of a plain answer. Raises `NotTellable`."""
    try:
        chunks = [_decode_chunk(data) for data in _events(stream)]
    except _UNREADABLE as error:
        raise NotTellable(str(error)) from None
    return _encode(together(chunks))


def stream_of(completion: bytes, *, include_usage: bool) -> bytes:
    """Turn the bytes of a plain answer into those of a stream. Raises `NotTellable`."""
    try:
        read = _decode_completion(completion)
    except _UNREADABLE as error:
        raise NotTellable(str(error)) from None
    return _stream(apart(read, include_usage=include_usage))


def retold(stream: bytes, *, include_usage: bool) -> bytes:
    """Write a stream that came with usage once more, without its obfuscation, and without usage unless wanted.

    For an answer that is not tellable: every other member stays. Raises `NotTellable` for what is no whole stream.
    """
    try:
        chunks = [_decode_object(data) for data in _events(stream)]
    except _UNREADABLE as error:
        raise NotTellable(str(error)) from None
    if not include_usage:
        chunks = [chunk for chunk in chunks if chunk.get("choices") or chunk.get("usage") is None]
    dropped = {"obfuscation"} if include_usage else {"obfuscation", "usage"}
    return _stream({name: value for name, value in chunk.items() if name not in dropped} for chunk in chunks)


def _events(stream: bytes) -> Iterator[bytes]:
    for event in SseParser(len(stream)).feed(stream):
        if event.data == _DONE:
            return
        if event.data is not None:
            yield event.data
    raise NotTellable("a stream without its end")


def _stream(chunks: Iterable[JsonObject]) -> bytes:
    return b"".join([*(b"data: " + _encode(chunk) + b"\n\n" for chunk in chunks), b"data: " + _DONE + b"\n\n"])


class _Retold(Protocol):
    def __call__(self, kept: bytes, /, *, include_usage: bool) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Telling:
    """How the answers of an endpoint are told in the form that is asked for. Each raises `NotTellable`."""

    plain_of: Callable[[bytes], bytes]
    """A plain answer of the bytes of a stream."""
    stream_of: _Retold
    """A stream of a plain answer."""
    retold: _Retold
    """A stream once more."""


def _no_plain(_: bytes) -> bytes:
    raise NotTellable("a stream tells itself alone")


def _no_stream(_: bytes, /, *, include_usage: bool) -> bytes:  # noqa: ARG001 - nothing is told
    raise NotTellable("a plain answer tells itself alone")


def _unchanged(stream: bytes, /, *, include_usage: bool) -> bytes:  # noqa: ARG001 - it is told always
    return stream


BOTH_FORMS = Telling(plain_of=completion_of, stream_of=stream_of, retold=retold)
EACH_FORM = Telling(plain_of=_no_plain, stream_of=_no_stream, retold=retold)
"""Each form is kept by itself."""
AS_IT_CAME = Telling(plain_of=_no_plain, stream_of=_no_stream, retold=_unchanged)
"""So is it here, and a stream is told byte for byte."""
