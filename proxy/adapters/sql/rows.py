"""Rows of teams and keys, and the records they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sqlalchemy import RowMapping

from proxy.core.principal import CacheMode, KeyRecord, Team
from proxy.core.tiers import Limits

__all__ = ["cache_salts_of", "key_of", "key_values", "model_limits_of", "model_list", "team_of"]

_RATES = ("requests_per_minute", "tokens_per_minute")
_NO_SALTS: Mapping[str, bytes] = MappingProxyType({})


def team_of(row: RowMapping, model_limits: Mapping[str, Limits], cache_salts: Mapping[str, bytes] = _NO_SALTS) -> Team:
    """The team a row of `teams` describes."""
    return Team(
        name=row["name"],
        tier=row["tier"],
        tier_since_ms=row["tier_since_ms"],
        limits=_limits(row, Limits.__slots__),
        cache_mode=CacheMode(row["cache_mode"]),
        allow_stateful=row["allow_stateful"],
        models=_models(row["models"]),
        created_at_ms=row["created_at_ms"],
        cache_secret=row["cache_secret"],
        max_parallel=row["max_parallel"],
        model_limits=model_limits,
        shadow_tier=row["shadow_tier"],
        shadow_since_ms=row["shadow_since_ms"] or 0,
        cache_salts=cache_salts,
    )


def model_limits_of(rows: Iterable[RowMapping]) -> dict[str, dict[str, Limits]]:
    """The limits rows of `model_limits` describe, by team and model."""
    found: dict[str, dict[str, Limits]] = {}
    for row in rows:
        found.setdefault(row["team"], {})[row["model"]] = _limits(row, _RATES) or Limits()
    return found


def cache_salts_of(rows: Iterable[RowMapping]) -> dict[str, dict[str, bytes]]:
    """The salts rows of `cache_salts` hold, by team and model."""
    found: dict[str, dict[str, bytes]] = {}
    for row in rows:
        found.setdefault(row["team"], {})[row["model"]] = row["salt"]
    return found


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
        limits=_limits(row, _RATES),
        max_parallel=row["max_parallel"],
    )


def key_values(record: KeyRecord) -> dict[str, object]:
    """The row of `api_keys` that describes a key."""
    values: dict[str, object] = {name: getattr(record, name) for name in KeyRecord.__slots__ if name != "limits"}
    own = record.limits or Limits()
    return values | {"models": model_list(record.models)} | {name: getattr(own, name) for name in _RATES}


def model_list(models: frozenset[str] | None) -> list[str] | None:
    """How a set of models is kept; None is NULL and means all."""
    return None if models is None else sorted(models)


def _limits(row: RowMapping, names: Iterable[str]) -> Limits | None:
    numbers = {name: row[name] for name in names}
    return Limits(**numbers) if any(number is not None for number in numbers.values()) else None


def _models(kept: Iterable[str] | None) -> frozenset[str] | None:
    return None if kept is None else frozenset(kept)
