"""The operations listener: metrics, health, the admin API and a page for people, apart from the traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

from proxy.web.admin.api import AdminApi, error_response
from proxy.web.errors import ErrorAnswer
from proxy.web.hosts import is_our_name
from proxy.web.pages.operator import OperatorPage
from proxy.web.server import OpenAIServer

__all__ = ["Operations"]

_CHECK_SECONDS = 2.0
_MAX_BODY_BYTES = 8 * 1024 * 1024
"""Of the largest body any operation of the admin API takes; most take less."""


class Operations:
    """Handlers of the operations listener. `checks` are the stores that must answer for us to be ready.

    `render_metrics` is given what a scraper accepts, and returns the metrics and their content type. The listener goes
    by addresses, names without a dot, and `allowed_hosts`.
    """

    def __init__(
        self,
        *,
        render_metrics: Callable[[str], tuple[bytes, str]],
        checks: Mapping[str, Callable[[], Awaitable[object]]],
        admin: AdminApi | None,
        allowed_hosts: Iterable[str] = (),
        page: OperatorPage | None = None,
    ) -> None:
        self._render_metrics = render_metrics
        # However many scrape at once, the loop shares the interpreter with one of them.
        self._renderer = ThreadPoolExecutor(1, "metrics")
        self._checks = checks
        self._admin = admin
        self._page = page
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)
        self._pages: Mapping[str, Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]] = {
            "/healthz": self.healthz,
            "/readyz": self.readyz,
            "/metrics": self.metrics,
        }
        self.draining = False

    def server(self) -> OpenAIServer:
        """Build the server of the operations listener. Its errors quote nothing of a request: a token may be in it."""
        return OpenAIServer(self.handle, max_body_bytes=_MAX_BODY_BYTES)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Find the page by its path."""
        if not is_our_name(request.headers.get("Host"), self._allowed_hosts):
            return error_response(
                ErrorAnswer(
                    421,
                    "This listener does not go by that name: use an address, or name it in server.admin_allowed_hosts.",
                    code="unknown_host",
                )
            )
        path = request.raw_path.partition("?")[0]
        if self._admin is not None and self._admin.serves(path):
            return await self._admin.answer(request)
        page = self._pages.get(path)
        if page is None and self._page is not None and self._page.serves(path):
            page = self._for_people
        if page is None:
            return error_response(ErrorAnswer(404, "There is nothing here.", code="not_found"))
        if request.method not in {"GET", "HEAD"}:
            headers = (("Allow", "GET, HEAD"),)
            return error_response(
                ErrorAnswer(405, "This is only to be read.", code="method_not_allowed", headers=headers)
            )
        return await page(request)

    async def healthz(self, _: web.BaseRequest) -> web.Response:
        """Say that the loop is alive; touches nothing."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.BaseRequest) -> web.Response:
        """Say whether new requests can be served: every store answers in time, and we are not draining."""
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        states = {name: await _state(check) for name, check in self._checks.items()}
        ready = all(state == "ok" for state in states.values())
        body = {"status": "ready" if ready else "not ready", "stores": states}
        return web.json_response(body, status=200 if ready else 503)

    async def _for_people(self, request: web.BaseRequest) -> web.Response:
        assert self._page is not None  # noqa: S101 - who comes here was sent by `handle`
        reply = await self._page.answer(request.raw_path.partition("?")[0])
        return web.Response(status=reply.status, body=reply.body, headers=dict(reply.headers))

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Render all metrics off the loop, for one scraper after another."""
        accept = ",".join(request.headers.getall("Accept", ()))
        loop = asyncio.get_running_loop()
        text, content_type = await loop.run_in_executor(self._renderer, self._render_metrics, accept)
        return web.Response(body=text, headers={"Content-Type": content_type})


async def _state(check: Callable[[], Awaitable[object]]) -> str:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check()
    except TimeoutError:
        return "no answer in time"
    except Exception as error:  # noqa: BLE001 - whatever a store fails with, it is not ready
        return type(error).__name__
    return "ok"
