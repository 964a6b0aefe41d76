"""Who is asking: a team, and the key it used."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum

import msgspec

from proxy.core.budget import Budget
from proxy.core.discreet import Discreet
from proxy.core.tiers import Limits

__all__ = ["HEAVIEST_WEIGHT", "LONGEST_MAX_WAIT_MS", "CacheMode", "KeyRecord", "KeySecret", "Principal", "Team"]

HEAVIEST_WEIGHT = 100
LONGEST_MAX_WAIT_MS = 3_600_000
"""One hour."""


class CacheMode(StrEnum):
    """Which of a team's requests may be answered from the cache."""

    OFF = "off"
    DETERMINISTIC = "deterministic"
    ALL = "all"


class Team(Discreet, frozen=True, gc=False):
    """A tenant."""

    hidden = frozenset({"cache_secret", "cache_salts"})

    name: str
    tier: str
    tier_since_ms: int
    """When the team was put on the tier; its phases count from here."""
    limits: Limits | None = None
    """Numbers of its own; each one that is not None takes the place of the tier's."""
    cache_mode: CacheMode = CacheMode.DETERMINISTIC
    allow_stateful: bool = False
    """Whether endpoints that keep state at OpenAI are open to it."""
    models: frozenset[str] | None = None
    """Models it may use; None: all."""
    created_at_ms: int = 0
    cache_secret: bytes = b""
    """32 random bytes of its own, under which its cache digests are made. Others in their place forget its answers."""
    max_parallel: int | None = None
    """Requests it may have under way at one time; None: any number."""
    model_limits: Mapping[str, Limits] = msgspec.field(default_factory=dict)
    """Limits on single models, by their own names, which aliases stand for; each has a bucket beside the team's own."""
    shadow_tier: str | None = None
    """Tier it is tried on: decided against it too, and refused nothing for it."""
    shadow_since_ms: int = 0
    """When the trial began; the shadow tier's phases count from here."""
    cache_salts: Mapping[str, bytes] = msgspec.field(default_factory=dict)
    """Random bytes that are a part of the digests of single models; others in their place forget those answers."""
    budgets: tuple[Budget, ...] = ()
    """What it may spend, one at most for each period."""
    weight: int = 1
    """Its share, 1 to `HEAVIEST_WEIGHT`, where several teams wait for the same upstream."""


class KeySecret(Discreet, frozen=True, gc=False):
    """How one of the secrets of a key is known: by its keyed hash under one pepper."""

    hidden = frozenset({"secret_hash"})

    serial: int
    """Which of the key's secrets, from 1 on; a secret hashed under two peppers is here twice."""
    pepper_id: int
    secret_hash: bytes
    created_at_ms: int
    ends_at_ms: int | None = None
    """When it stops, having been rotated; None: with its key."""
    imported: bool = False
    """Whether the key was made elsewhere, and is found by this hash."""

    def live_at(self, now_ms: int) -> bool:
        """Whether a live key is opened by it at `now_ms`."""
        return self.ends_at_ms is None or now_ms < self.ends_at_ms


class KeyRecord(msgspec.Struct, frozen=True, gc=False):
    """A key as the store knows it: never a secret."""

    kid: str
    team: str
    label: str
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    models: frozenset[str] | None
    secrets: tuple[KeySecret, ...]
    """What opens it, oldest first: one, and for the overlap of a rotation the one before."""
    limits: Limits | None = None
    """Of its own, beside its team's; None: none."""
    max_parallel: int | None = None
    """Requests it may have under way at one time; None: as many as its team."""
    created_by: str = ""
    """Who made it, as the audit log names them; empty when that is not known."""
    last_used_at_ms: int | None = None
    """When it was last seen to open something, to about a minute; None: never yet."""
    budgets: tuple[Budget, ...] = ()
    """What may be spent with it, of what its team may spend; one at most for each period."""
    max_wait_ms: int | None = None
    """How long its requests wait for their turn unless they say otherwise, at most `LONGEST_MAX_WAIT_MS`; None: they
    are refused at once."""

    @property
    def name(self) -> str:
        """What people call it: its label, or its id when it has none."""
        return self.label or self.kid

    def live_at(self, now_ms: int) -> bool:
        """Whether the key opens anything at `now_ms`."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


class Principal(msgspec.Struct, frozen=True, gc=False):
    """The authenticated caller."""

    team: Team
    key: KeyRecord
    secret_ends_at_ms: int | None = None
    """When the secret that was used stops, its key going on under a newer one; None: with the key."""

    def live_at(self, now_ms: int) -> bool:
        """Whether the secret that was used opens anything at `now_ms`."""
        ends = self.secret_ends_at_ms
        return self.key.live_at(now_ms) and (ends is None or now_ms < ends)

    def may_use(self, model: str) -> bool:
        """Whether both the team and the key are open to `model`."""
        return all(allowed is None or model in allowed for allowed in (self.team.models, self.key.models))

    def may_use_any(self, names: Collection[str]) -> bool:
        """Whether both are open to a model by one of its names, not necessarily the same one."""
        both = (self.team.models, self.key.models)
        return all(allowed is None or not allowed.isdisjoint(names) for allowed in both)
