"""What a browser keeps of a sign-in: who signed in and until when, signed; never a key.

It is signed under a secret that is derived from a pepper, so that whoever has the peppers accepts it: every worker and
every replica, and none any more once the pepper is retired.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from proxy.core.keys import Peppers, keyed_hash

__all__ = ["SESSION_MS", "PageSession", "read_session", "signed"]

SESSION_MS = 3_600_000
"""How long a sign-in is good for."""
_PURPOSE = "\ntollgate page session"
"""No key has a line break, so its hash, which a database keeps, is never the secret of sessions."""
_TOKEN = re.compile(r"([0-9]{1,9})\.([0-9A-Za-z]{1,64})\.([0-9]{1,9})\.([0-9]{1,15})\.([0-9a-f]{64})", re.ASCII)


@dataclass(frozen=True, slots=True)
class PageSession:
    """Who signed in: a key, by which of its secrets, and when that ends."""

    kid: str
    serial: int
    """Of the secret: one that is rotated away takes its sign-ins with it."""
    ends_at_ms: int


def signed(session: PageSession, peppers: Peppers) -> str:
    """The text that a browser keeps: no character of it needs quoting in a cookie."""
    said = _said(peppers.current_id, session)
    return f"{said}.{_signature(peppers.secrets[peppers.current_id], said)}"


def read_session(text: str, peppers: Peppers, now_ms: int) -> PageSession | None:
    """Who it is; None where nobody of ours signed it, it has ended, or it lasts longer than one can."""
    match = _TOKEN.fullmatch(text)
    if match is None:
        return None
    session = PageSession(match[2], int(match[3]), int(match[4]))
    pepper = peppers.secrets.get(int(match[1]))
    # The same work for a pepper that nobody has.
    expected = _signature(pepper or bytes(32), text.rpartition(".")[0])
    if not hmac.compare_digest(expected, match[5]) or pepper is None:
        return None
    return session if now_ms < session.ends_at_ms <= now_ms + SESSION_MS else None


def _said(version: int, session: PageSession) -> str:
    return f"{version}.{session.kid}.{session.serial}.{session.ends_at_ms}"


def _signature(pepper: bytes, said: str) -> str:
    return keyed_hash(keyed_hash(pepper, _PURPOSE), said).hex()
