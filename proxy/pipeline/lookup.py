"""Has this been answered before? The digest, the entry, and the reason when there can be none."""

from __future__ import annotations

from dataclasses import replace

from proxy.core import fingerprint
from proxy.core.chat import ChatRequest
from proxy.core.determinism import WAIVABLE, nondeterminism
from proxy.core.headers import forwardable
from proxy.core.principal import CacheMode
from proxy.core.record import CacheResult
from proxy.core.replay import Form
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.keep import tell
from proxy.pipeline.services import Services
from proxy.ports import CacheAddress, CachedAnswer

__all__ = ["cache_status", "look_up"]


async def look_up(exchange: Exchange, services: Services) -> None:
    """Set `hit` when a live entry answers this request, and `cache` and `cache_detail` in any case."""
    principal, chat = exchange.principal, exchange.chat
    directives = _directives(exchange.headers.get("Cache-Control", ""))
    detail = _bypass(chat, principal.team.cache_mode, directives) if services.policy.cache_enabled else "disabled"
    if detail is not None:
        exchange.cache, exchange.cache_detail = CacheResult.BYPASS, detail
        return
    team = principal.team
    digest = fingerprint.digest(
        team.cache_secret,
        salt=team.cache_salts.get(chat.model, b""),
        method=exchange.method,
        path=f"{exchange.path}?{exchange.query}",
        upstream=services.upstream.identity,
        headers=forwardable(exchange.headers.items()),
        body=chat.body,
    )
    exchange.address = CacheAddress(team.name, team.cache_secret, digest)
    exchange.cache = CacheResult.MISS
    if "no-cache" in directives:
        exchange.cache_detail = "request"
        return
    exchange.cache_detail = "uri-miss"
    hit = await _find(exchange, services)
    if hit is not None:
        exchange.hit, exchange.cache, exchange.cache_detail = hit, CacheResult.HIT, ""


def cache_status(exchange: Exchange, *, stored: bool = False) -> str:
    """Tell what the cache did, as RFC 9211 writes it. The digest is never part of it."""
    match exchange.cache:
        case CacheResult.HIT if exchange.hit is not None:
            left_ms = exchange.hit.stored_at_ms + exchange.hit.ttl_ms - exchange.at_ms
            return f"tollgate; hit; ttl={max(0, left_ms) // 1_000}"
        case CacheResult.MISS:
            return f"tollgate; fwd={exchange.cache_detail}{'; stored' if stored else ''}"
        case _:
            return f"tollgate; fwd=bypass; detail={exchange.cache_detail or 'request'}"


async def _find(exchange: Exchange, services: Services) -> CachedAnswer | None:
    """Find the entry for both forms, or, where that one cannot be told in the form asked for, the entry of this form.

    In the latter case `exchange.address` becomes that of this form: the answer to come is kept beside the other.
    """
    chat, address = exchange.chat, exchange.address
    if address is None:
        return None
    entry = await services.cache.get(address)
    if entry is None:
        return None
    told = await tell(entry, chat)
    if told is None:
        digest = fingerprint.in_form(address.digest, Form.STREAM if chat.stream else Form.PLAIN)
        exchange.address = replace(address, digest=digest)
        entry = await services.cache.get(exchange.address)
        told = None if entry is None else await tell(entry, chat)
    return told


def _bypass(chat: ChatRequest, mode: CacheMode, directives: frozenset[str]) -> str | None:
    if mode is CacheMode.OFF:
        return "off"
    if "no-store" in directives:
        return "no-store"
    reason = nondeterminism(chat.body)
    return None if mode is CacheMode.ALL and reason in WAIVABLE else reason


def _directives(cache_control: str) -> frozenset[str]:
    return frozenset(part.strip().lower() for part in cache_control.split(",")) if cache_control else frozenset()
