"""A team's page on the public listener: signing in with a key, looking, signing out.

Each view looks the key up again, so a revoked one ends with the next. Forms are taken from our own pages alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import parse_qs

from proxy.core.errors import BodyTooLarge, InvalidKey, InvalidRequest, Overloaded, StoreAway
from proxy.core.page_session import SESSION_MS
from proxy.core.principal import Principal
from proxy.core.views.budgets import budget_views
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.me import base_url_of, budgets_spent_of, models_of, standings_of, tier_of
from proxy.pipeline.page_sessions import PageSessions
from proxy.pipeline.services import Services
from proxy.pipeline.team_account import TeamAccounts
from proxy.ports import Body
from proxy.web.pages.assets import ASSETS
from proxy.web.pages.layout import PAGE_HEADERS, asset_reply
from proxy.web.pages.sign_ins import FailedSignIns
from proxy.web.pages.team import SIGN_IN, SIGN_OUT, TEAM_BASE, TeamView, sign_in_page, team_page

__all__ = ["COOKIE", "TeamSite"]

COOKIE = "tollgate_session"
_MAX_FORM_BYTES = 4_096
_COOKIE = re.compile(rf"(?:^|;)\s*{COOKIE}=([^;\s]*)")
_GET, _POST = frozenset({"GET", "HEAD"}), frozenset({"POST"})
_WRONG = "No key of this server is like that, or it has ended."
_AWAY = "The server cannot look keys up at the moment. Try again in a while."
_MS = 1_000


class TeamSite:
    """The pages below `/tollgate`."""

    def __init__(self, services: Services, sessions: PageSessions, accounts: TeamAccounts) -> None:
        self._services = services
        self._sessions = sessions
        self._accounts = accounts
        self._failures = FailedSignIns(services.clock)

    @staticmethod
    def methods(path: str) -> frozenset[str] | None:
        """What a path takes; None: nothing is there."""
        if path in {SIGN_IN, SIGN_OUT}:
            return _POST
        base, _, name = path.rpartition("/")
        return _GET if path == TEAM_BASE or (base == TEAM_BASE and name in ASSETS) else None

    async def answer(self, path: str, exchange: Exchange, body: Callable[[int], Body], address: str | None) -> Reply:
        """Answer what `methods` lets pass. `body` gives the request's, bounded; `address` is that of the client."""
        if path == SIGN_IN:
            return await self._sign_in(exchange, body, address)
        if path == SIGN_OUT:
            return self._sign_out(exchange)
        if path == TEAM_BASE:
            return await self._show(exchange)
        return asset_reply(path.rpartition("/")[2])

    async def _show(self, exchange: Exchange) -> Reply:
        token = _token(exchange.headers)
        if token is None:
            return Reply(200, PAGE_HEADERS, sign_in_page())
        try:
            exchange.principal = principal = await self._sessions.of(token)
        except InvalidKey:
            # The cookie stays as it is: a page that was left open loads itself again to say this.
            return Reply(401, PAGE_HEADERS, sign_in_page("You are not signed in any more."), "signed_out")
        except StoreAway:
            return Reply(503, PAGE_HEADERS, sign_in_page(_AWAY), "store_away")
        return Reply(200, PAGE_HEADERS, team_page(await self._view(principal, exchange)))

    async def _view(self, principal: Principal, exchange: Exchange) -> TeamView:
        services, now_ms, team, key = self._services, exchange.at_ms, principal.team, principal.key
        spent = await budgets_spent_of(principal, services)
        return TeamView(
            at_ms=now_ms,
            principal=principal,
            tier=tier_of(principal, services.policy),
            models=models_of(principal),
            account=await self._accounts.of(team.name),
            standings=await standings_of(principal, services, now_ms),
            budgets=budget_views(team.budgets, now_ms, spent, team.name),
            key_budgets=budget_views(key.budgets, now_ms, spent, team.name, key.kid),
            base_url=base_url_of(exchange),
        )

    async def _sign_in(self, exchange: Exchange, body: Callable[[int], Body], address: str | None) -> Reply:
        if not _is_our_form(exchange.headers):
            return _foreign()
        key = await _key_in(body)
        wait_ms = self._failures.wait_ms(address)
        if wait_ms:
            seconds = -(-wait_ms // _MS)
            said = f"Too many keys that open nothing came from your address. Try again in {seconds} seconds."
            return Reply(429, (*PAGE_HEADERS, ("Retry-After", str(seconds))), sign_in_page(said), "too_many_sign_ins")
        self._failures.tried(address)
        try:
            token, exchange.principal = await self._sessions.begin(key)
        except InvalidKey:
            return Reply(401, PAGE_HEADERS, sign_in_page(_WRONG), "invalid_api_key")
        except (StoreAway, Overloaded):
            self._failures.opened(address)
            return Reply(503, PAGE_HEADERS, sign_in_page(_AWAY), "store_away")
        self._failures.opened(address)
        return _redirect(_cookie(exchange, token, SESSION_MS // _MS))

    def _sign_out(self, exchange: Exchange) -> Reply:
        return _redirect(_cookie(exchange, "", 0)) if _is_our_form(exchange.headers) else _foreign()


def _redirect(cookie: tuple[str, str]) -> Reply:
    # To see it by GET: a reload of the page then asks for no key again.
    return Reply(303, (*PAGE_HEADERS, ("Location", TEAM_BASE), cookie))


def _foreign() -> Reply:
    return Reply(403, PAGE_HEADERS, sign_in_page("The form was not sent from this page. Sign in here."), "foreign_form")


def _cookie(exchange: Exchange, token: str, seconds: int) -> tuple[str, str]:
    # Who ends TLS before us may say nothing of it; the browser's word for where its form is from does.
    by_tls = exchange.came_by_tls or exchange.headers.get("Origin", "").lower().startswith("https://")
    secure = "; Secure" if by_tls else ""
    return "Set-Cookie", f"{COOKIE}={token}; Path={TEAM_BASE}; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}"


def _token(headers: Mapping[str, str]) -> str | None:
    found = _COOKIE.search(headers.get("Cookie", ""))
    return found[1] if found else None


def _is_our_form(headers: Mapping[str, str]) -> bool:
    """Whether a form comes from a page of ours, as browsers say; what is no browser says nothing."""
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        # It goes before the origin: who stands before us may have put another host in the place of ours.
        return site in {"same-origin", "none"}
    origin, host = headers.get("Origin"), headers.get("Host", "").lower()
    return origin is None or origin.lower() in {f"http://{host}", f"https://{host}"}


async def _key_in(body: Callable[[int], Body]) -> str:
    """The key that a form has; empty where it has none."""
    try:
        form = b"".join([chunk async for chunk in body(_MAX_FORM_BYTES).chunks()])
        fields = parse_qs(form.decode(), max_num_fields=8)
    except (InvalidRequest, BodyTooLarge, ValueError):
        return ""
    return fields.get("key", [""])[0].strip()
