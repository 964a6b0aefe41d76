"""Rows of teams and keys, and the records they stand for."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import RowMapping

from proxy.core.principal import CacheMode, KeyRecord, Team
from proxy.core.tiers import Limits

__all__ = ["key_of", "model_list", "team_of"]


def team_of(row: RowMapping) -> Team:
    """The team a row of `teams` describes."""
    limits = Limits(**{name: row[name] for name in Limits.__slots__})
    return Team(
        name=row["name"],
        tier=row["tier"],
        tier_since_ms=row["tier_since_ms"],
        limits=None if limits == Limits() else limits,
        cache_mode=CacheMode(row["cache_mode"]),
        allow_stateful=row["allow_stateful"],
        models=_models(row["models"]),
        created_at_ms=row["created_at_ms"],
        cache_secret=row["cache_secret"],
    )


def key_of(row: RowMapping) -> KeyRecord:
    """The key a row of `api_keys` describes."""
    return KeyRecord(
        kid=row["kid"],
        team=row["team"],
        label=row["label"],
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
        models=_models(row["models"]),
        pepper_id=row["pepper_id"],
        secret_hash=row["secret_hash"],
    )


def model_list(models: frozenset[str] | None) -> list[str] | None:
    """How a set of models is kept; None is NULL and means all."""
    return None if models is None else sorted(models)


def _models(kept: Iterable[str] | None) -> frozenset[str] | None:
    return None if kept is None else frozenset(kept)
