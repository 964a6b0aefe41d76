"""What one setting means to another, and what a type cannot say."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from proxy.adapters.admin_token import why_no_token
from proxy.adapters.cache_keys import HOW_TO_MAKE, MasterKeysInvalid, read_master_keys
from proxy.adapters.price_file import load_prices
from proxy.core.own_headers import OWN_HEADERS, SWITCHABLE
from proxy.core.pricing import PricesInvalid
from proxy.settings.decode import Finding
from proxy.settings.problem import nearest
from proxy.settings.schema import Settings
from proxy.settings.upstream_rules import alias_findings, upstreams_findings, url_findings
from proxy.settings.wire_rules import wire_findings

__all__ = ["findings"]

_REDIS_SCHEMES = ("redis", "rediss", "unix")
_DATABASE_SCHEMES = ("sqlite", "postgresql")
_ALL_SWITCHABLE = ", ".join(header.name for header in SWITCHABLE.values())


def findings(settings: Settings) -> list[Finding]:
    """Everything that is wrong with settings whose every value is of its type."""
    return [finding for rule in _RULES for finding in rule(settings)]


def _listeners(settings: Settings) -> Iterator[Finding]:
    server = settings.server
    if server.port and (server.host, server.port) == (server.admin_host, server.admin_port):
        yield Finding(("server", "admin_port"), f"{server.port} is the public listener's port already")
    if server.max_held_bytes < server.max_body_bytes:
        yield Finding(("server", "max_held_bytes"), f"is below max_body_bytes ({server.max_body_bytes})")


def _admin_token(settings: Settings) -> Iterator[Finding]:
    token = settings.server.admin_token
    if token is not None and (reason := why_no_token(token.reveal())):
        yield Finding(("server", "admin_token"), reason, "openssl rand -hex 32 makes one")


def _upstream_url(settings: Settings) -> Iterator[Finding]:
    remedy = "set OPENAI_API_KEY or upstream.api_key_file"
    yield from url_findings(("upstream", "base_url"), settings.upstream.base_url, remedy)


def _upstream_key(settings: Settings) -> Iterator[Finding]:
    key = settings.upstream.api_key
    if key is not None and not all("!" <= letter <= "~" for letter in key.reveal()):
        yield Finding(
            ("upstream", "api_key"),
            "must be printable ASCII without spaces or line breaks",
            "several keys are for [upstreams.NAME]",
        )


def _upstream_backoff(settings: Settings) -> Iterator[Finding]:
    upstream = settings.upstream
    if upstream.first_backoff_ms > upstream.max_backoff_ms:
        yield Finding(("upstream", "first_backoff_ms"), f"is above max_backoff_ms ({upstream.max_backoff_ms})")


def _tiers(settings: Settings) -> Iterator[Finding]:
    for name, phases in settings.limits.tiers.items():
        path = ("limits", "tiers", name)
        if not phases:
            yield Finding(path, "needs at least one phase")
        for index, phase in enumerate(phases):
            last = index == len(phases) - 1
            if last != (phase.lasts is None):
                message = "the last phase has no end" if last else "a phase before the last needs one"
                yield Finding((*path, index, "lasts"), message, None if last else 'for example lasts = "48h"')
                continue
            try:
                phase.phase()
            except ValueError as error:
                yield Finding((*path, index, "lasts"), str(error))


def _capacities(settings: Settings) -> Iterator[Finding]:
    for name, phases in settings.limits.tiers.items():
        for index, phase in enumerate(phases):
            for what in ("request", "token"):
                if getattr(phase, f"{what}_capacity") is not None and getattr(phase, f"{what}s_per_minute") is None:
                    path = ("limits", "tiers", name, index, f"{what}_capacity")
                    yield Finding(path, f"has no meaning without {what}s_per_minute")


def _default_tier(settings: Settings) -> Iterator[Finding]:
    if any(_tiers(settings)):
        return
    known = settings.limits.all_tiers()
    name = settings.limits.default_tier
    if name not in known:
        suggestion = nearest(name, known) or f"known tiers: {', '.join(known)}"
        yield Finding(("limits", "default_tier"), f"no tier is named {name}", suggestion)


def _cache_sizes(settings: Settings) -> Iterator[Finding]:
    cache = settings.cache
    if cache.entry_max_bytes > cache.max_bytes:
        yield Finding(("cache", "entry_max_bytes"), f"is above max_bytes ({cache.max_bytes})")


def _cache_key(settings: Settings) -> Iterator[Finding]:
    key = settings.cache.key
    if key is None:
        return
    try:
        read_master_keys(key.reveal())
    except MasterKeysInvalid as error:
        yield Finding(("cache", "key"), str(error), HOW_TO_MAKE)


def _ledger_sizes(settings: Settings) -> Iterator[Finding]:
    ledger = settings.ledger
    if ledger.segment_bytes > ledger.quota_bytes:
        yield Finding(("ledger", "segment_bytes"), f"is above quota_bytes ({ledger.quota_bytes})")


def _prices(settings: Settings) -> Iterator[Finding]:
    file = settings.price_file()
    if file is None:
        return
    if not file.is_file():
        yield Finding(("prices", "file"), "no such file")
        return
    try:
        load_prices(file)
    except PricesInvalid as error:
        yield Finding(("prices", "file"), str(error))


def _webhook(settings: Settings) -> Iterator[Finding]:
    url, secret = settings.budgets.webhook_url, settings.budgets.webhook_secret
    if url is None:
        return
    try:
        parts = urlsplit(url.reveal())
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        yield Finding(("budgets", "webhook_url"), "expected an http:// or https:// URL")
    if secret is None:
        remedy = "set TOLLGATE_BUDGETS_WEBHOOK_SECRET or budgets.webhook_secret_file; openssl rand -hex 32 makes one"
        yield Finding(
            ("budgets", "webhook_url"), "what is posted there is signed, with a secret that is missing", remedy
        )


def _headers(settings: Settings) -> Iterator[Finding]:
    for index, name in enumerate(settings.headers.off):
        if name.lower() not in SWITCHABLE:
            fixed = any(name.lower() == header.name.lower() for header in OWN_HEADERS)
            message = f"{name} cannot be left out" if fixed else f"no header of Tollgate's own is named {name}"
            suggestion = None if fixed else nearest(name.lower(), SWITCHABLE)
            yield Finding(("headers", "off", index), message, suggestion or f"those that can be: {_ALL_SWITCHABLE}")


def _stores(settings: Settings) -> Iterator[Finding]:
    for name, schemes in (
        ("redis_url", _REDIS_SCHEMES),
        ("cache_redis_url", _REDIS_SCHEMES),
        ("database_url", _DATABASE_SCHEMES),
    ):
        url = getattr(settings, name)
        if url is not None and url.reveal().partition("://")[0].partition("+")[0] not in schemes:
            yield Finding((name,), f"expected a URL that begins with {', '.join(f'{each}://' for each in schemes)}")


_RULES = (
    _listeners,
    _admin_token,
    _upstream_url,
    _upstream_key,
    _upstream_backoff,
    upstreams_findings,
    alias_findings,
    _tiers,
    _capacities,
    _default_tier,
    _cache_sizes,
    _cache_key,
    _ledger_sizes,
    _prices,
    _webhook,
    _headers,
    _stores,
    wire_findings,
)
