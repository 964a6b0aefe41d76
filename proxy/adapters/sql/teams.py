"""Changes of teams."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Unpack

from sqlalchemy import delete, select, update

from proxy.adapters.sql.budgets import changed, keep_budgets, told_budgets
from proxy.adapters.sql.changes import Changes, check_numbers, team_in
from proxy.adapters.sql.engine import insert_into
from proxy.adapters.sql.rows import budgets_in, cache_salts_of, model_limits_of, model_list, team_of
from proxy.adapters.sql.tables import budgets, cache_salts, model_limits, teams
from proxy.core.names import checked_model, checked_models, checked_name, checked_tier
from proxy.core.principal import CacheMode, Team
from proxy.core.registry import TeamChanges, TeamExists, TeamFields
from proxy.core.tiers import Limits

__all__ = ["SqlTeams"]

_SECRET_BYTES = 32


class SqlTeams(Changes):
    """The teams of `core.registry.Registry`."""

    def add_team(self, name: str, tier: str, **fields: Unpack[TeamFields]) -> Team:
        """Make a team; it is on the tier from now. Raises `TeamExists`, `BadName`, `BadValue`, `StoreAway`."""
        now_ms = self._clock.now_ms()
        values = {"cache_mode": CacheMode.DETERMINISTIC.value, "allow_stateful": False} | _columns(
            {"tier": tier, **fields}
        )
        values |= {"name": checked_name(name), "tier_since_ms": now_ms, "created_at_ms": now_ms}
        if values.get("shadow_tier"):
            values["shadow_since_ms"] = now_ms
        secret = {"cache_secret": secrets.token_bytes(_SECRET_BYTES)}
        with self._change("add_team") as connection:
            made = insert_into(connection, teams).values(values | secret).on_conflict_do_nothing()
            if not connection.execute(made.returning(teams.c.name)).all():
                raise TeamExists(name)
            own = changed((), fields.get("budgets", {}))
            keep_budgets(connection, name, [""], own)
            told = {"budgets": told_budgets(own, fields["budgets"])} if fields.get("budgets") else {}
            self._note(connection, "team.add", name, name, values | told)
            return team_in(connection, name)

    def set_team(self, name: str, **changes: Unpack[TeamChanges]) -> Team:
        """Change the fields given; another tier, and another shadow tier, counts from now.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        values = _columns(changes)
        with self._change("set_team") as connection:
            before = team_in(connection, name)
            if values.get("tier", before.tier) != before.tier:
                values["tier_since_ms"] = self._clock.now_ms()
            if values.get("shadow_tier", before.shadow_tier) != before.shadow_tier:
                values["shadow_since_ms"] = self._clock.now_ms() if values["shadow_tier"] else None
            told: dict[str, object] = {}
            if changes.get("budgets"):
                own = changed(before.budgets, changes["budgets"])
                keep_budgets(connection, name, [""], own)
                told = {"budgets": told_budgets(own, changes["budgets"])}
            if values:
                connection.execute(update(teams).where(teams.c.name == name).values(values))
            if values or told:
                self._note(connection, "team.set", name, name, values | told)
            return team_in(connection, name)

    def set_model_limit(
        self, team: str, model: str, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> Team:
        """Limit the team's use of one model, in place of a limit it had; without numbers, limit it no more.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        checked_model(model)
        numbers = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        check_numbers(numbers)
        with self._change("set_model_limit") as connection:
            before = team_in(connection, team).model_limits.get(model)
            if before == (Limits(**numbers) if any(numbers.values()) else None):
                return team_in(connection, team)
            here = (model_limits.c.team, model_limits.c.model)
            if any(numbers.values()):
                made = insert_into(connection, model_limits).values(team=team, model=model, **numbers)
                connection.execute(made.on_conflict_do_update(index_elements=list(here), set_=numbers))
            else:
                connection.execute(delete(model_limits).where(here[0] == team, here[1] == model))
            self._note(connection, "team.limit", team, team, {"model": model, **numbers})
            return team_in(connection, team)

    def purge_cache(self, team: str, model: str | None = None) -> Team:
        """Forget every answer kept for the team, or those of one model, by the name clients ask for.

        Raises `TeamUnknown`, `BadValue`, `StoreAway`.
        """
        if model is not None:
            checked_model(model)
        fresh = secrets.token_bytes(_SECRET_BYTES)
        with self._change("purge_cache") as connection:
            team_in(connection, team)
            if model is None:
                connection.execute(update(teams).where(teams.c.name == team).values(cache_secret=fresh))
                # Under another secret no old digest can come again, whatever the salt.
                connection.execute(delete(cache_salts).where(cache_salts.c.team == team))
            else:
                made = insert_into(connection, cache_salts).values(team=team, model=model, salt=fresh)
                here = [cache_salts.c.team, cache_salts.c.model]
                connection.execute(made.on_conflict_do_update(index_elements=here, set_={"salt": fresh}))
            self._note(connection, "cache.purge", team, team, {"model": model})
            return team_in(connection, team)

    def get_team(self, name: str) -> Team:
        """The team. Raises `TeamUnknown`, `StoreAway`."""
        with self._look("get_team") as connection:
            return team_in(connection, name)

    def list_teams(self) -> Sequence[Team]:
        """Every team, by name. Raises `StoreAway`."""
        with self._look("list_teams") as connection:
            limits = model_limits_of(connection.execute(select(model_limits)).mappings())
            salts = cache_salts_of(connection.execute(select(cache_salts)).mappings())
            own = budgets_in(connection, budgets.c.kid == "")
            rows = connection.execute(select(teams).order_by(teams.c.name)).mappings()
            return [
                team_of(row, limits.get(name, {}), salts.get(name, {}), own.get((name, ""), ()))
                for row in rows
                for name in [row["name"]]
            ]

    def team_names(self, limit: int) -> Sequence[str]:
        """Names of teams, the first so many. Raises `StoreAway`."""
        with self._look("team_names") as connection:
            return list(connection.execute(select(teams.c.name).order_by(teams.c.name).limit(limit)).scalars())


def _columns(changes: TeamChanges) -> dict[str, object]:
    """Columns of `teams` for the fields of a change."""
    columns: dict[str, object] = {name: value for name, value in changes.items() if name != "budgets"}
    if "tier" in changes:
        checked_tier("tier", changes["tier"])
    if (shadow := changes.get("shadow_tier")) is not None:
        checked_tier("shadow_tier", shadow)
    if "models" in changes:
        columns["models"] = model_list(checked_models(changes["models"]))
    if "cache_mode" in changes:
        columns["cache_mode"] = CacheMode(changes["cache_mode"]).value
    check_numbers(columns)
    return columns
