"""Who is asking? The key a request presents, and the principal behind it."""

from __future__ import annotations

from collections.abc import Mapping

from proxy.core.errors import MissingKey
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["authenticate", "presented_key"]


async def authenticate(exchange: Exchange, services: Services) -> None:
    """Set `principal`. Raises `MissingKey`, `InvalidKey`, `StoreAway`, `Overloaded`."""
    exchange.principal = await services.principals.of(presented_key(exchange.headers))


def presented_key(headers: Mapping[str, str]) -> str:
    """Read the key of a request: `Authorization: Bearer`, or `api-key` as Azure's SDKs send it; it may have spaces.

    Raises `MissingKey`.
    """
    authorization = headers.get("Authorization")
    if authorization is not None:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise MissingKey
        key = credentials.strip()
    else:
        key = headers.get("api-key", "").strip()
    if not key:
        raise MissingKey
    return key
