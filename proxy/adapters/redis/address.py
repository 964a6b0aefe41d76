"""Where a server is and who we are to it; and what is read of a URL.

redis-py parses a URL of one host; lists of hosts, refusals and TLS contexts are ours, because redis-py passes over what
it does not understand, and trusts the system's authorities beside the one that is named.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

__all__ = ["Address", "BadRedisUrl", "RedisUrl", "Topology", "parse_redis_url"]

Topology = str
"""`single`, `sentinel` or `cluster`."""

_SCHEMES: dict[str, tuple[Topology, bool, int]] = {
    "redis": ("single", False, 6_379),
    "rediss": ("single", True, 6_379),
    "unix": ("single", False, 0),
    "redis+sentinel": ("sentinel", False, 26_379),
    "rediss+sentinel": ("sentinel", True, 26_379),
    "redis+cluster": ("cluster", False, 6_379),
    "rediss+cluster": ("cluster", True, 6_379),
}
_TLS_OPTIONS = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_certfile",
        "ssl_keyfile",
        "ssl_password",
        "ssl_cert_reqs",
        "ssl_check_hostname",
    }
)
_SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
_VERIFY = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


class BadRedisUrl(ValueError):
    """The URL is not one we can use; the message never repeats it, as it may hold a password."""


@dataclass(frozen=True, slots=True)
class Address:
    """One server, and how to introduce ourselves."""

    host: str = "localhost"
    port: int = 6_379
    path: str = ""
    """Of a unix socket; host and port are then without meaning."""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    client_name: str = "tollgate"

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def at(self, host: str, port: int) -> Address:
        """Another server that knows us by the same name."""
        return replace(self, host=host, port=port)


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """What a URL says."""

    topology: Topology
    addresses: tuple[Address, ...]
    """The server; the sentinels; or some nodes of the cluster."""
    master: str = ""
    """Name of the primary that the sentinels watch."""
    primary: Address = field(default_factory=Address)
    """With sentinels: how to introduce ourselves to the primary, wherever it is."""


def parse_redis_url(url: str) -> RedisUrl:
    """Read a URL; the forms are listed below. Raises `BadRedisUrl`.

    `redis://[user:password@]host[:port][/db]`, `rediss://...` (TLS), `unix://[user:password@]/path[?db=0]`,
    `redis+sentinel://[user:password@]host[:port],.../master[/db]`, `redis+cluster://[user:password@]host[:port],...`;
    the last two with TLS as `rediss+...`. Options: `db`, `client_name`; with TLS `ssl_ca_certs`, `ssl_ca_path`,
    `ssl_certfile`, `ssl_keyfile`, `ssl_password`, `ssl_cert_reqs`, `ssl_check_hostname`; with sentinels
    `sentinel_username` and `sentinel_password`, which are not those of the primary.
    """
    try:
        return _parse(url)
    except BadRedisUrl:
        raise
    except (ValueError, OSError) as error:
        # Of a malformed URL any part may be the password, so nothing of the cause is shown but its kind.
        raise BadRedisUrl(f"not a Redis URL we can use ({type(error).__name__})") from None


def _parse(url: str) -> RedisUrl:
    split = urlsplit(url)
    if split.scheme not in _SCHEMES:
        raise BadRedisUrl(f"the scheme of a Redis URL is one of {', '.join(_SCHEMES)}")
    topology, encrypted, default_port = _SCHEMES[split.scheme]
    credentials, _, hosts = split.netloc.rpartition("@")
    path, master = split.path, ""
    if topology == "sentinel":
        master, _, db = split.path.lstrip("/").partition("/")
        master, path = unquote(master), f"/{db}"
        if not master:
            raise BadRedisUrl("a sentinel URL ends in the name of the primary: redis+sentinel://host:26379/mymaster")
    options: dict[str, str] = {}
    addresses = []
    for host in hosts.split(","):
        one = f"{'unix' if split.scheme == 'unix' else 'redis'}://{credentials}{'@' if credentials else ''}{host}"
        kwargs = cast("dict[str, Any]", parse_url(f"{one}{path}?{split.query}"))
        kwargs.pop("connection_class", None)
        address = Address(
            kwargs.pop("host", "localhost"),
            kwargs.pop("port", default_port),
            kwargs.pop("path", ""),
            kwargs.pop("db", 0),
            kwargs.pop("username", ""),
            kwargs.pop("password", ""),
            client_name=kwargs.pop("client_name", "tollgate"),
        )
        addresses.append(address)
        options = kwargs
    _refuse_unusable(split.scheme, topology, path, options, addresses)
    tls = _context(options) if encrypted else None
    addresses = [replace(address, tls=tls) for address in addresses]
    if topology != "sentinel":
        return RedisUrl(topology, tuple(addresses))
    name, secret = options.get("sentinel_username", ""), options.get("sentinel_password", "")
    sentinels = tuple(replace(address, username=name, password=secret, db=0) for address in addresses)
    return RedisUrl(topology, sentinels, master, addresses[0])


def _refuse_unusable(
    scheme: str, topology: Topology, path: str, options: dict[str, str], addresses: list[Address]
) -> None:
    known: frozenset[str] = frozenset()
    if scheme.startswith("rediss"):
        known |= _TLS_OPTIONS
    if topology == "sentinel":
        known |= _SENTINEL_OPTIONS
    if unknown := sorted(set(options) - known):
        raise BadRedisUrl(f"{scheme}:// knows no option {', '.join(unknown)}")
    if scheme == "unix":
        if not addresses[0].path:
            raise BadRedisUrl("a unix URL holds the path of a socket: unix:///run/redis.sock")
        return
    if path.strip("/") and not path.strip("/").isdigit():
        raise BadRedisUrl("the path of a Redis URL is the number of a database")
    if topology == "single" and len(addresses) > 1:
        raise BadRedisUrl("several hosts take redis+sentinel:// or redis+cluster://")
    if topology == "cluster" and any(address.db for address in addresses):
        raise BadRedisUrl("a cluster has no database but 0")


def _context(options: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"), capath=options.get("ssl_ca_path"))
    verify = options.get("ssl_cert_reqs", "required")
    if verify not in _VERIFY:
        raise BadRedisUrl(f"ssl_cert_reqs is one of {', '.join(_VERIFY)}")
    context.check_hostname = options.get("ssl_check_hostname", True) and verify != "none"
    context.verify_mode = _VERIFY[verify]
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"), options.get("ssl_password"))
    return context
