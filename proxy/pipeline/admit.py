"""May it pass now? One reservation over all of the caller's buckets, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.core.bucket import Admitted, Cost, Decision, NeverFits, OverBudget, Refused, Scope
from proxy.core.budget import Spend, nano_usd
from proxy.core.caps import BudgetReached, caps_of, key_scope, owner_of
from proxy.core.decision import TEAM_SCOPE
from proxy.core.errors import BudgetUsedUp, EndpointClosed, LimitReached, ModelNotFound, ModelNotPriced, NeverAdmissible
from proxy.core.estimate import estimate_output
from proxy.core.pricing import may_go_unpriced, worst_case
from proxy.core.principal import Principal
from proxy.core.tiers import Limits, Schedule
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Policy, Services
from proxy.pipeline.turns import MAX_WAIT_HEADER, Asking, Turns, parse_max_wait

__all__ = ["admit", "patience_ms", "scopes_of"]

_UNLIMITED = Limits()
_NS_PER_MS = 1_000_000
_FRESH_NS = 100 * _NS_PER_MS
"""So long ago who asks may have been looked up; a body that comes slowly, and a line, take longer."""


async def admit(exchange: Exchange, services: Services) -> None:
    """Reserve what the request may cost; a hit costs a request and no tokens, and so does what another pays for.

    Budgets are asked for what costs money alone. A request that is ready to wait does, in its team's line, where a
    limit refuses it or others of its team wait already; no other does, and it is decided at once whoever waits. Raises
    `LimitReached`, `NeverAdmissible`, `BudgetUsedUp`, `ModelNotPriced`, `StoreAway`, `InvalidRequest`, and for one that
    has waited, or was slow to send it, `Overloaded` and what `authenticate` raises; a refusal has changed nothing.
    """
    if services.clock.monotonic_ns() - exchange.started_ns > _FRESH_NS:
        await _look_again(exchange, services)
    turns = services.turns
    bound_ms = patience_ms(exchange, services)
    if turns is None or not bound_ms:
        decision = await _reserve(exchange, services, exchange.at_ms)
    elif turns.has_line(exchange.principal.team.name) and _can_fit(exchange, services.policy):
        decision = await _wait(exchange, services, turns, None, bound_ms)
    else:
        settlements = turns.settlements
        decision = await _reserve(exchange, services, exchange.at_ms)
        if isinstance(decision, Refused):
            decision = await _wait(exchange, services, turns, decision, bound_ms, settlements)
    principal, model = exchange.principal, exchange.asked.model
    match decision:
        case Admitted() as admitted:
            exchange.admitted = admitted
        case Refused() as refused:
            _remember(exchange, services)
            raise LimitReached(principal.team.name, model, refused, principal.key.name)
        case NeverFits() as never:
            raise NeverAdmissible(principal.team.name, model, never, principal.key.name)
        case OverBudget() as over:
            raise BudgetUsedUp(principal.team.name, model, over, principal.key.name)


def _remember(exchange: Exchange, services: Services) -> None:
    """Whoever is refused asks again, mostly with the same bytes. What no cache may hold is not held here, either."""
    understood = exchange.understood
    if understood is not None and exchange.address is not None:
        if _costs_money(exchange):
            understood.prompt_tokens = exchange.reserved_input_tokens
        services.recent.keep(understood)


def patience_ms(exchange: Exchange, services: Services) -> int:
    """How long the request is ready to wait still: as it says itself, or else its key. Raises `InvalidRequest`."""
    turns = services.turns
    if turns is None:
        return 0
    said = exchange.headers.get(MAX_WAIT_HEADER)
    wait_ms = exchange.principal.key.max_wait_ms if said is None else parse_max_wait(said)
    if not wait_ms:
        return 0
    return max(0, min(wait_ms, turns.longest_wait_ms) - exchange.queued_ns // _NS_PER_MS)


async def _wait(
    exchange: Exchange,
    services: Services,
    turns: Turns,
    refused: Refused | None,
    bound_ms: int,
    settlements: int | None = None,
) -> Decision:
    async def ask_again() -> Decision:
        await _look_again(exchange, services)
        return await _reserve(exchange, services, services.clock.now_ms())

    team, clock = exchange.principal.team, services.clock
    scopes, cost = _price_of_passing(exchange, services.policy, exchange.at_ms)
    exchange.on_wait()
    begun_ns = clock.monotonic_ns()
    try:
        asking = Asking(team.name, team.weight, scopes, cost, ask_again)
        return await turns.wait(asking, refused, bound_ms, settlements=settlements)
    finally:
        exchange.queued_ns += clock.monotonic_ns() - begun_ns


async def _look_again(exchange: Exchange, services: Services) -> None:
    """See whether who asks still may: a key may have been revoked meanwhile, and its limits or its team's be others."""
    await authenticate(exchange, services)
    asked = exchange.asked
    if (exchange.as_it_is or asked.state is not None) and not exchange.principal.team.allow_stateful:
        raise EndpointClosed(f"/v1{exchange.path}", asked.state)
    if not exchange.as_it_is and not exchange.may_use_model:
        raise ModelNotFound(exchange.named or asked.model)


