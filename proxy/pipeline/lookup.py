"""Has this been answered before? The digest, the entry, and the reason when there can be none."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec.structs import replace

from proxy.core import fingerprint
from proxy.core.cache_control import NO_WISHES, CacheWishes, cache_wishes
from proxy.core.determinism import WAIVABLE
from proxy.core.errors import NotInCache
from proxy.core.principal import CacheMode
from proxy.core.record import CacheResult
from proxy.core.replay import Form
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.interpret import takes_long
from proxy.pipeline.keep import tell
from proxy.pipeline.services import Services
from proxy.ports import CacheAddress, CachedAnswer

__all__ = ["cache_status", "cache_status_of_error", "find", "look_up", "too_old", "wants_new"]

UNSEEN = "uri-miss"
"""Why a request whose answer was not there is no hit; the other reasons are names of what stood against one."""


async def look_up(exchange: Exchange, services: Services) -> None:
    """Set `hit` when a live entry answers this request, `address` where one may be kept, and `cache` in any case.

    Raises `NotInCache` for a client that wants nothing else.
    """
    exchange.wishes = _wishes(exchange.headers)
    reason = _bypass(exchange, services)
    if reason is not None:
        exchange.cache, exchange.cache_reason = CacheResult.BYPASS, reason
    else:
        # A digest of tens of megabytes takes its time.
        long = takes_long(exchange.asked.raw)
        address = await asyncio.to_thread(_address, exchange, services) if long else _address(exchange, services)
        exchange.address = address
        if exchange.understood is not None:
            services.recent.look_again(exchange.understood)
        exchange.cache, exchange.cache_reason = CacheResult.MISS, UNSEEN
        if wants_new(exchange.wishes):
            exchange.cache_reason = "no-cache" if exchange.wishes.no_cache else "max-age"
        elif (hit := await find(exchange, services)) is not None:
            exchange.hit, exchange.cache, exchange.cache_reason = hit, CacheResult.HIT, ""
            if exchange.understood is not None:
                services.recent.keep(exchange.understood)
    if exchange.wishes.only_if_cached and exchange.hit is None:
        raise NotInCache(exchange.cache_reason)


def wants_new(wishes: CacheWishes) -> bool:
    """Whether only an answer that upstream begins after the question will do."""
    return wishes.no_cache or wishes.max_age_seconds == 0


def cache_status(exchange: Exchange, *, stored: bool = False) -> str:
    """Tell what the cache did, as RFC 9211 writes it. The digest is never part of it."""
    match exchange.cache:
        case CacheResult.HIT if exchange.hit is not None:
            left_ms = exchange.hit.stored_at_ms + exchange.hit.ttl_ms - exchange.at_ms
            return f"tollgate; hit; ttl={max(0, left_ms) // 1_000}"
        case CacheResult.MISS | CacheResult.COLLAPSED:
            done = "; stored" if stored else ""
            if exchange.cache is CacheResult.COLLAPSED:
                done = "; collapsed"
            elif exchange.disappointed:
                done += "; collapsed=?0"
            if exchange.cache_reason == UNSEEN:
                return f"tollgate; fwd={UNSEEN}{done}"
            return f"tollgate; fwd=request{done}; detail={exchange.cache_reason}"
        case _:
            return f"tollgate; fwd=bypass; detail={exchange.cache_reason or 'request'}"


def cache_status_of_error(exchange: Exchange) -> str | None:
    """Tell what the cache did before an error of ours; None where it was not asked, or had the answer.

    What was not sent on says no `fwd` (RFC 9211, 2.2).
    """
    if exchange.cache is None or exchange.hit is not None:
        return None
    if exchange.dispatched or exchange.cache is CacheResult.COLLAPSED:
        return cache_status(exchange)
    return f"tollgate; detail={exchange.cache_reason}"


async def find(exchange: Exchange, services: Services) -> CachedAnswer | None:
    """Find the entry for both forms, or, where that one cannot be told in the form asked for, the entry of this form.

    In the latter case `exchange.address` becomes that of this form: the answer to come is kept beside the other. Sets
    `kept` to the entry as it is.
    """
    if exchange.address is None:
        return None
    entry = await services.cache.get(exchange.address)
    if entry is None:
        return None
    told = await tell(entry, exchange)
    if told is None:
        form = Form.STREAM if exchange.asked.stream else Form.PLAIN
        digest = fingerprint.in_form(exchange.address.digest, form)
        exchange.address = replace(exchange.address, digest=digest)
        entry = await services.cache.get(exchange.address)
        told = None if entry is None else await tell(entry, exchange)
    if told is None or entry is None:
        return None
    if too_old(exchange, entry):
        exchange.cache_reason = "max-age"
        return None
    exchange.kept = entry
    return told


def too_old(exchange: Exchange, entry: CachedAnswer) -> bool:
    """Whether this client said that it takes none as old as that."""
    oldest_seconds = exchange.wishes.max_age_seconds
    return oldest_seconds is not None and exchange.at_ms - entry.stored_at_ms > oldest_seconds * 1_000


def _address(exchange: Exchange, services: Services) -> CacheAddress:
    team, asked, understood = exchange.principal.team, exchange.asked, exchange.understood
    salt, path = team.cache_salts.get(asked.model, b""), f"{exchange.path}?{exchange.query}"
    upstream, headers = services.upstreams.identity(asked.model), exchange.onward
    origin = (team.cache_secret, salt, exchange.method, path, upstream, headers)
    known = None if understood is None else understood.addresses.get(origin)
    if known is not None:
        return known
    digest = fingerprint.digest(
        team.cache_secret,
        salt=salt,
        method=exchange.method,
        path=path,
        upstream=upstream,
        headers=headers,
        body=asked.body,
    )
    address = CacheAddress(team.name, team.cache_secret, digest)
    if understood is not None:
        understood.note(origin, address)
    return address


def _bypass(exchange: Exchange, services: Services) -> str | None:
    """Why this request has nothing to do with the cache, if it has not."""
    mode = exchange.principal.team.cache_mode
    if not services.policy.cache_enabled:
        return "disabled"
    if mode is CacheMode.OFF:
        return "off"
    if exchange.wishes.no_store:
        return "no-store"
    understood = exchange.understood
    if understood is None:
        reason = exchange.kind.nondeterminism(exchange.asked.body)
    else:
        if not understood.judged:
            understood.judge(exchange.kind.nondeterminism(exchange.asked.body))
        reason = understood.reason
    return None if mode is CacheMode.ALL and reason in WAIVABLE else reason


def _wishes(headers: Mapping[str, str]) -> CacheWishes:
    if "Cache-Control" not in headers:
        return NO_WISHES
    # A mapping of headers gives the first of several lines; all of them count.
    return cache_wishes(", ".join(value for name, value in headers.items() if name.lower() == "cache-control"))
