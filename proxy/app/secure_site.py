"""Where a listener speaks TLS: its clients are counted from their first packet on.

asyncio's own server knows a client once its handshake is done; until then nothing but time would bound them.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Coroutine

from aiohttp import web

from proxy.core.misuse import Cut
from proxy.web.server import OpenAIServer

__all__ = ["SecureSite"]

_BACKLOG = 128
_WITHOUT_FILES_SECONDS = 1.0
"""How long is waited where the system has no open file left for a client."""
_log = logging.getLogger(__name__)


class SecureSite(web.BaseSite):
    """Accepts for `server`, which is that of `runner`."""

    def __init__(
        self,
        runner: web.BaseRunner,
        server: OpenAIServer,
        address: tuple[str, int],
        tls: ssl.SSLContext,
        *,
        shared: bool = False,
    ) -> None:
        super().__init__(runner, ssl_context=tls)
        self._listener = server
        self._address = address
        self._shared = shared
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        """Where it listens."""
        return f"https://{self._address[0]}:{self.port}"

    @property
    def port(self) -> int:
        """The one that was chosen, where it was 0."""
        port: int = self._sockets[0].getsockname()[1] if self._sockets else self._address[1]
        return port

    async def start(self) -> None:
        """Listen. Raises `OSError`."""
        await super().start()
        host, port = self._address
        found = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
            listening = socket.create_server(address, family=family, backlog=_BACKLOG, reuse_port=self._shared)
            listening.settimeout(0)
            self._sockets.append(listening)
        for listening in self._sockets:
            self._spawn(self._accept(listening))

    async def stop(self) -> None:
        """Accept no more; whoever has not shaken hands yet is let go."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listening in self._sockets:
            listening.close()
        await super().stop()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listening)
            except ConnectionError:
                continue
            except OSError as error:
                _log.error("no client can be accepted: %s", error.strerror)
                await asyncio.sleep(_WITHOUT_FILES_SECONDS)
                continue
            if self._listener.has_room_to_greet:
                self._spawn(self._greet(client))
                # It has begun to count before the next one is looked at.
                await asyncio.sleep(0)
            else:
                self._listener.watcher.cut(Cut.TOO_MANY)
                client.close()

    async def _greet(self, client: socket.socket) -> None:
        listener = self._listener
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with listener.greeting() as protocol:
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: protocol,
                    client,
                    ssl=self._ssl_context,
                    ssl_handshake_timeout=listener.handshake_seconds,
                )
        except (OSError, TimeoutError) as error:
            client.close()
            _log.debug("a client did not shake hands: %s", type(error).__name__)
        except BaseException:
            client.close()
            raise

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
