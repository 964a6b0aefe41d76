"""Certificates: that of a listener, followed as its files change, and those that are trusted upstream."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NoReturn

__all__ = ["CertificateUnusable", "ListenerCertificate", "client_context", "listener_context"]

Signature = tuple[tuple[int, int, int], ...]


class CertificateUnusable(OSError):
    """A file of a certificate or key cannot be used; says why, and quotes nothing of it."""


class ListenerCertificate:
    """A certificate and its key as a context for a listener; new connections get whatever pair was read last."""

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        """Read both. Raises `CertificateUnusable`."""
        self._files = (certificate_file, key_file)
        self._seen = self._signature()
        self.context = self._latest = listener_context(certificate_file, key_file)
        # A pair is changed as a whole: loading it into a context that serves could leave that one with half of it.
        self.context.sni_callback = self._take_latest

    def look(self) -> bool:
        """Read both again where they have changed; return whether they are used from now on.

        Raises `CertificateUnusable` once for each change that is no good: the pair from before goes on being used.
        """
        seen = self._signature()
        if seen == self._seen:
            return False
        self._seen = seen
        latest = listener_context(*self._files)
        if self._signature() != seen:
            # Read while they were being changed; the next look is for that.
            self._seen = ()
        self._latest = latest
        return True

    def _take_latest(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._latest

    def _signature(self) -> Signature:
        try:
            stats = [file.stat() for file in self._files]
        except OSError as error:
            raise CertificateUnusable(f"cannot read {error.filename}: {error.strerror}") from None
        return tuple((stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats)


def listener_context(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    """A context that serves a certificate, with TLS 1.2 or newer. Raises `CertificateUnusable`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    for file in (certificate_file, key_file):
        _check_readable(file)
    try:
        context.load_cert_chain(certificate_file, key_file, _no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateUnusable(f"{key_file} is not the key of {certificate_file}") from None
        raise CertificateUnusable(f"{certificate_file} and {key_file} are no certificate and its key in PEM") from None
    return context


def client_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context that verifies certificates and host names, by the system's authorities and those of `ca_file`.

    Raises `CertificateUnusable`.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        _check_readable(ca_file)
        try:
            context.load_verify_locations(ca_file)
        except ssl.SSLError:
            raise CertificateUnusable(f"{ca_file} holds no certificates in PEM") from None
    return context


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise CertificateUnusable(f"cannot read {file}: {error.strerror}") from None


def _no_password() -> NoReturn:
    # Without it OpenSSL asks at the terminal.
    raise CertificateUnusable("the key is encrypted: a server has nobody to ask for its password")
