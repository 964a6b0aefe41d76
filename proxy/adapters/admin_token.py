"""The token of the admin API: in a file of its own, made when there is none, or given by the environment.

A token has 256 random bits, so that guessing needs no brake: at a million tries a second it takes 10^63 years.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from pathlib import Path

from proxy.adapters.secrets import SecretsInvalid, create_once, replace_file, version_of

__all__ = [
    "ADMIN_TOKEN_FILE",
    "PREFIX",
    "AdminTokenFile",
    "GivenAdminToken",
    "admin_token_path",
    "load_or_create_admin_token",
    "why_no_token",
]

ADMIN_TOKEN_FILE = "admin_token"  # noqa: S105 - the name of a file
PREFIX = "tga_"
_LEAST_CHARACTERS = 32
_MOST_CHARACTERS = 512
_NOBODYS = bytes(hashlib.sha256().digest_size)
_log = logging.getLogger(__name__)


def load_or_create_admin_token(data_dir: Path, token_file: Path | None = None) -> AdminTokenFile:
    """The token in the data directory or in a file of its own, made when there is none.

    Raises `SecretsInvalid` and `OSError`.
    """
    found = AdminTokenFile(admin_token_path(data_dir, token_file))
    if not found.path.exists():
        found.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_once(found.path, _fresh())
    found.reveal()
    return found


def admin_token_path(data_dir: Path, token_file: Path | None = None) -> Path:
    """Where the token is."""
    return token_file or data_dir / ADMIN_TOKEN_FILE


class GivenAdminToken:
    """A token that stays what it is; only a digest of it is kept."""

    def __init__(self, token: str) -> None:
        self._digest = _digest_of(token)

    def admits(self, presented: str) -> bool:
        """Whether this is the token; takes the same time whatever is presented."""
        return hmac.compare_digest(_digest_of(presented), self._digest)


class AdminTokenFile:
    """A token in a file, followed as it changes. Nobody is let in while the file is not what it should be."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version: tuple[int, int, int] | None = None
        self._digest: bytes | None = None
        self._is_unusable = False

    def admits(self, presented: str) -> bool:
        """Whether this is the token that is in the file now; takes the same time whatever is presented."""
        self._follow()
        is_it = hmac.compare_digest(_digest_of(presented), self._digest or _NOBODYS)
        return is_it and self._digest is not None

    def reveal(self) -> str:
        """The token itself. Raises `SecretsInvalid` and `OSError`."""
        with self.path.open("rb") as file:
            content = file.read(_MOST_CHARACTERS + 2)
        token = content.decode("ascii", "replace").strip()
        if reason := why_no_token(token):
            # What stands there is not passed on.
            raise SecretsInvalid(f"{self.path} holds no token of the admin API: {reason}")
        return token

    def rotate(self) -> str:
        """Put another token in the file; the one there was is good for nothing from now on. Raises `OSError`."""
        content = _fresh()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self.path, content)
        return content.decode().strip()

    def _follow(self) -> None:
        try:
            version = version_of(self.path)
            if version == self._version:
                return
            self._digest = _digest_of(self.reveal())
            self._version, self._is_unusable = version, False
        except (OSError, SecretsInvalid) as error:
            self._version, self._digest = None, None
            if not self._is_unusable:
                self._is_unusable = True
                _log.error("%s; the admin API lets nobody in", error)


def why_no_token(text: str) -> str:
    """Why this text cannot be a token; empty when it can."""
    if not _LEAST_CHARACTERS <= len(text) <= _MOST_CHARACTERS:
        return f"a token has {_LEAST_CHARACTERS} to {_MOST_CHARACTERS} characters"
    if not all("!" <= letter <= "~" for letter in text):
        return "a token is printable ASCII without spaces"
    return ""


def _fresh() -> bytes:
    return f"{PREFIX}{secrets.token_hex(32)}\n".encode()


def _digest_of(token: str) -> bytes:
    # What is not text arrives with lone surrogates in it.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
