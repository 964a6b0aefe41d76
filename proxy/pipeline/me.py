"""`GET /v1/tollgate/me`: what a team may see of itself. Free of charge, and changes nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from proxy.core.bucket import Scope, Standing
from proxy.core.budget import Period
from proxy.core.principal import Principal
from proxy.core.views.budgets import budget_views
from proxy.core.views.instants import instant_of
from proxy.core.views.me import KeyInUseView, MeView, TierInUseView, room_view
from proxy.pipeline.admit import scopes_of
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.services import Policy, Services

__all__ = ["base_url_of", "budgets_spent_of", "models_of", "show_caller", "standings_of", "tier_of"]

_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "private, no-store"))
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?", re.ASCII)
_NO_MODEL = ""


async def show_caller(exchange: Exchange, services: Services) -> Reply:
    """Show team, key, limits with what is left of them, and usage. Raises as `authenticate`."""
    await authenticate(exchange, services)
    principal, policy, now_ms = exchange.principal, services.policy, exchange.at_ms
    team, key = principal.team, principal.key
    standings = await standings_of(principal, services, now_ms)
    switch_ms = standings[0][0].schedule.switch_at_ms
    spent = await budgets_spent_of(principal, services)
    shown = MeView(
        team=team.name,
        key=KeyInUseView(
            id=key.kid,
            label=key.label,
            expires=instant_of(key.expires_at_ms),
            secret_ends=instant_of(principal.secret_ends_at_ms),
            max_wait_ms=key.max_wait_ms,
        ),
        tier=TierInUseView(
            name=tier_of(principal, policy),
            since=instant_of(team.tier_since_ms),
            changes=None if switch_ms is None or switch_ms <= now_ms else instant_of(switch_ms),
        ),
        limits=[room_view(scope, standing) for scope, standing in standings],
        models=models_of(principal),
        cache=team.cache_mode,
        usage=None if services.team_usage is None else await services.team_usage.of(team.name),
        base_url=base_url_of(exchange),
        budgets=budget_views(team.budgets, now_ms, spent, team.name),
        key_budgets=budget_views(key.budgets, now_ms, spent, team.name, key.kid),
    )
    return Reply(200, _HEADERS, msgspec.json.encode(shown))


async def standings_of(principal: Principal, services: Services, now_ms: int) -> tuple[tuple[Scope, Standing], ...]:
    """Every bucket a request of this key may come to, the team's own first, and where it stands."""
    scopes = _scopes(principal, services.policy, now_ms)
    return tuple(zip(scopes, await services.limiter.peek(principal.team.name, scopes), strict=True))


async def budgets_spent_of(principal: Principal, services: Services) -> Mapping[tuple[str, str, Period], int] | None:
    """What is spent of the budgets of team and key, as `budget_views` takes it; None where there is none to ask for."""
    if not (principal.team.budgets or principal.key.budgets) or services.budgets_spent is None:
        return None
    return await services.budgets_spent.of(principal.team.name)


def tier_of(principal: Principal, policy: Policy) -> str:
    """The tier the team is held to."""
    return principal.team.tier if principal.team.tier in policy.tiers else policy.default_tier


def _scopes(principal: Principal, policy: Policy, now_ms: int) -> tuple[Scope, ...]:
    """Every bucket a request of this key may come to: those of any request, then those of single models."""
    scopes = scopes_of(principal, _NO_MODEL, policy, now_ms)
    for model in sorted(principal.team.model_limits):
        if principal.may_use_any({model, *(alias for alias, named in policy.aliases.items() if named == model)}):
            scopes += tuple(
                scope for scope in scopes_of(principal, model, policy, now_ms) if scope.name == f"model:{model}"
            )
    return scopes


def models_of(principal: Principal) -> list[str] | None:
    """Models that both the team and the key are open to; None: all."""
    allowed = [models for models in (principal.team.models, principal.key.models) if models is not None]
    return sorted(frozenset.intersection(*allowed)) if allowed else None


def base_url_of(exchange: Exchange) -> str | None:
    """The address the client came by, as far as it and what stands before us say."""
    host = exchange.headers.get("Host", "")
    if _HOST.fullmatch(host) is None:
        return None
    return f"{'https' if exchange.came_by_tls else 'http'}://{host}/v1"
