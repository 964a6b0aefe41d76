"""The operations application: metrics and health, on a listener of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

__all__ = ["Operations"]

_CHECK_SECONDS = 2.0


class Operations:
    """Handlers of the operations listener. `checks` are the stores that must answer for us to be ready."""

    def __init__(
        self,
        *,
        render_metrics: Callable[[], bytes],
        metrics_content_type: str,
        checks: Mapping[str, Callable[[], Awaitable[object]]],
    ) -> None:
        self._render_metrics = render_metrics
        self._metrics_content_type = metrics_content_type
        self._checks = checks
        self.draining = False

    def application(self) -> web.Application:
        """Build the application of the operations listener."""
        application = web.Application()
        application.router.add_get("/healthz", self.healthz)
        application.router.add_get("/readyz", self.readyz)
        application.router.add_get("/metrics", self.metrics)
        return application

    async def healthz(self, _: web.Request) -> web.Response:
        """Say that the loop is alive; touches nothing."""
        return web.json_response({"status": "ok"})

    async def readyz(self, _: web.Request) -> web.Response:
        """Say whether new requests can be served: every store answers in time, and we are not draining."""
        if self.draining:
            return web.json_response({"status": "draining"}, status=503)
        states = {name: await _state(check) for name, check in self._checks.items()}
        ready = all(state == "ok" for state in states.values())
        body = {"status": "ready" if ready else "not ready", "stores": states}
        return web.json_response(body, status=200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """Render all metrics off the loop."""
        text = await asyncio.to_thread(self._render_metrics)
        return web.Response(body=text, headers={"Content-Type": self._metrics_content_type})


async def _state(check: Callable[[], Awaitable[object]]) -> str:
    try:
        async with asyncio.timeout(_CHECK_SECONDS):
            await check()
    except TimeoutError:
        return "no answer in time"
    except Exception as error:  # noqa: BLE001 - whatever a store fails with, it is not ready
        return type(error).__name__
    return "ok"
