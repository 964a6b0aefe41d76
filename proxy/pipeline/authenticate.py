"""Who is asking? The key a request presents, and the principal behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from proxy.core.errors import MissingKey
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.services import Services

__all__ = ["authenticate", "presented_key"]

_NO_UTF8 = re.compile("[\udc80-\udcff]")
"""What stands for bytes that are not UTF-8."""


async def authenticate(exchange: Exchange, services: Services) -> None:
    """Set `principal`. Raises `MissingKey`, `InvalidKey`, `StoreAway`, `Overloaded`."""
    exchange.principal = await services.principals.of(presented_key(exchange.headers))


def presented_key(headers: Mapping[str, str]) -> str:
    """Read the key of a request: `Authorization: Bearer`, or `api-key` as Azure's SDKs send it; it may have spaces.

    Of several headers of one name the first counts. Raises `MissingKey`.
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
    return _in_latin_1(key) if _NO_UTF8.search(key) else key


def _in_latin_1(key: str) -> str:
    """The key as it was meant: what is no UTF-8 is Latin-1, in which browsers, Node and requests write headers."""
    return key.encode("utf-8", "surrogateescape").decode("latin-1")
