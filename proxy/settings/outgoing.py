"""`[outgoing]`: how calls leave this network."""

from __future__ import annotations

from proxy.core.outgoing import Proxies
from proxy.settings.secret import Secret
from proxy.settings.sections import Section

__all__ = ["OutgoingSettings"]


class OutgoingSettings(Section, frozen=True, kw_only=True):
    """`[outgoing]`: proxies of the network for calls upstream and to the webhook, as other programs know them too."""

    https_proxy: Secret | None = None
    """The proxy for https:// URLs, spoken to in plain HTTP (`CONNECT`); from HTTPS_PROXY. It may hold a password."""
    http_proxy: Secret | None = None
    """The proxy for http:// URLs; from HTTP_PROXY."""
    no_proxy: str = ""
    """What is called directly, with commas between: hosts with all below them, addresses, networks, `*`; from NO_PROXY.
    What is on this machine always is."""

    def proxies(self) -> Proxies:
        """Who to ask which way a URL is called."""
        return Proxies(_revealed(self.https_proxy), _revealed(self.http_proxy), self.no_proxy)


def _revealed(secret: Secret | None) -> str | None:
    return None if secret is None else secret.reveal()
