"""Listeners: where a server of aiohttp's listens, and how it ends."""

from __future__ import annotations

from aiohttp import web

from proxy.settings import ServerSettings
from proxy.web.bounds import Bounds

__all__ = ["AnyRunner", "bounds_of", "listen", "runner_of", "url_of"]

AnyRunner = web.AppRunner | web.ServerRunner


def bounds_of(server: ServerSettings) -> Bounds:
    """What a client of the public listener may take of us."""
    return Bounds(
        header_timeout_seconds=server.header_timeout_seconds,
        body_timeout_seconds=server.body_timeout_seconds,
        write_timeout_seconds=server.write_timeout_seconds,
        idle_timeout_seconds=server.idle_timeout_seconds,
        max_connections=server.max_connections,
    )


def runner_of(server: web.Application | web.Server, *, shutdown_seconds: float) -> AnyRunner:
    """Make the runner of a server; at cleanup its requests have `shutdown_seconds` to end."""
    if isinstance(server, web.Application):
        return web.AppRunner(server, access_log=None, handle_signals=False, shutdown_timeout=shutdown_seconds)
    return web.ServerRunner(server, handle_signals=False, shutdown_timeout=shutdown_seconds)


async def listen(runner: AnyRunner, host: str, port: int, *, shared: bool = False) -> str:
    """Open a listener; return the URL it answers on, its port chosen when it was 0.

    `shared`: other processes listen on the same port, and the kernel deals connections out.
    """
    await runner.setup()
    site = web.TCPSite(runner, host, port, reuse_port=shared or None)
    await site.start()
    return url_of(host, runner.addresses[0][1])


def url_of(host: str, port: int) -> str:
    """Where a listener is reached from the same machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound
    return f"http://{everywhere.get(host, f'[{host}]' if ':' in host else host)}:{port}"
