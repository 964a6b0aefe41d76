"""`GET /v1/models`: upstream's list, cut down to what the caller may use. Free of charge."""

from __future__ import annotations

import msgspec

from proxy.core.errors import ModelNotFound, UpstreamFailure
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
    try:
        models = await services.catalogue.models(services.upstreams, services.clock, deadline_ms)
    except UpstreamFailure as failure:
        services.telemetry.upstream_failed(failure.upstream, failure.fault)
        raise
    return [model for model in models if _is_open(model.get("id"), exchange, services)]


def _is_open(name: object, exchange: Exchange, services: Services) -> bool:
    if not isinstance(name, str):
        return False
    priced = services.prices.price(name, exchange.at_ms) is not None
    return is_open_model(name, exchange.principal, services.policy, priced=priced)
