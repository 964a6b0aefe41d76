"""Teams and tiers as programs are shown them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from proxy.core.budget import Period
from proxy.core.principal import CacheMode, Team
from proxy.core.tiers import Limits, Tier
from proxy.core.views.budgets import BudgetView, budget_views
from proxy.core.views.instants import Instant, instant_of

__all__ = ["LimitsView", "ModelLimitView", "PhaseView", "TeamView", "TierView", "limits_view", "team_view", "tier_view"]


class LimitsView(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a team or a phase; null is none."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    request_capacity: Annotated[int | None, Meta(description="Requests at once; null: one minute's worth.")]
    token_capacity: Annotated[int | None, Meta(description="Tokens at once; null: one minute's worth.")]


class ModelLimitView(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a team on one model, beside its limits in all."""

    requests_per_minute: int | None
    tokens_per_minute: int | None


class TeamView(msgspec.Struct, frozen=True, kw_only=True):
    """A team."""

    name: str
    tier: str
    tier_since: Instant
    limits: Annotated[LimitsView | None, Meta(description="What holds now; null when its tier is no more.")]
    own_limits: Annotated[LimitsView | None, Meta(description="Numbers of its own, in place of its tier's.")]
    max_parallel: Annotated[int | None, Meta(description="Requests it may have under way at one time.")]
    model_limits: Annotated[dict[str, ModelLimitView], Meta(description="By the name clients ask for.")]
    shadow_tier: Annotated[str | None, Meta(description="Tier it is tried on, which refuses nothing.")]
    shadow_since: Instant | None
    cache: CacheMode
    models: Annotated[list[str] | None, Meta(description="Models it may use; null: all.")]
    stateful: Annotated[bool, Meta(description="Whether its responses may refer to what is kept at OpenAI.")]
    created: Instant
    budgets: Annotated[list[BudgetView], Meta(description="One at most for each period.")] = []
    weight: Annotated[int, Meta(description="Its share where teams wait for the same upstream.")]


class PhaseView(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that hold for a while, or from then on."""

    limits: LimitsView
    lasts_seconds: Annotated[float | None, Meta(description="Null in the last phase, which does not end.")]


class TierView(msgspec.Struct, frozen=True, kw_only=True):
    """A tier: phases that a team goes through from the moment it is put on it."""

    name: str
    default: Annotated[bool, Meta(description="Whether teams are put on it that name none.")]
    phases: list[PhaseView]


def team_view(
    team: Team,
    tiers: Mapping[str, Tier],
    at_ms: int,
    spent_nano_usd: Mapping[tuple[str, str, Period], int] | None = None,
) -> TeamView:
    """A team, with the limits that hold for it at `at_ms`, and what it has spent of its budgets, if that was read."""
    tier = tiers.get(team.tier)
    held = None if tier is None else tier.schedule(team.tier_since_ms, at_ms, team.limits).limits_at(at_ms)
    return TeamView(
        name=team.name,
        tier=team.tier,
        tier_since=instant_of(team.tier_since_ms),
        limits=None if held is None else limits_view(held),
        own_limits=None if team.limits is None else limits_view(team.limits),
        max_parallel=team.max_parallel,
        model_limits={
            model: ModelLimitView(requests_per_minute=own.requests_per_minute, tokens_per_minute=own.tokens_per_minute)
            for model, own in sorted(team.model_limits.items())
        },
        shadow_tier=team.shadow_tier,
        shadow_since=instant_of(team.shadow_since_ms) if team.shadow_tier else None,
        cache=team.cache_mode,
        models=None if team.models is None else sorted(team.models),
        stateful=team.allow_stateful,
        created=instant_of(team.created_at_ms),
        budgets=budget_views(team.budgets, at_ms, spent_nano_usd, team.name),
        weight=team.weight,
    )


def tier_view(tier: Tier, default_tier: str) -> TierView:
    """A tier with its phases."""
    return TierView(
        name=tier.name,
        default=tier.name == default_tier,
        phases=[
            PhaseView(
                limits=limits_view(phase.limits),
                lasts_seconds=None if phase.lasts_ms is None else phase.lasts_ms / 1_000,
            )
            for phase in tier.phases
        ],
    )


def limits_view(limits: Limits) -> LimitsView:
    """Limits, number by number."""
    return LimitsView(
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        request_capacity=limits.request_capacity,
        token_capacity=limits.token_capacity,
    )
