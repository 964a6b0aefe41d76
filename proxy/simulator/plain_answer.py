"""An answer that is never streamed: embeddings, moderations, counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from proxy.simulator.endpoint import Frame, Stamp
from proxy.simulator.heads import JSON

__all__ = ["PlainAnswer"]


@dataclass(frozen=True, slots=True)
class PlainAnswer:
    """See `endpoint.Answer`; `write` gives the members of its body, without the usage."""

    model: str
    input_tokens: int
    write: Callable[[Stamp], dict[str, object]]
    usage: Mapping[str, int] | None = None
    output_tokens: int = 0
    stream: bool = False
    terminator: bytes = b""
    error_event: bytes = b""
    pauses: int = 0
    content_type: str = JSON

    @property
    def limit_tokens(self) -> int:
        """What a token limit is charged."""
        return self.input_tokens

    def body(self, stamp: Stamp, *, usage: bool) -> bytes:
        """The plain form; `usage` false leaves the usage out."""
        members = self.write(stamp)
        if usage and self.usage is not None:
            members["usage"] = self.usage
        return msgspec.json.encode(members)

    def frames(self, stamp: Stamp, *, usage: bool) -> Iterator[Frame]:  # noqa: ARG002 - there are none
        """None: it is never streamed."""
        return iter(())
