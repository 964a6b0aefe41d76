"""Which proxy a call goes through: what the variables HTTPS_PROXY, HTTP_PROXY and NO_PROXY say.

There is no standard for them. Entries of NO_PROXY are read as Go's `httpproxy` reads them: a host with all below it, a
host with its port, an address, a network, or `*`; what is on this machine is never behind a proxy.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["NO_PROXIES", "Proxies", "why_no_proxy"]

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxies:
    """URLs of proxies by the scheme of what is called; they may hold a password, and are not shown."""

    https: str | None = field(default=None, repr=False)
    http: str | None = field(default=None, repr=False)
    no_proxy: str = ""

    def proxy_of(self, url: str) -> str | None:
        """The proxy for a URL, with a scheme; None where it is called directly."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = (parts.hostname or "").rstrip(".")
        if proxy is None or _is_here(host) or _is_excepted(host, parts.port or _PORTS.get(parts.scheme), self.no_proxy):
            return None
        return proxy if "://" in proxy else f"http://{proxy}"


NO_PROXIES = Proxies()


def why_no_proxy(proxy: str) -> str | None:
    """What is wrong with the URL of a proxy, which is not quoted; None when nothing is."""
    try:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return "not the URL of a proxy"
    if not host or port == 0:
        return "not the URL of a proxy"
    if parts.scheme != "http":
        return "only proxies that are spoken to in plain HTTP can be used: http://HOST:PORT"
    return None


def _is_here(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or host.endswith(".localhost") or (address is not None and address.is_loopback)


def _is_excepted(host: str, port: int | None, no_proxy: str) -> bool:
    host = host.lower()
    address = _address(host)
    for entry in no_proxy.lower().replace(",", " ").split():
        if entry == "*":
            return True
        if address is not None and _covers(entry, address):
            return True
        name, colon, its_port = entry.rpartition(":")
        if not colon or not its_port.isdecimal() or (":" in name and not name.endswith("]")):
            name, its_port = entry, ""
        if its_port and its_port != str(port):
            continue
        name = name.removeprefix("[").removesuffix("]").removeprefix("*").lstrip(".")
        if name and (host == name or (address is None and host.endswith(f".{name}"))):
            return True
    return False


def _covers(entry: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        return False


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
