"""Keys and peppers as programs are shown them: never a secret, but for a key at the moment it is made."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from proxy.core.budget import Period
from proxy.core.principal import KeyRecord
from proxy.core.registry import IssuedKey, PepperRecord
from proxy.core.views.budgets import BudgetView, budget_views
from proxy.core.views.instants import Instant, instant_of

__all__ = [
    "IssuedKeyView",
    "KeyState",
    "KeyView",
    "PepperState",
    "PepperView",
    "issued_view",
    "key_state",
    "key_view",
    "pepper_view",
]


class KeyState(StrEnum):
    """Whether a key opens anything."""

    LIVE = "live"
    ROTATING = "rotating"
    """Live, and so is the secret it had before, for the overlap."""
    EXPIRED = "expired"
    REVOKED = "revoked"


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key."""

    id: str
    team: str
    label: str
    state: KeyState
    created: Instant
    created_by: str | None
    expires: Instant | None
    revoked: Instant | None
    overlap_ends: Annotated[Instant | None, Meta(description="When the secret it had before stops.")]
    last_used: Annotated[Instant | None, Meta(description="To about a minute.")]
    imported: bool
    requests_per_minute: Annotated[int | None, Meta(description="Of its own, beside its team's.")]
    tokens_per_minute: Annotated[int | None, Meta(description="Of its own, beside its team's.")]
    max_parallel: int | None
    models: Annotated[list[str] | None, Meta(description="Models it may use, of those of its team; null: all.")]
    budgets: Annotated[list[BudgetView], Meta(description="Of its own, beside its team's.")] = []
    max_wait_ms: Annotated[
        int | None, Meta(description="How long requests wait for their turn unless they say otherwise; null: not.")
    ]


class IssuedKeyView(KeyView, frozen=True, kw_only=True):
    """A key at the one moment it can be seen."""

    key: Annotated[str, Meta(description="The key itself; it is not shown again.")]

    def __repr__(self) -> str:
        return f"IssuedKeyView(id={self.id!r})"


class PepperState(StrEnum):
    """What a version of the pepper is good for."""

    CURRENT = "current"
    OLD = "old"
    RETIRED = "retired"


class PepperView(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the secret that keys are hashed under; never the secret."""

    version: int
    state: PepperState
    made: Instant
    retired: Instant | None
    keys: Annotated[int, Meta(description="Live keys that need it.")]
    here: Annotated[bool, Meta(description="Whether this machine has it.")]


def key_view(
    record: KeyRecord, at_ms: int, spent_nano_usd: Mapping[tuple[str, str, Period], int] | None = None
) -> KeyView:
    """A key as it is at `at_ms`, and what is spent of its budgets, if that was read."""
    return KeyView(**_fields(record, at_ms, spent_nano_usd))


def issued_view(issued: IssuedKey, at_ms: int) -> IssuedKeyView:
    """A key that was given a secret just now, at `at_ms`."""
    return IssuedKeyView(key=issued.key, **_fields(issued.record, at_ms))


def pepper_view(record: PepperRecord) -> PepperView:
    """A version of the pepper."""
    if record.retired_at_ms is not None:
        state = PepperState.RETIRED
    else:
        state = PepperState.CURRENT if record.current else PepperState.OLD
    return PepperView(
        version=record.version,
        state=state,
        made=instant_of(record.created_at_ms),
        retired=instant_of(record.retired_at_ms),
        keys=record.keys,
        here=record.here,
    )


def key_state(record: KeyRecord, at_ms: int) -> KeyState:
    """The state of a key at `at_ms`."""
    if record.revoked_at_ms is not None:
        return KeyState.REVOKED
    if not record.live_at(at_ms):
        return KeyState.EXPIRED
    return KeyState.LIVE if _overlap_ends_at_ms(record, at_ms) is None else KeyState.ROTATING


def _overlap_ends_at_ms(record: KeyRecord, at_ms: int) -> int | None:
    """When the last of the secrets that were rotated stops; None when none of them goes on."""
    ends = (secret.ends_at_ms for secret in record.secrets)
    return max((end for end in ends if end is not None and end > at_ms), default=None)


def _fields(
    record: KeyRecord, at_ms: int, spent_nano_usd: Mapping[tuple[str, str, Period], int] | None = None
) -> dict[str, Any]:
    return {
        "id": record.kid,
        "team": record.team,
        "label": record.label,
        "state": key_state(record, at_ms),
        "created": instant_of(record.created_at_ms),
        "created_by": record.created_by or None,
        "expires": instant_of(record.expires_at_ms),
        "revoked": instant_of(record.revoked_at_ms),
        "overlap_ends": instant_of(_overlap_ends_at_ms(record, at_ms)),
        "last_used": instant_of(record.last_used_at_ms),
        "imported": any(secret.imported for secret in record.secrets),
        "requests_per_minute": record.limits.requests_per_minute if record.limits else None,
        "tokens_per_minute": record.limits.tokens_per_minute if record.limits else None,
        "max_parallel": record.max_parallel,
        "models": None if record.models is None else sorted(record.models),
        "budgets": budget_views(record.budgets, at_ms, spent_nano_usd, record.team, record.kid),
        "max_wait_ms": record.max_wait_ms,
    }
