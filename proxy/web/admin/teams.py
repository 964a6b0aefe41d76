"""Teams, the limits of their models, and tiers."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.core.principal import HEAVIEST_WEIGHT, CacheMode
from proxy.core.registry import BadName, BadValue, TeamExists, TeamUnknown
from proxy.core.views.teams import TeamView, TierView, tier_view
from proxy.web.admin import examples
from proxy.web.admin.budgets import BudgetsBody, budget_changes
from proxy.web.admin.desk import Desk
from proxy.web.admin.operation import (
    Limit,
    ModelName,
    ModelNames,
    Nothing,
    Operation,
    PageSize,
    Strict,
    TeamName,
    TierName,
    given,
    model_set,
)

__all__ = ["OPERATIONS"]

Number = Annotated[Limit | None, Meta(description="Null: none of its own.")] | UnsetType
_NUMBERS = ("requests_per_minute", "tokens_per_minute", "request_capacity", "token_capacity", "max_parallel")

Weight = Annotated[int, Meta(ge=1, le=HEAVIEST_WEIGHT, description="Its share where teams wait for the same upstream.")]


class TeamPath(Strict, frozen=True, kw_only=True):
    team: TeamName


class TeamQuery(Strict, frozen=True, kw_only=True):
    limit: PageSize = 100
    cursor: Annotated[str, Meta(max_length=63, description="`next_cursor` of the page before.")] = ""


class TeamPage(msgspec.Struct, frozen=True, kw_only=True):
    """Some teams, by name."""

    data: list[TeamView]
    next_cursor: str | None


class TeamChange(Strict, frozen=True, kw_only=True):
    """Fields of a team; one that is left out stays as it is."""

    tier: TierName | UnsetType = UNSET
    shadow_tier: Annotated[TierName | None, Meta(description="Tier to try it on; null: none.")] | UnsetType = UNSET
    requests_per_minute: Number = UNSET
    tokens_per_minute: Number = UNSET
    request_capacity: Number = UNSET
    token_capacity: Number = UNSET
    max_parallel: Number = UNSET
    cache: CacheMode | UnsetType = UNSET
    models: Annotated[ModelNames | None, Meta(description="Models it may use; null: all.")] | UnsetType = UNSET
    stateful: (
        Annotated[bool, Meta(description="Whether its responses may refer to what is kept at OpenAI.")] | UnsetType
    ) = UNSET
    budgets: BudgetsBody | UnsetType = UNSET
    weight: Weight | UnsetType = UNSET


class NewTeam(TeamChange, frozen=True, kw_only=True):
    """A team to make; without a tier it is put on the default one."""

    name: TeamName


class ModelPath(Strict, frozen=True, kw_only=True):
    team: TeamName
    model: ModelName


class ModelLimit(Strict, frozen=True, kw_only=True):
    """At least one of the two; both together take the place of what there was."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None


class TierList(msgspec.Struct, frozen=True, kw_only=True):
    """Every tier there is."""

    data: list[TierView]


def list_teams(desk: Desk, params: TeamQuery, _: Nothing) -> TeamPage:
    with desk.registry() as registry:
        found = [team for team in registry.list_teams() if team.name > params.cursor]
    page = found[: params.limit]
    spent = desk.spent() if any(team.budgets for team in page) else None
    return TeamPage(
        data=[desk.team(team, spent) for team in page],
        next_cursor=page[-1].name if len(found) > len(page) else None,
    )


def add_team(desk: Desk, _: Nothing, body: NewTeam) -> TeamView:
    fields = _fields(desk, body)
    tier = fields.pop("tier", desk.default_tier)
    with desk.registry() as registry:
        return desk.team(registry.add_team(body.name, tier, **fields))


def get_team(desk: Desk, params: TeamPath, _: Nothing) -> TeamView:
    with desk.registry() as registry:
        return desk.team(registry.get_team(params.team))


def set_team(desk: Desk, params: TeamPath, body: TeamChange) -> TeamView:
    fields = _fields(desk, body)
    with desk.registry() as registry:
        return desk.team(registry.set_team(params.team, **fields))


