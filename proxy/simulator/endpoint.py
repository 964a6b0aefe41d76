"""What an endpoint of the simulated upstream gives the server: an answer, plain or in frames.

A new endpoint is one function from a request body to an `Answer`, and a row in the server's table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from proxy.simulator.refusal import error_body

__all__ = ["ERROR_EVENT", "Answer", "Endpoint", "Frame", "Stamp", "Static"]

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


Endpoint = Callable[[bytes], Answer]
"""Computes an answer from a request body. Raises `Refusal`."""


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

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:  # noqa: ARG002 - nothing in it varies
        """The content."""
        return self.content

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - nothing in it varies
        """None: it is never streamed."""
        return iter(())
