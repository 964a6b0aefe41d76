"""`GET /v1/models`: what upstreams list, and aliases, cut down to what the caller may use. Free of charge."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy.core.errors import ModelNotFound
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.catalogue import Model
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.interpret import is_open_model
from proxy.pipeline.services import Services

__all__ = ["list_models", "one_model"]

_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "private, no-store"))


async def list_models(exchange: Exchange, services: Services) -> Reply:
    """List the models the caller may use. Raises as `authenticate` and `Catalogue.models`."""
    models = await _open_models(exchange, services)
    return Reply(200, _HEADERS, msgspec.json.encode({"object": "list", "data": models}))


async def one_model(exchange: Exchange, name: str, services: Services) -> Reply:
    """Describe one model. Raises as `list_models`, and `ModelNotFound`."""
    for model in await _open_models(exchange, services):
        if model.get("id") == name:
            return Reply(200, _HEADERS, msgspec.json.encode(model))
    raise ModelNotFound(name[:256])


async def _open_models(exchange: Exchange, services: Services) -> list[Model]:
    await authenticate(exchange, services)
    deadline_ms = services.policy.retry.total_deadline_ms
    listing = await services.catalogue.models(
        services.upstreams, services.clock, deadline_ms, services.telemetry.upstream_failed
    )
    models = [*listing, *_by_other_names(listing, services.policy.aliases)]
    return [model for model in models if _is_open(model.get("id"), exchange, services)]


def _by_other_names(models: list[Model], aliases: Mapping[str, str]) -> list[Model]:
    """Models as their aliases are told of them: all that upstream says, under the other name."""
    if not aliases:
        return []
    by_name = {model.get("id"): model for model in models if isinstance(model.get("id"), str)}
    return [
        {**by_name[model], "id": alias} for alias, model in aliases.items() if model in by_name and alias not in by_name
    ]


def _is_open(name: object, exchange: Exchange, services: Services) -> bool:
    if not isinstance(name, str):
        return False
    model = services.policy.aliases.get(name, name)
    priced = services.prices.price(model, exchange.at_ms) is not None
    return is_open_model(name, exchange.principal, services, priced=priced)