def set_model_limit(desk: Desk, params: ModelPath, body: ModelLimit) -> TeamView:
    if body.requests_per_minute is None and body.tokens_per_minute is None:
        raise BadValue("requests_per_minute", "give it, tokens_per_minute or both; DELETE takes the limit away")
    desk.require_own_name("model", params.model)
    with desk.registry() as registry:
        changed = registry.set_model_limit(params.team, params.model, body.requests_per_minute, body.tokens_per_minute)
    return desk.team(changed)


def clear_model_limit(desk: Desk, params: ModelPath, _: Nothing) -> TeamView:
    with desk.registry() as registry:
        return desk.team(registry.set_model_limit(params.team, params.model))


def list_tiers(desk: Desk, _: Nothing, __: Nothing) -> TierList:
    return TierList(data=[tier_view(tier, desk.default_tier) for tier in desk.tiers.values()])


def _fields(desk: Desk, body: TeamChange) -> dict[str, Any]:
    """What the registry is told of a team."""
    fields = given(body, *_NUMBERS, "tier", "shadow_tier", "weight")
    for name in ("tier", "shadow_tier"):
        if fields.get(name) is not None:
            desk.require_tier(name, fields[name])
    if body.cache is not UNSET:
        fields["cache_mode"] = body.cache
    if body.stateful is not UNSET:
        fields["allow_stateful"] = body.stateful
    if body.models is not UNSET:
        fields["models"] = model_set(body.models)
    if budgets := budget_changes(body.budgets):
        fields["budgets"] = budgets
    return fields


OPERATIONS = (
    Operation(
        name="listTeams",
        method="GET",
        path="/teams",
        summary="List teams with the limits that hold now.",
        command="teams list",
        handle=list_teams,
        params=TeamQuery,
        result=TeamPage,
        example=TeamPage(data=[examples.TEAM], next_cursor=None),
    ),
    Operation(
        name="addTeam",
        method="POST",
        path="/teams",
        summary="Make a team; it is on its tier from now.",
        command="teams add",
        handle=add_team,
        body=NewTeam,
        example_body={"name": "growth", "tier": "payg", "max_parallel": 8, "budgets": {"month": {"limit_usd": "500"}}},
        result=TeamView,
        example=examples.TEAM,
        status=201,
        raises=(TeamExists, BadName, BadValue),
    ),
    Operation(
        name="getTeam",
        method="GET",
        path="/teams/{team}",
        summary="Show a team.",
        command="",
        handle=get_team,
        params=TeamPath,
        result=TeamView,
        example=examples.TEAM,
        raises=(TeamUnknown,),
    ),
    Operation(
        name="setTeam",
        method="PATCH",
        path="/teams/{team}",
        summary="Change what is given of a team, and nothing else.",
        command="teams set",
        handle=set_team,
        params=TeamPath,
        body=TeamChange,
        example_body={"tier": "payg", "shadow_tier": None, "tokens_per_minute": 250_000},
        result=TeamView,
        example=examples.TEAM,
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="setModelLimit",
        method="PUT",
        path="/teams/{team}/model-limits/{model}",
        summary="Limit what a team uses of one model, not an alias of it, in place of a limit it had.",
        command="teams limit",
        handle=set_model_limit,
        params=ModelPath,
        body=ModelLimit,
        example_body={"requests_per_minute": 10, "tokens_per_minute": 20_000},
        result=TeamView,
        example=examples.TEAM,
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="clearModelLimit",
        method="DELETE",
        path="/teams/{team}/model-limits/{model}",
        summary="Limit a team's use of a model no more; again changes nothing.",
        command="teams limit",
        handle=clear_model_limit,
        params=ModelPath,
        result=TeamView,
        example=examples.TEAM,
        raises=(TeamUnknown, BadValue),
    ),
    Operation(
        name="listTiers",
        method="GET",
        path="/tiers",
        summary="List the tiers of the documentation and the settings.",
        command="",
        handle=list_tiers,
        result=TierList,
        example=TierList(data=[examples.TIER]),
    ),
)
