"""The audit log as programs are shown it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from proxy.core.audit import AuditEntry
from proxy.core.views.instants import Instant, instant_of

__all__ = ["AuditView", "audit_view"]


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what, when, to what."""

    at: Instant
    at_ms: int
    actor: Annotated[
        str, Meta(description="`cli:<user of the operating system>`, `admin-api`, or a part of the server.")
    ]
    action: Annotated[str, Meta(description="`<kind of subject>.<verb>`.", examples=["key.revoke"])]
    subject: str
    team: Annotated[str | None, Meta(description="The team it concerned; null: all of them, or none.")]
    details: Annotated[Mapping[str, Any], Meta(description="What was given, never a secret.")]


def audit_view(entry: AuditEntry) -> AuditView:
    """A line of the audit log."""
    return AuditView(
        at=instant_of(entry.at_ms),
        at_ms=entry.at_ms,
        actor=entry.actor,
        action=entry.action,
        subject=entry.subject,
        team=entry.team,
        details=entry.details,
    )
