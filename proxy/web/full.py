"""A connection that is one too many: told so, in OpenAI's shape, and ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from proxy.web.refusals import OVERLOADED, raw_response

if TYPE_CHECKING:
    from proxy.web.server import OpenAIServer

__all__ = ["Full"]

_PATIENCE_SECONDS = 2.0
"""How long its client has to send something, and to leave."""


class Full(asyncio.Protocol):
    """Answers the first bytes with 503 and reads none of them: clients expect no answer before they have asked."""

    __slots__ = ("_owner", "_said", "_since", "_wire")

    def __init__(self, owner: OpenAIServer) -> None:
        self._owner = owner
        self._wire: asyncio.Transport | None = None
        self._since = 0.0
        self._said = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a word."""
        self._wire = cast("asyncio.Transport", transport)
        self._since = asyncio.get_running_loop().time()
        self._owner.watch(self)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - whatever it is
        """Answer once."""
        if self._wire is not None and not self._said:
            self._said = True
            self._wire.write(raw_response(OVERLOADED))
            if self._wire.can_write_eof():
                self._wire.write_eof()

    def connection_lost(self, exc: BaseException | None) -> None:  # noqa: ARG002 - however it ended
        """Forget it."""
        self._owner.unwatch(self)
        self._wire = None

    def look(self, now: float) -> None:
        """End it where its client does not."""
        if now - self._since >= _PATIENCE_SECONDS:
            self.end()

    def end(self) -> None:
        """End it now."""
        if self._wire is not None:
            self._wire.abort()
