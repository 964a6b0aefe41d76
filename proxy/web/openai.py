"""The public application: OpenAI's API as clients see it."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from proxy.core.endpoints import CHAT, MODELS, is_stateful
from proxy.core.errors import EndpointClosed, TollgateError, UnknownPath
from proxy.core.event import Outcome
from proxy.core.ids import uuid7
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.line import travel
from proxy.pipeline.models import list_models, one_model
from proxy.pipeline.report import Ending, record_of
from proxy.pipeline.services import Services
from proxy.pipeline.settle import CLIENT_CLOSED_REQUEST
from proxy.web.downstream import AiohttpDownstream
from proxy.web.errors import ErrorAnswer, answer_of, internal_error, reply_of

__all__ = ["VERSION_PREFIX", "OpenAIRoutes"]

VERSION_PREFIX = "/v1"
_CLIENT_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_log = logging.getLogger(__name__)

Step = Callable[[Exchange, AiohttpDownstream], Awaitable[Reply]]


class OpenAIRoutes:
    """Handlers of the public listener: each makes an exchange, sends it on its way and writes what comes back."""

    def __init__(self, services: Services, *, max_body_bytes: int) -> None:
        self._services = services
        self._max_body_bytes = max_body_bytes

    def application(self) -> web.Application:
        """Build the application of the public listener."""
        # One byte more, so that a body of exactly the limit passes.
        application = web.Application(client_max_size=self._max_body_bytes + 1)
        application.router.add_post(f"{VERSION_PREFIX}/chat/completions", self.chat)
        application.router.add_get(f"{VERSION_PREFIX}/models", self.models, allow_head=False)
        application.router.add_get(f"{VERSION_PREFIX}/models/{{model:.+}}", self.model, allow_head=False)
        application.router.add_route("*", "/{path:.*}", self.other)
        return application

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """`POST /v1/chat/completions`."""

        async def step(exchange: Exchange, client: AiohttpDownstream) -> Reply:
            return await travel(exchange, client, self._services)

        return await self._answer(request, CHAT, step)

    async def models(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models`."""

        async def step(exchange: Exchange, _: AiohttpDownstream) -> Reply:
            return await list_models(exchange, self._services)

        return await self._answer(request, MODELS, step)

    async def model(self, request: web.Request) -> web.StreamResponse:
        """`GET /v1/models/{id}`."""

        async def step(exchange: Exchange, _: AiohttpDownstream) -> Reply:
            return await one_model(exchange, request.match_info["model"], self._services)

        return await self._answer(request, MODELS, step)

    async def other(self, request: web.Request) -> web.StreamResponse:
        """Every path that is not open."""

        async def step(exchange: Exchange, _: AiohttpDownstream) -> Reply:
            if is_stateful(exchange.path) and request.path.startswith(VERSION_PREFIX):
                await authenticate(exchange, self._services)
                raise EndpointClosed(request.path)
            raise UnknownPath(request.method, request.path[:256])

        return await self._answer(request, "_other", step)

    async def _answer(self, request: web.Request, endpoint: str, step: Step) -> web.StreamResponse:
        """Run one exchange, whatever becomes of it, and count it exactly once."""
        telemetry = self._services.telemetry
        exchange = self._exchange(request, endpoint)
        id_headers = (("x-request-id", exchange.request_id),)
        client = AiohttpDownstream(request, id_headers, self._max_body_bytes)
        telemetry.started()
        # Holds unless something better is known: a task that is cancelled never gets to say so.
        ending = Ending(CLIENT_CLOSED_REQUEST, Outcome.CLIENT_GONE)
        try:
            reply = await step(exchange, client)
            ending = Ending(reply.status)
        except ConnectionResetError:
            reply = Reply(CLIENT_CLOSED_REQUEST)
        except Exception as error:  # noqa: BLE001 - the last border: no error leaves here unshaped
            answer = self._explain(error)
            ending = Ending(answer.status, answer.outcome, answer.code or answer.type, error)
            reply = reply_of(answer)
            client.abort_if_open()
        finally:
            telemetry.finished(record_of(exchange, ending, self._services))
        return client.response or _whole(reply, id_headers)

    def _explain(self, error: Exception) -> ErrorAnswer:
        if isinstance(error, TollgateError):
            return answer_of(error)
        # The type and the place say enough; a message could quote a body.
        _log.error("unexpected %s", type(error).__name__, exc_info=error)
        return internal_error()

    def _exchange(self, request: web.Request, endpoint: str) -> Exchange:
        clock = self._services.clock
        at_ms = clock.now_ms()
        event_id = uuid7(at_ms, secrets.token_bytes(10))
        path, _, query = request.raw_path.partition("?")
        theirs = request.headers.get("x-request-id") or request.headers.get("x-client-request-id") or ""
        return Exchange(
            event_id=event_id,
            request_id=f"req_{event_id.replace('-', '')}",
            client_request_id=theirs if _CLIENT_ID.fullmatch(theirs) else "",
            at_ms=at_ms,
            started_ns=clock.monotonic_ns(),
            method=request.method,
            path=path.removeprefix(VERSION_PREFIX),
            query=query,
            endpoint=endpoint,
            headers=request.headers,
        )


def _whole(reply: Reply, more: tuple[tuple[str, str], ...]) -> web.Response:
    response = web.Response(status=reply.status, body=reply.body)
    for name, value in (*reply.headers, *more):
        response.headers[name] = value
    if hdrs.CONTENT_TYPE not in response.headers:
        response.headers[hdrs.CONTENT_TYPE] = "application/json"
    return response
