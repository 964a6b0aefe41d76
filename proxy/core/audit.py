"""One line of the audit log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["AuditEntry"]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, when, to what."""

    at_ms: int
    actor: str
    """`cli:<user of the operating system>`, or the name of a part of the server."""
    action: str
    """`<kind of subject>.<verb>`: `team.add`, `key.revoke`."""
    subject: str
    """The team's name, the key's id, the pepper's version."""
    team: str | None
    """The team it concerned; None: all of them, or none."""
    details: Mapping[str, object]
    """What was given, never a secret."""
    serial: int = field(default=0, compare=False)
    """Grows from line to line; 0: not kept yet."""
