"""May it pass now? One reservation over all of the caller's buckets, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.bucket import Admitted, Cost, NeverFits, Refused, Scope
from proxy.core.errors import LimitReached, NeverAdmissible
from proxy.core.estimate import estimate_input, estimate_output
from proxy.core.principal import Principal
from proxy.core.tiers import Tier
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["admit", "scopes_of"]


async def admit(exchange: Exchange, services: Services) -> None:
    """Reserve what the request may cost; a cache hit costs a request and no tokens.

    Raises `LimitReached`, `NeverAdmissible`, `StoreAway`; a refusal has changed nothing.
    """
    principal, chat = exchange.principal, exchange.chat
    policy = services.policy
    scopes = scopes_of(principal, policy.tiers, policy.default_tier, exchange.at_ms)
    if exchange.hit is not None:
        cost = Cost(policy.hits_cost_requests, 0)
    else:
        prompt = estimate_input(chat)
        capacity = scopes[0].schedule.limits_at(exchange.at_ms).effective_token_capacity
        room = None if capacity is None else capacity - prompt
        answer = estimate_output(chat, policy.default_output_reservation_tokens, room)
        exchange.reserved_input_tokens, exchange.reserved_output_tokens = prompt, answer
        cost = Cost(1, prompt + answer)
    match await services.limiter.reserve(principal.team.name, scopes, cost):
        case Admitted() as admitted:
            exchange.admitted = admitted
        case Refused() as refused:
            raise LimitReached(principal.team.name, chat.model, refused)
        case NeverFits() as never:
            raise NeverAdmissible(principal.team.name, chat.model, never)


def scopes_of(principal: Principal, tiers: Mapping[str, Tier], default_tier: str, now_ms: int) -> tuple[Scope, ...]:
    """List the buckets a caller's requests pass, the team's own first."""
    team = principal.team
    tier = tiers.get(team.tier) or tiers[default_tier]
    return (Scope("team", tier.schedule(team.tier_since_ms, now_ms, team.limits)),)
