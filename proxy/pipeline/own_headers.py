"""The headers of an answer that are this request's own: where its limits stand, what the cache did for it."""

from __future__ import annotations

from proxy.core.headers import rate_limit_headers
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.lookup import cache_status
from proxy.pipeline.shadow import SHADOW_HEADER, shadow_status

__all__ = ["own_headers"]


def own_headers(exchange: Exchange, *, stored: bool = False) -> tuple[tuple[str, str], ...]:
    """Headers that tell what we did. Everything else about an answer, several requests may share."""
    told = (*rate_limit_headers(exchange.admitted.standing), ("Cache-Status", cache_status(exchange, stored=stored)))
    if exchange.shadow is not None:
        told += ((SHADOW_HEADER, shadow_status(exchange.shadow)),)
    if exchange.upstream_request_id:
        return (*told, ("x-upstream-request-id", exchange.upstream_request_id))
    return told
