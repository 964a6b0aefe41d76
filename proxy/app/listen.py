"""Listeners: where a server of aiohttp's listens, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import ssl

from aiohttp import web

from proxy.adapters.certificates import CertificateUnusable, ListenerCertificate
from proxy.app.open_files import connections_that_fit, lift_open_files
from proxy.app.secure_site import SecureSite
from proxy.settings import ServerSettings
from proxy.web.bounds import Bounds
from proxy.web.server import OpenAIServer

__all__ = ["AnyRunner", "bounds_of", "certificate_of", "follow_certificate", "listen", "runner_of", "url_of"]

_log = logging.getLogger(__name__)

AnyRunner = web.AppRunner | web.ServerRunner


def bounds_of(server: ServerSettings) -> Bounds:
    """What clients of the public listener may take of us; no more connections than there are open files for."""
    return Bounds(
        header_timeout_seconds=server.header_timeout_seconds,
        body_timeout_seconds=server.body_timeout_seconds,
        write_timeout_seconds=server.write_timeout_seconds,
        idle_timeout_seconds=server.idle_timeout_seconds,
        max_connections=min(server.max_connections, connections_that_fit(lift_open_files())),
    )


def runner_of(server: web.Application | web.Server, *, shutdown_seconds: float) -> AnyRunner:
    """Make the runner of a server; at cleanup its requests have `shutdown_seconds` to end."""
    if isinstance(server, web.Application):
        return web.AppRunner(server, access_log=None, handle_signals=False, shutdown_timeout=shutdown_seconds)
    return web.ServerRunner(server, handle_signals=False, shutdown_timeout=shutdown_seconds)


async def listen(
    runner: AnyRunner, host: str, port: int, *, shared: bool = False, tls: ssl.SSLContext | None = None
) -> str:
    """Open a listener; return the URL it answers on, its port chosen when it was 0.

    `shared`: other processes listen on the same port, and the kernel deals connections out.
    """
    await runner.setup()
    if tls is not None and isinstance(runner.server, OpenAIServer):
        secure = SecureSite(runner, runner.server, (host, port), tls, shared=shared)
        await secure.start()
        return url_of(host, secure.port, secure=True)
    site = web.TCPSite(runner, host, port, reuse_port=shared or None, ssl_context=tls)
    await site.start()
    return url_of(host, runner.addresses[0][1], secure=tls is not None)


def url_of(host: str, port: int, *, secure: bool = False) -> str:
    """Where a listener is reached from the same machine."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - shown, not bound
    name = everywhere.get(host, f"[{host}]" if ":" in host else host)
    return f"{'https' if secure else 'http'}://{name}:{port}"


def certificate_of(server: ServerSettings) -> ListenerCertificate | None:
    """The certificate of the public listener, None where it speaks plain HTTP. Raises `OSError`."""
    if server.tls_cert_file is None or server.tls_key_file is None:
        return None
    return ListenerCertificate(server.tls_cert_file, server.tls_key_file)


async def follow_certificate(certificate: ListenerCertificate, every_seconds: float = 5.0) -> None:
    """Have new connections get a certificate that was put in the place of the one before, for as long as this runs."""
    while True:
        await asyncio.sleep(every_seconds)
        try:
            if await asyncio.to_thread(certificate.look):
                _log.info("the certificate of the public listener was changed")
        except CertificateUnusable as error:
            _log.error("the certificate of the public listener stays as it was: %s", error)
