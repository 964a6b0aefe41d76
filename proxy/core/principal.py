"""Who is asking: a team, and the key it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from proxy.core.tiers import Limits

__all__ = ["CacheMode", "KeyRecord", "Principal", "Team"]


class CacheMode(StrEnum):
    """Which of a team's requests may be answered from the cache."""

    OFF = "off"
    DETERMINISTIC = "deterministic"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Team:
    """A tenant."""

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
    cache_secret: bytes = field(default=b"", repr=False)
    """32 random bytes of its own, under which its cache digests are made. Others in their place forget its answers."""
    max_parallel: int | None = None
    """Requests it may have under way at one time; None: any number."""
    model_limits: Mapping[str, Limits] = field(default_factory=dict)
    """Limits on single models, by the name clients ask for; each has a bucket beside the team's own."""
    shadow_tier: str | None = None
    """Tier it is tried on: decided against it too, and refused nothing for it."""
    shadow_since_ms: int = 0
    """When the trial began; the shadow tier's phases count from here."""
    cache_salts: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """Random bytes that are a part of the digests of single models; others in their place forget those answers."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An issued key as the store knows it: never the secret."""

    kid: str
    team: str
    label: str
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    models: frozenset[str] | None
    pepper_id: int
    secret_hash: bytes = field(repr=False)
    limits: Limits | None = None
    """Of its own, beside its team's; None: none."""
    max_parallel: int | None = None
    """Requests it may have under way at one time; None: as many as its team."""

    @property
    def name(self) -> str:
        """What people call it: its label, or its id when it has none."""
        return self.label or self.kid

    def live_at(self, now_ms: int) -> bool:
        """Whether the key opens anything at `now_ms`."""
        return self.revoked_at_ms is None and (self.expires_at_ms is None or now_ms < self.expires_at_ms)


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller."""

    team: Team
    key: KeyRecord

    def may_use(self, model: str) -> bool:
        """Whether both the team and the key are open to `model`."""
        return all(allowed is None or model in allowed for allowed in (self.team.models, self.key.models))
