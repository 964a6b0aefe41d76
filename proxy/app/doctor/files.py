"""Whether the data directory can be written, has room, and secrets are for nobody else to read."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from proxy.adapters.admin_token import AdminTokenFile, admin_token_path
from proxy.adapters.cache_key_file import CACHE_KEY_FILE, load_or_create_cache_keys
from proxy.adapters.certificates import CertificateUnusable, listener_context
from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import PEPPER_FILE, PepperFile
from proxy.app.database import SPOOL_DIRECTORY, SQLITE_FILE
from proxy.core.checkup import Finding, fail, okay, warn
from proxy.core.registry import DataUnusable
from proxy.settings import Settings

__all__ = ["look_at_files"]

_LEAST_FREE_BYTES = 256 * 2**20
_MIB = 2**20
_DAY_MS = 86_400_000
_SOON_DAYS = 14
_AS_WHOM = "run this as the user the server runs as, or let that user read it"


def look_at_files(settings: Settings, config: Path | None = None) -> list[Finding]:
    """Look without making anything. `config`: the settings file, which may hold URLs with passwords."""
    return [
        _data_dir(settings.data_dir),
        _disk(settings),
        *_secrets(settings, config),
        *_passfile(settings),
        *_certificate(settings),
    ]


def _data_dir(path: Path) -> Finding:
    check = "data_dir"
    standing = _standing(path)
    if not standing.is_dir():
        return fail(check, f"{standing} is no directory", "name another directory in data_dir")
    if not os.access(standing, os.W_OK | os.X_OK):
        return fail(
            check,
            f"this user (uid {os.geteuid()}) may not write {standing}",
            f"run this as the user the server runs as; if it is: chown {os.geteuid()} {standing}",
        )
    if standing != path:
        return okay(check, f"{path}, made at the first start")
    if path.stat().st_mode & 0o077:
        return warn(check, f"others may look into {path}", f"chmod 700 {path}")
    return okay(check, str(path))


def _standing(path: Path) -> Path:
    """The innermost part of a path that is there."""
    path = path.absolute()
    return next((each for each in (path, *path.parents) if _is_there(each)), path)


def _is_there(path: Path) -> bool:
    with suppress(PermissionError):
        return path.exists()
    return False


def _disk(settings: Settings) -> Finding:
    """Room for the spool to fill up, and for a copy of the database: a migration or a backup makes one."""
    free_bytes = shutil.disk_usage(_standing(settings.data_dir)).free
    spool = settings.data_dir / SPOOL_DIRECTORY
    spooled = _bytes_below(spool)
    database = 0
    if settings.database_url is None:
        with suppress(OSError):
            database = (settings.data_dir / SQLITE_FILE).stat().st_size
    wanted = max(0, settings.ledger.quota_bytes - spooled) + database + _LEAST_FREE_BYTES
    said = f"{free_bytes // _MIB:,} MiB free beside {settings.data_dir}"
    if free_bytes < _LEAST_FREE_BYTES:
        return fail("disk", said, "make room: with a full disk no request is served, for none could be accounted for")
    if free_bytes < wanted:
        return warn(
            "disk",
            f"{said}; the spool (ledger.quota_bytes) and a copy of the database may take {wanted // _MIB:,}",
            "make room, or lower ledger.quota_bytes",
        )
    return okay("disk", f"{said}; {wanted // _MIB:,} are enough")


def _bytes_below(directory: Path) -> int:
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError):
                total += Path(root, name).stat().st_size
    return total


def _secrets(settings: Settings, config: Path | None) -> Iterator[Finding]:
    data_dir, server = settings.data_dir, settings.server
    token = admin_token_path(data_dir, server.admin_token_file)
    kept: list[tuple[str, Path | None, Callable[[], object] | None]] = [
        ("peppers", peppers := settings.pepper_file or data_dir / PEPPER_FILE, lambda: PepperFile(peppers)),
        ("admin_token", None if server.admin_token else token, lambda: AdminTokenFile(token).reveal()),
        ("cache_key", settings.cache.key_file, None),
        ("cache_key", data_dir / CACHE_KEY_FILE, lambda: load_or_create_cache_keys(data_dir)),
        ("upstream_key", settings.upstream.api_key_file, None),
        *(("upstream_key", upstream.api_key_file, None) for upstream in settings.upstreams.values()),
        ("webhook_secret", settings.budgets.webhook_secret_file, None),
        ("tls_key", server.tls_key_file, None),
        ("database", data_dir / SQLITE_FILE if settings.database_url is None else None, None),
        ("config", config if config is not None and _holds_password(config) else None, None),
    ]
    for name, path, read in kept:
        check = f"files.{name}"
        try:
            there = path is not None and path.exists()
        except PermissionError:
            yield fail(check, f"this user (uid {os.geteuid()}) may not look for {path}", _AS_WHOM)
        else:
            if path is not None and there:
                yield _secret(check, path, read)


def _secret(check: str, path: Path, read: Callable[[], object] | None) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o007:
        return fail(check, f"everybody on this machine may open {path} (mode {mode:o})", f"chmod 600 {path}")
    if mode & 0o020:
        return fail(check, f"a group may change {path} (mode {mode:o})", f"chmod g-w {path}")
    if not os.access(path, os.R_OK):
        return fail(check, f"this user (uid {os.geteuid()}) may not read {path}", _AS_WHOM)
    try:
        if read is not None:
            read()
    except DataUnusable as error:
        return fail(check, str(error), "restore it from the backup, or put it aside to have another made")
    except OSError as error:
        return fail(check, f"{path}: {error.strerror}", "let the user that the server runs as read it")
    return okay(check, f"{path} is for its owner{' and a group' if mode & 0o040 else ''} alone")


def _passfile(settings: Settings) -> Iterator[Finding]:
    """The file of passwords that the database's URL names: one that others may open is passed over in silence."""
    url = settings.database_url
    for name in parse_qs(urlsplit(url.reveal()).query).get("passfile", ()) if url is not None else ():
        yield _passwords("files.passfile", Path(name))