async def _reserve(exchange: Exchange, services: Services, now_ms: int) -> Decision:
    principal = exchange.principal
    scopes, cost = _price_of_passing(exchange, services.policy, now_ms)
    spend = None
    if _costs_money(exchange) and (principal.team.budgets or principal.key.budgets):
        spend = _spend(exchange, services.policy)
    decision = await services.limiter.reserve(principal.team.name, scopes, cost, spend)
    if isinstance(decision, Admitted):
        for cap in decision.reached:
            services.budget_reached(BudgetReached(principal.team.name, owner_of(cap.scope), cap, exchange.at_ms))
    return decision


def _price_of_passing(exchange: Exchange, policy: Policy, now_ms: int) -> tuple[tuple[Scope, ...], Cost]:
    """The buckets it has to pass, and what it takes of each; notes what is reserved for which part."""
    asked = exchange.asked
    scopes = scopes_of(exchange.principal, asked.model, policy, now_ms)
    if not _costs_money(exchange):
        return scopes, Cost(policy.hits_cost_requests, 0)
    prompt = exchange.kind.estimate(asked) if exchange.prompt_tokens is None else exchange.prompt_tokens
    capacity = _smallest_token_capacity(scopes, now_ms)
    room = None if capacity is None else capacity - prompt
    answer = estimate_output(asked, policy.default_output_reservation_tokens, room)
    exchange.reserved_input_tokens, exchange.reserved_output_tokens = prompt, answer
    return scopes, Cost(1, prompt + answer)


def _costs_money(exchange: Exchange) -> bool:
    return exchange.hit is None and not exchange.collapsed


def _can_fit(exchange: Exchange, policy: Policy) -> bool:
    """Whether waiting may help; what costs nothing, and what can never pass, the limiter is asked for at once."""
    scopes, cost = _price_of_passing(exchange, policy, exchange.at_ms)
    if not cost.requests and not cost.tokens:
        return False
    limits = [scope.schedule.limits_at(exchange.at_ms) for scope in scopes]
    return all(
        cost.tokens <= (each.effective_token_capacity or cost.tokens)
        and cost.requests <= (each.effective_request_capacity or cost.requests)
        for each in limits
    )


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

    None: it has no price, or its answer cannot tell what it cost, and may go without; or it costs nothing, which an
    overspent budget is no reason to refuse.
    """
    principal, at_ms, asked, price = exchange.principal, exchange.at_ms, exchange.asked, exchange.price
    if not asked.billed or (price is not None and price.is_free):
        return None
    if price is None or not asked.tells_cost:
        if not may_go_unpriced(policy.unpriced, has_budget=True):
            # It is not for want of a price where there is one.
            raise ModelNotPriced(principal.team.name, asked.model if price is None else "")
        return None
    caps = caps_of(principal.team.budgets, TEAM_SCOPE, at_ms)
    caps += caps_of(principal.key.budgets, key_scope(principal.key.kid), at_ms)
    tokens = exchange.reserved_input_tokens, exchange.reserved_output_tokens
    return Spend(caps, nano_usd(worst_case(price, *tokens, exchange.asked.service_tier)), at_ms)


def _steady(name: str, limits: Limits, max_parallel: int | None = None) -> Scope:
    return Scope(name, Schedule(limits, limits), max_parallel)


def _smallest_token_capacity(scopes: Sequence[Scope], now_ms: int) -> int | None:
    """Tokens the smallest of the buckets holds; None when none has a limit."""
    smallest = None
    for scope in scopes:
        capacity = scope.schedule.limits_at(now_ms).effective_token_capacity
        if capacity is not None and (smallest is None or capacity < smallest):
            smallest = capacity
    return smallest
