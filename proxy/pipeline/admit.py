"""May it pass now? One reservation over all of the caller's buckets, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.bucket import Admitted, Cost, NeverFits, OverBudget, Refused, Scope
from proxy.core.budget import Spend, nano_usd
from proxy.core.caps import BudgetReached, caps_of, key_scope, owner_of
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import BudgetUsedUp, LimitReached, ModelNotPriced, NeverAdmissible
from proxy.core.estimate import estimate_output
from proxy.core.pricing import may_go_unpriced, worst_case
from proxy.core.principal import Principal
from proxy.core.tiers import Limits, Schedule
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Policy, Services

__all__ = ["admit", "scopes_of"]

_UNLIMITED = Limits()


async def admit(exchange: Exchange, services: Services) -> None:
    """Reserve what the request may cost; a hit costs a request and no tokens, and so does what another pays for.

    Budgets are asked for what costs money alone. Raises `LimitReached`, `NeverAdmissible`, `BudgetUsedUp`,
    `ModelNotPriced`, `StoreAway`; a refusal has changed nothing.
    """
    principal, asked = exchange.principal, exchange.asked
    policy = services.policy
    scopes = scopes_of(principal, asked.model, policy, exchange.at_ms)
    spend = None
    if exchange.hit is not None or exchange.collapsed:
        cost = Cost(policy.hits_cost_requests, 0)
    else:
        prompt = exchange.kind.estimate(asked)
        capacity = _smallest_token_capacity(scopes, exchange.at_ms)
        room = None if capacity is None else capacity - prompt
        answer = estimate_output(asked, policy.default_output_reservation_tokens, room)
        exchange.reserved_input_tokens, exchange.reserved_output_tokens = prompt, answer
        cost = Cost(1, prompt + answer)
        if principal.team.budgets or principal.key.budgets:
            spend = _spend(exchange, policy)
    match await services.limiter.reserve(principal.team.name, scopes, cost, spend):
        case Admitted() as admitted:
            exchange.admitted = admitted
            for cap in admitted.reached:
                reached = BudgetReached(principal.team.name, owner_of(cap.scope), cap, exchange.at_ms)
                services.budget_reached(reached)
        case Refused() as refused:
            raise LimitReached(principal.team.name, asked.model, refused, principal.key.name)
        case NeverFits() as never:
            raise NeverAdmissible(principal.team.name, asked.model, never, principal.key.name)
        case OverBudget() as over:
            raise BudgetUsedUp(principal.team.name, asked.model, over, principal.key.name)


def scopes_of(principal: Principal, model: str, policy: Policy, now_ms: int) -> tuple[Scope, ...]:
    """List the buckets a request passes: its team's, its key's if that has any, its model's if the team limits it."""
    team, key = principal.team, principal.key
    tier = policy.tiers.get(team.tier) or policy.tiers[policy.default_tier]
    scopes: tuple[Scope, ...] = (
        Scope(TEAM_SCOPE, tier.schedule(team.tier_since_ms, now_ms, team.limits), team.max_parallel),
    )
    if key.limits is not None or key.max_parallel is not None:
        scopes += (_steady(f"key:{key.kid}", key.limits or _UNLIMITED, key.max_parallel),)
    by_model = team.model_limits.get(model)
    if by_model is not None:
        scopes += (_steady(f"model:{model}", by_model),)
    return scopes


def _spend(exchange: Exchange, policy: Policy) -> Spend | None:
    """What the request may cost at worst, and the budgets of team and key that it has to pass. Raises `ModelNotPriced`.

    None: it has no price, and may go without; or it is free, which an overspent budget is no reason to refuse.
    """
    principal, at_ms, price = exchange.principal, exchange.at_ms, exchange.price
    if price is None:
        if not may_go_unpriced(policy.unpriced, has_budget=True):
            raise ModelNotPriced(principal.team.name, exchange.asked.model)
        return None
    if price.is_free:
        return None
    caps = caps_of(principal.team.budgets, TEAM_SCOPE, at_ms)
    caps += caps_of(principal.key.budgets, key_scope(principal.key.kid), at_ms)
    tokens = exchange.reserved_input_tokens, exchange.reserved_output_tokens
    return Spend(caps, nano_usd(worst_case(price, *tokens, exchange.asked.service_tier)), at_ms)


def _steady(name: str, limits: Limits, max_parallel: int | None = None) -> Scope:
    return Scope(name, Schedule(limits, limits), max_parallel)


def _smallest_token_capacity(scopes: Sequence[Scope], now_ms: int) -> int | None:
    """Tokens the smallest of the buckets holds; None when none has a limit."""
    capacities = [scope.schedule.limits_at(now_ms).effective_token_capacity for scope in scopes]
    return min((capacity for capacity in capacities if capacity is not None), default=None)