def _passwords(check: str, path: Path) -> Finding:
    if not _is_there(path):
        return fail(
            check,
            f"{path} is not there, or not for this user (uid {os.geteuid()}) to see",
            "put HOST:PORT:NAME:USER:PASSWORD into it, with mode 600, for the user the server runs as",
        )
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        said = f"Postgres's driver passes {path} over (mode {mode:o}): it is not for its owner alone"
        return fail(check, said, f"chmod 600 {path}")
    return _secret(check, path, None)


def _holds_password(config: Path) -> bool:
    """Whether a URL in the file has a password before its host."""
    try:
        words = config.read_text("utf-8", "replace").split()
    except OSError:
        return False
    return any("://" in word and ":" in word.partition("://")[2].rpartition("@")[0] for word in words)


def _certificate(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if server.tls_cert_file is None or server.tls_key_file is None:
        return
    try:
        listener_context(server.tls_cert_file, server.tls_key_file)
    except CertificateUnusable as error:
        yield fail("tls", str(error), "put a certificate and its key there, both in PEM, the key without a password")
    else:
        yield _lasting(server.tls_cert_file)


def _lasting(file: Path) -> Finding:
    """Say how long a certificate is good for; what reads it is part of the extra, and may be missing."""
    try:
        from cryptography.x509 import load_pem_x509_certificate  # noqa: PLC0415 - not in the base install
    except ImportError:
        return okay("tls", f"{file} and its key belong together")
    end = load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    days = (int(end.timestamp() * 1_000) - SystemClock().now_ms()) / _DAY_MS
    said = f"{file} and its key belong together; it is good until {end:%Y-%m-%d}"
    if days <= 0:
        return fail(
            "tls", f"{file} was good until {end:%Y-%m-%d}", "put a new one in its place; it is taken up as it is"
        )
    if days < _SOON_DAYS:
        return warn("tls", said, "renew it; the new one is taken up without a restart")
    return okay("tls", said)
