"""What an endpoint of the simulated upstream gives the server: an answer, plain or in frames, or bytes of any kind.

A new endpoint is one function from a request body to an `Answer`, and a row in the table of `routes.py`; one that needs
more than the body (a form, the query, ids of its path) takes all that was `Asked`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from proxy.simulator.heads import JSON
from proxy.simulator.multipart import Form
from proxy.simulator.refusal import Refusal, error_body

__all__ = [
    "ERROR_EVENT", "Answer", "Asked", "Blob", "Endpoint", "Frame", "Operation", "Stamp", "Static", "object_of",
    "of_body",
]  # fmt: skip

ERROR_EVENT = b"data: " + error_body("The server had an error while processing your request.", "server_error") + b"\n\n"
"""An error in the middle of a stream, as all but the Responses API tell it."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What differs between two answers to the same request."""

    serial: str
    """Twenty-nine letters and digits, of which an id is made."""
    created: int
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One event of a stream, as it is written."""

    data: bytes
    tokens: int = 0
    """Pieces of text in it."""


class Answer(Protocol):
    """A computed answer. The same for a plain request and a streamed one."""

    @property
    def model(self) -> str:
        """The snapshot that answers; empty when no model does."""
        ...

    @property
    def input_tokens(self) -> int:
        """Prompt tokens of its usage."""
        ...

    @property
    def output_tokens(self) -> int:
        """Completion tokens of its usage."""
        ...

    @property
    def limit_tokens(self) -> int:
        """What a token limit is charged."""
        ...

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        ...

    @property
    def pauses(self) -> int:
        """How often its stream pauses between two pieces."""
        ...

    @property
    def content_type(self) -> str:
        """Of the plain form."""
        ...

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        ...

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:
        """The streamed form, without the terminator."""
        ...

    @property
    def terminator(self) -> bytes:
        """The last event of a stream; empty where the protocol has none."""
        ...

    @property
    def error_event(self) -> bytes:
        """How an error in the middle of a stream is told."""
        ...


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are no JSON: the content of a file, sound. They go out piece by piece and never use tokens."""

    pieces: Callable[[], Iterator[bytes]]
    content_type: str
    length: int | None = None
    """None: nobody knows before the end, so they go out chunked."""
    model: str = ""
    limit_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, as far as an endpoint may look at it."""

    body: bytes
    """Empty for a form that was too large to be kept."""
    stamp: Stamp
    ids: tuple[str, ...] = ()
    """What stands in the path, in its order."""
    query: Mapping[str, str] = field(default_factory=dict)
    form: Form | None = None

    @property
    def id(self) -> str:
        """The first id of the path."""
        return self.ids[0]

    def needed_form(self) -> Form:
        """The form. Raises `Refusal` where the body is none."""
        if self.form is None:
            raise Refusal(400, "The body must be multipart/form-data.")
        return self.form


Endpoint = Callable[[bytes], Answer]
"""Computes an answer from a request body. Raises `Refusal`."""
Operation = Callable[[Asked], Answer | Blob]
"""The same from all of a request."""


def of_body(endpoint: Endpoint) -> Operation:
    """The operation that looks at nothing but the body."""
    return lambda asked: endpoint(asked.body)


@dataclass(frozen=True, slots=True)
class Static:
    """An answer that is always the same and uses no tokens."""

    content: bytes
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    limit_tokens: int = 0
    stream: bool = False
    terminator: bytes = b""
    error_event: bytes = b""
    pauses: int = 0
    content_type: str = JSON

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:  # noqa: ARG002 - nothing in it varies
        """The content."""
        return self.content

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - nothing in it varies
        """None: it is never streamed."""
        return iter(())


def object_of(members: Mapping[str, object]) -> Static:
    """An answer that is one JSON object."""
    return Static(msgspec.json.encode(members))
