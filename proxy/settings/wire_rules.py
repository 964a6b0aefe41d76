"""What is wrong with certificates, proxies and names of hosts, beyond what a type can say."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.adapters.certificates import CertificateUnusable, client_context, listener_context
from proxy.core.outgoing import why_no_proxy
from proxy.settings.decode import Finding
from proxy.settings.schema import Settings

__all__ = ["wire_findings"]


def wire_findings(settings: Settings) -> Iterator[Finding]:
    """Everything that would keep connections from being made, or from being what they are taken for."""
    yield from _listener(settings)
    yield from _authorities(settings)
    yield from _proxies(settings)
    for index, host in enumerate(settings.server.admin_allowed_hosts):
        if not host or any(letter in host for letter in "/:@ *"):
            yield Finding(("server", "admin_allowed_hosts", index), "expected a name of a host, without scheme or port")


def _listener(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if (server.tls_cert_file is None) != (server.tls_key_file is None):
        given, other = ("tls_cert_file", "tls_key_file")
        if server.tls_cert_file is None:
            given, other = other, given
        yield Finding(("server", given), f"has no meaning without server.{other}")
    elif server.tls_cert_file is not None and server.tls_key_file is not None:
        try:
            listener_context(server.tls_cert_file, server.tls_key_file)
        except CertificateUnusable as error:
            yield Finding(("server", "tls_cert_file"), str(error))


def _authorities(settings: Settings) -> Iterator[Finding]:
    file = settings.upstream.ca_file
    if file is None:
        return
    try:
        client_context(file)
    except CertificateUnusable as error:
        yield Finding(("upstream", "ca_file"), str(error))


def _proxies(settings: Settings) -> Iterator[Finding]:
    for name in ("https_proxy", "http_proxy"):
        proxy = getattr(settings.outgoing, name)
        if proxy is not None and (reason := why_no_proxy(proxy.reveal())):
            yield Finding(("outgoing", name), reason)
