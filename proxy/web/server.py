"""The HTTP server of a listener: aiohttp's, without a router, bounded, and with its own errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import HttpVersion11, StreamReader, hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage

from proxy.core.misuse import Cut, Malformed
from proxy.web.bounds import Bounds, Unheard, Watcher
from proxy.web.connection import Connection
from proxy.web.errors import ErrorAnswer
from proxy.web.full import Full
from proxy.web.protocol import AnyAnswer
from proxy.web.refusals import flaw_of, response_of

__all__ = ["OpenAIServer"]

_LONGEST_SWEEP_SECONDS = 1.0
_SWEEPS_IN_A_TIMEOUT = 4

Handler = Callable[[web.BaseRequest], Awaitable[AnyAnswer]]


class OpenAIServer(web.Server):
    """Speaks HTTP for `handler`, which is cancelled when its client leaves. Bodies over `max_body_bytes` raise."""

    def __init__(
        self, handler: Handler, *, max_body_bytes: int, bounds: Bounds | None = None, watcher: Watcher | None = None
    ) -> None:
        # A client that leaves cancels its exchange: settlement is written first, then upstream is let go.
        super().__init__(self._serve, request_factory=self.request_of, handler_cancellation=True)
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._bounds = bounds or Bounds()
        self.watcher: Watcher = watcher or Unheard()
        self.draining = False
        """Clients are told with each answer to come back on another connection."""
        self._watched: set[Connection | Full] = set()
        self._greeted = 0
        self._sweep_timer: asyncio.TimerHandle | None = None
        timeouts = (
            self._bounds.header_timeout_seconds,
            self._bounds.body_timeout_seconds,
            self._bounds.write_timeout_seconds,
        )
        self._sweep_seconds = min(_LONGEST_SWEEP_SECONDS, min(timeouts) / _SWEEPS_IN_A_TIMEOUT)

    def __call__(self) -> asyncio.Protocol:  # type: ignore[override]  # aiohttp never asks for more
        """Make the protocol of a new connection."""
        if self.open_connections < self._bounds.max_connections:
            return Connection(self, self._bounds)
        self.watcher.cut(Cut.TOO_MANY)
        return Full(self)

    def watch(self, connection: Connection | Full) -> None:
        """Look at a connection now and then. One that is too many even to be told so is ended at once."""
        if len(self._watched) >= 2 * self._bounds.max_connections and isinstance(connection, Full):
            connection.end()
            return
        self._watched.add(connection)
        if self._sweep_timer is None:
            self._arm()

    def unwatch(self, connection: Connection | Full) -> None:
        """Look at it no more."""
        self._watched.discard(connection)

    @property
    def open_connections(self) -> int:
        """Connections that are open, those included that are one too many, or have not shaken hands yet."""
        return len(self._watched) + self._greeted

    @property
    def has_room_to_greet(self) -> bool:
        """Whether there is room for one more, if only to be told that it is one too many."""
        return self.open_connections < 2 * self._bounds.max_connections

    @property
    def handshake_seconds(self) -> float:
        """How long a client has for its handshake: as long as for a head."""
        return self._bounds.header_timeout_seconds

    @contextmanager
    def greeting(self) -> Iterator[asyncio.Protocol]:
        """Make the protocol of a connection, which counts as open from here on, for as long as it shakes hands."""
        protocol = self()
        self._greeted += 1
        try:
            yield protocol
        finally:
            self._greeted -= 1

    def cancel_requests(self) -> None:
        """Cancel all that are being served; one whose answer has not begun can still be told why."""
        for connection in self._watched:
            if isinstance(connection, Connection):
                connection.cancel_request()

    def pre_shutdown(self) -> None:
        """Let go of the idle, and tell the others that the answer they wait for is the last."""
        self.draining = True
        for connection in tuple(self._watched):
            if isinstance(connection, Full):
                connection.end()
        super().pre_shutdown()

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Wait for the answers under way, then end what is left."""
        await super().shutdown(timeout)
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None

    def _arm(self) -> None:
        self._sweep_timer = asyncio.get_running_loop().call_later(self._sweep_seconds, self._sweep)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now = asyncio.get_running_loop().time()
        for connection in tuple(self._watched):
            connection.look(now)
        if self._watched:
            self._arm()

    def _serve(self, request: web.BaseRequest) -> Awaitable[Any]:
        connection = request.protocol
        is_short = isinstance(connection, Connection) and connection.heads_are_short
        flaw = flaw_of(request._message, is_short=is_short)  # noqa: SLF001 - its raw headers are nowhere else
        return self._handler(request) if flaw is None else self._refuse(request, *flaw)

    async def _refuse(self, request: web.BaseRequest, reason: Malformed, answer: ErrorAnswer) -> web.Response:
        self.watcher.malformed(reason)
        # It is answered in the version that is spoken here, whichever it named.
        request._version = HttpVersion11  # noqa: SLF001 - aiohttp writes that of the request
        return response_of(answer)

    def request_of(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: web.RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None] | None = None,
    ) -> web.BaseRequest:
        """Make the request that a message of the parser is. `task`: whoever handles it, which aiohttp gives along."""
        return _Request(message, payload, protocol, writer, task, self._loop, client_max_size=self._max_body_bytes)  # type: ignore[arg-type]


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """Say in the head of an answer, whoever made it, when it is the last one of its connection."""
        response.headers.pop(hdrs.SERVER, None)
        connection = self.protocol
        if isinstance(connection, Connection) and connection.is_last(self):
            response.force_close()
            response.headers[hdrs.CONNECTION] = "close"
