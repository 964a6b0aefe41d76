"""What is asked for: strict parse, checks, the model and its price."""

from __future__ import annotations

from proxy.core.deployment import with_deployment
from proxy.core.errors import EndpointClosed, InvalidRequest, ModelNotFound
from proxy.core.principal import Principal
from proxy.core.strict_json import parse_object
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Policy, Services

__all__ = ["interpret", "is_open_model"]


def interpret(exchange: Exchange, body: bytes, services: Services) -> None:
    """Read the body into `asked` and find the model's `price`.

    Raises `InvalidRequest`, `ModelNotFound`, and `EndpointClosed` for what refers to the account that all teams share.
    """
    parsed = parse_object(body, services.policy.max_json_depth)
    if exchange.deployment:
        parsed, body = with_deployment(parsed, body, exchange.deployment)
    asked = exchange.kind.parse(parsed, body)
    exchange.asked = asked
    if asked.state is not None and not exchange.principal.team.allow_stateful:
        raise EndpointClosed(f"/v1{exchange.path}", asked.state)
    price = services.prices.price(asked.model, exchange.at_ms)
    exchange.price = price
    open_here = is_open_model(asked.model, exchange.principal, services.policy, priced=price is not None)
    if not (open_here and services.upstreams.serve(asked.model)):
        raise ModelNotFound(asked.model)
    maximum, tokens, name = price.max_output_tokens if price else None, asked.max_output_tokens, asked.max_output_param
    if maximum is not None and tokens is not None and tokens > maximum:
        raise InvalidRequest(
            f"{name} is too large: {tokens}. This model supports at most {maximum} completion tokens.", param=name
        )


def is_open_model(model: str, principal: Principal, policy: Policy, *, priced: bool) -> bool:
    """Whether `model` exists for this caller: known by its price or by name, and allowed to team and key."""
    known = priced or policy.allow_unknown_models or model in policy.extra_models
    return known and principal.may_use(model)
