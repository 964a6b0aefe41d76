"""The headers of an answer that are this request's own: where its limits stand, who answered, what it cost."""

from __future__ import annotations

from proxy.core.event import Outcome
from proxy.core.headers import rate_limit_headers
from proxy.core.money import PICO_DIGITS, format_usd
from proxy.core.own_headers import ATTEMPTS, CACHE, COST, QUEUE_WAIT, SAVED, SHADOW, UPSTREAM, UPSTREAM_REQUEST_ID
from proxy.core.record import CacheResult
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.lookup import cache_status, cache_status_of_error
from proxy.pipeline.shadow import shadow_status

__all__ = ["own_headers", "own_headers_of_error"]

Headers = tuple[tuple[str, str], ...]

_NS_PER_MS = 1_000_000
_CACHE_TOLD = {result: (CACHE, result.value) for result in CacheResult}


def own_headers(exchange: Exchange, *, stored: bool = False) -> Headers:
    """Headers that tell what we did. Everything else about an answer, several requests may share."""
    told = [*rate_limit_headers(exchange.admitted.standing), ("Cache-Status", cache_status(exchange, stored=stored))]
    _tell_way(exchange, told)
    if exchange.shadow is not None:
        told.append((SHADOW, shadow_status(exchange.shadow)))
    if exchange.upstream_request_id:
        told.append((UPSTREAM_REQUEST_ID, exchange.upstream_request_id))
    return tuple(told)


def own_headers_of_error(exchange: Exchange) -> Headers:
    """The same for an error of ours, as far as the request came; none before it was looked up, waited or was sent."""
    told: list[tuple[str, str]] = []
    said = cache_status_of_error(exchange)
    if said is not None:
        told.append(("Cache-Status", said))
    if exchange.cache is not None or exchange.queued_ns or exchange.dispatched:
        _tell_way(exchange, told)
    return tuple(told)


def _tell_way(exchange: Exchange, told: list[tuple[str, str]]) -> None:
    told.append(_CACHE_TOLD[exchange.cache or CacheResult.BYPASS])
    told.append((QUEUE_WAIT, str(exchange.queued_ns // _NS_PER_MS)))
    if exchange.attempts:
        told += ((UPSTREAM, exchange.upstream), (ATTEMPTS, str(exchange.attempts)))
    # The head of a stream goes out before its end is known.
    if exchange.settled and exchange.stream is None:
        _tell_money(exchange, told)


def _tell_money(exchange: Exchange, told: list[tuple[str, str]]) -> None:
    """What the ledger has of it: nothing of a request that was not sent, and nothing that may yet change."""
    cached = exchange.outcome is Outcome.CACHED
    is_final = exchange.counting is None or exchange.counting.done()
    if exchange.price is None or not is_final or not (cached or exchange.dispatched):
        return
    told.append((COST, format_usd(exchange.cost_pico_usd, PICO_DIGITS)))
    if cached:
        told.append((SAVED, format_usd(exchange.saved_pico_usd, PICO_DIGITS)))
