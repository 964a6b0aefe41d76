"""Whether this machine has what the settings ask for: packages, open files, ports, prices of today."""

from __future__ import annotations

import errno
import http.client
import os
import resource
import socket
import ssl
from contextlib import closing
from importlib.util import find_spec

from proxy.adapters.clock import SystemClock
from proxy.app.open_files import connections_that_fit
from proxy.app.prices import open_prices
from proxy.core.checkup import Finding, fail, okay, warn
from proxy.settings import INSTALL_SERVER, ServerSettings, Settings, missing_for_cache
from proxy.settings.parser import INSTALL_PARSER, has_compiled_parser

__all__ = ["look_at_machine", "look_at_ports"]

_PATIENCE_SECONDS = 3.0
_OLD_DAYS = 180
"""As the alert on old prices has it."""
_DAY_MS = 86_400_000
_MOST_OPEN_FILES = 1_048_576
_REINSTALL = "pip install --only-binary :all: --force-reinstall"


def look_at_machine(settings: Settings) -> list[Finding]:
    """Look at what needs nobody's answer."""
    return [_packages(settings), _extensions(), _open_files(settings.server), _prices(settings)]


def _packages(settings: Settings) -> Finding:
    check = "packages"
    wants_cache = settings.cache.enabled and (settings.redis_url or settings.cache_redis_url) is not None
    if settings.database_url is not None and find_spec("psycopg") is None:
        return fail(check, "Postgres needs its driver (psycopg), which is not installed", INSTALL_SERVER)
    if missing := (missing_for_cache() if wants_cache else ()):
        told = warn if settings.cache_redis_url is None else fail
        return told(check, f"a cache in Redis needs {' and '.join(missing)}, not installed here", INSTALL_SERVER)
    return okay(check, "everything that the settings need is installed")


def _extensions() -> Finding:
    """Parts in C and Rust that are installed, or not, with the packages they belong to."""
    check = "extensions"
    if not has_compiled_parser():
        return fail(check, "aiohttp has no compiled HTTP parser, and its other one is too lenient", INSTALL_PARSER)
    if find_spec("uvloop") is None:
        return fail(check, "the event loop (uvloop) is not installed", "pip install uvloop")
    slow = [name for name, module in _FASTER.items() if not _is_there(module)]
    if slow:
        return warn(check, f"without its compiled part: {', '.join(slow)}; everything works, slower",
                    f"{_REINSTALL} {' '.join(slow)}")  # fmt: skip
    return okay(check, "compiled parts are there: HTTP parser, event loop, Redis replies")


_FASTER = {"aiohttp": "aiohttp._http_writer", "hiredis": "hiredis.hiredis", "yarl": "yarl._quoting_c"}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _open_files(server: ServerSettings) -> Finding:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    allowed = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    fit = connections_that_fit(allowed)
    if fit < server.max_connections:
        return warn(
            "open_files",
            f"{allowed:,} files may be open, which is enough for {fit:,} clients, not {server.max_connections:,}",
            f"let {2 * server.max_connections + 512:,} be open (systemd: LimitNOFILE; containers: --ulimit nofile), "
            f"or set max_connections = {fit}",
        )
    return okay("open_files", f"{allowed:,} files may be open, enough for {server.max_connections:,} clients")


def _prices(settings: Settings) -> Finding:
    # Settings whose price table is no good do not come as far as this.
    prices = open_prices(settings)
    now_ms = SystemClock().now_ms()
    days = (now_ms - prices.book.newest_ms(now_ms)) // _DAY_MS
    said = f"the newest price is {days} days old, in {prices.file or 'the table of the package'}"
    if days > _OLD_DAYS:
        return warn(
            "prices", said, "compare with OpenAI's price list: tollgate prices list; tollgate prices import FILE"
        )
    return okay("prices", said)


def look_at_ports(settings: Settings) -> list[Finding]:
    """See that both listeners can be opened, or are open by a server of ours."""
    server = settings.server
    secure = server.tls_cert_file is not None
    return [
        _port("listener.public", server.host, server.port, "port", secure=secure),
        _port("listener.operations", server.admin_host, server.admin_port, "admin_port", secure=False),
    ]


def _port(check: str, host: str, port: int, setting: str, *, secure: bool) -> Finding:
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if port == 0:
        return okay(check, f"{host}, at a port that is free then")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return fail(check, f"{host} is no address here", "name one of this machine, or 0.0.0.0 for all of them")
    with closing(socket.socket(family, kind, protocol)) as listener:
        # As a server would: what is left of connections that have ended is no hindrance.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return _unbindable(check, where, port, error)
        else:
            return okay(check, f"{where} is free")
    ours = _is_public(host, port, secure=secure) if check == "listener.public" else _is_operations(host, port)
    if ours:
        return okay(check, f"{where} is served by Tollgate now")
    return fail(check, f"{where} is taken by another program",
                f"end that (ss -ltnp 'sport = :{port}' names it), or choose another with {setting}")  # fmt: skip


def _unbindable(check: str, where: str, port: int, error: OSError) -> Finding:
    if error.errno == errno.EACCES:
        return fail(check, f"this user (uid {os.geteuid()}) may not listen on {where}",
                    "take a port above 1023, or grant CAP_NET_BIND_SERVICE")  # fmt: skip
    if error.errno == errno.EADDRNOTAVAIL:
        return fail(check, f"no address of this machine is that of {where}",
                    "name one of this machine, or 0.0.0.0 for all of them")  # fmt: skip
    return fail(check, f"{where}: {error.strerror} (port {port})", "choose another address or port")


def _is_public(host: str, port: int, *, secure: bool) -> bool:
    """Whether a public listener of ours is there: the path is ours alone, and asks for a key."""
    status, body = _get(host, port, "/v1/tollgate/me", secure=secure)
    return status == 401 and b"sk-tg_" in body


def _is_operations(host: str, port: int) -> bool:
    """Whether an operations listener of ours is there, ready or not."""
    _, body = _get(host, port, "/readyz", secure=False)
    return any(f'"status": "{word}"'.encode() in body for word in ("ready", "not ready", "draining"))


def _get(host: str, port: int, path: str, *, secure: bool) -> tuple[int, bytes]:
    """Ask whoever is there, from the same machine; 0 where nobody answers in HTTP."""
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - asked, not bound
    connection: http.client.HTTPConnection
    if secure:
        # Whoever it is, nothing is told to them.
        context = ssl._create_unverified_context()  # noqa: S323, SLF001 - as said
        connection = http.client.HTTPSConnection(here, port, timeout=_PATIENCE_SECONDS, context=context)
    else:
        connection = http.client.HTTPConnection(here, port, timeout=_PATIENCE_SECONDS)
    with closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read(8 * 2**20)
        except (OSError, http.client.HTTPException):
            return 0, b""
