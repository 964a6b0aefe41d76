"""What would another tier have said? A second decision, which refuses nothing and costs the team nothing."""

from __future__ import annotations

from proxy.core.bucket import Admitted, Cost, NeverFits, OverBudget, Refused, Scope
from proxy.core.errors import StoreAway
from proxy.core.estimate import estimate_output
from proxy.pipeline.exchange import Exchange, Shadow
from proxy.pipeline.services import Services

__all__ = ["decide_shadow", "shadow_status"]


async def decide_shadow(exchange: Exchange, services: Services) -> None:
    """Decide an admitted request once more, against the bucket of its team's shadow tier alone.

    That bucket is charged and settled as if the team were on the tier, and like any other by nothing that it refuses.
    A tier that is no longer configured, and a limiter that is away, decide nothing.
    """
    team, policy, asked = exchange.principal.team, services.policy, exchange.asked
    tier = policy.tiers.get(team.shadow_tier) if team.shadow_tier is not None else None
    if tier is None:
        return
    scope = Scope("shadow", tier.schedule(team.shadow_since_ms, exchange.at_ms))
    cost = exchange.admitted.reservation.cost
    if exchange.hit is None and not exchange.collapsed:
        capacity = scope.schedule.limits_at(exchange.at_ms).effective_token_capacity
        prompt = exchange.reserved_input_tokens
        room = None if capacity is None else capacity - prompt
        cost = Cost(1, prompt + estimate_output(asked, policy.default_output_reservation_tokens, room))
    try:
        decision = await services.limiter.reserve(team.name, (scope,), cost)
    except StoreAway:
        return
    if not isinstance(decision, OverBudget):  # which nobody was asked for
        exchange.shadow = Shadow(tier.name, decision)


def shadow_status(shadow: Shadow) -> str:
    """Tell the decision in a header: `tier=free; ok`, or `tier=free; limited=tokens; wait_ms=1234`.

    Where no wait would help, `never` stands in the place of the wait.
    """
    match shadow.decision:
        case Admitted():
            return f"tier={shadow.tier}; ok"
        case Refused() as refused:
            return f"tier={shadow.tier}; limited={refused.dimension.value}; wait_ms={refused.wait_ms}"
        case NeverFits() as never:
            return f"tier={shadow.tier}; limited={never.dimension.value}; never"
