"""Rows of teams and keys, and the records they stand for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from proxy.adapters.sql.tables import budgets, key_secrets
from proxy.core.budget import Budget, Period
from proxy.core.principal import CacheMode, KeyRecord, KeySecret, Team
from proxy.core.tiers import Limits

__all__ = [
    "budget_values",
    "budgets_in",
    "cache_salts_of",
    "key_of",
    "key_values",
    "model_limits_of",
    "model_list",
    "secret_values",
    "secrets_in",
    "team_of",
]

_RATES = ("requests_per_minute", "tokens_per_minute")
_NO_SALTS: Mapping[str, bytes] = MappingProxyType({})


def team_of(
    row: RowMapping,
    model_limits: Mapping[str, Limits],
    cache_salts: Mapping[str, bytes] = _NO_SALTS,
    own_budgets: tuple[Budget, ...] = (),
) -> Team:
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
        budgets=own_budgets,
        weight=row["weight"],
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


def key_of(row: RowMapping, secrets: Iterable[KeySecret], own_budgets: tuple[Budget, ...] = ()) -> KeyRecord:
    """The key a row of `api_keys` describes, with what opens it."""
    return KeyRecord(
        kid=row["kid"],
        team=row["team"],
        label=row["label"],
        created_at_ms=row["created_at_ms"],
        expires_at_ms=row["expires_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
        models=_models(row["models"]),
        secrets=tuple(secrets),
        limits=_limits(row, _RATES),
        max_parallel=row["max_parallel"],
        created_by=row["created_by"],
        last_used_at_ms=row["last_used_at_ms"],
        budgets=own_budgets,
        max_wait_ms=row["max_wait_ms"],
    )


def key_values(record: KeyRecord) -> dict[str, object]:
    """The row of `api_keys` that describes a key."""
    elsewhere = ("limits", "secrets", "budgets")
    values: dict[str, object] = {
        name: getattr(record, name) for name in KeyRecord.__struct_fields__ if name not in elsewhere
    }
    own = record.limits or Limits()
    return values | {"models": model_list(record.models)} | {name: getattr(own, name) for name in _RATES}


def budgets_in(connection: Connection, *of: ColumnElement[bool]) -> dict[tuple[str, str], tuple[Budget, ...]]:
    """Budgets by team and id of the key (empty for the team's own), shortest first: those that `of` are true of."""
    found: dict[tuple[str, str], dict[Period, Budget]] = {}
    for row in connection.execute(select(budgets).where(*of)).mappings():
        budget = Budget(Period(row["period"]), row["limit_nano_usd"], row["warn_nano_usd"])
        found.setdefault((row["team"], row["kid"]), {})[budget.period] = budget
    return {owner: tuple(own[period] for period in Period if period in own) for owner, own in found.items()}


def budget_values(budget: Budget) -> dict[str, object]:
    """What the row of `budgets` says of a budget, but for whose it is."""
    return {
        "period": budget.period.value,
        "limit_nano_usd": budget.limit_nano_usd,
        "warn_nano_usd": budget.warn_nano_usd,
    }


def secrets_in(connection: Connection, kids: ColumnElement[bool] | None = None) -> dict[str, list[KeySecret]]:
    """What opens keys, by id and oldest first: of those for which the condition on `key_secrets` holds."""
    query = select(key_secrets).order_by(key_secrets.c.kid, key_secrets.c.serial, key_secrets.c.pepper_id)
    rows = connection.execute(query if kids is None else query.where(kids)).mappings()
    found: dict[str, list[KeySecret]] = {}
    for row in rows:
        found.setdefault(row["kid"], []).append(KeySecret(**{name: row[name] for name in KeySecret.__struct_fields__}))
    return found


def secret_values(kid: str, secret: KeySecret) -> dict[str, object]:
    """The row of `key_secrets` that describes a secret."""
    return {"kid": kid} | {name: getattr(secret, name) for name in KeySecret.__struct_fields__}


def model_list(models: frozenset[str] | None) -> list[str] | None:
    """How a set of models is kept; None is NULL and means all."""
    return None if models is None else sorted(models)


def _limits(row: RowMapping, names: Iterable[str]) -> Limits | None:
    numbers = {name: row[name] for name in names}
    return Limits(**numbers) if any(number is not None for number in numbers.values()) else None


def _models(kept: Iterable[str] | None) -> frozenset[str] | None:
    return None if kept is None else frozenset(kept)
