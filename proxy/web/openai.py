"""The public application: OpenAI's API as clients see it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from urllib.parse import unquote

from aiohttp import web

from proxy.core.endpoints import ME, MODELS, PAGE, Passed, never_open, passed
from proxy.core.errors import EndpointClosed, MethodNotAllowed, Overloaded, TollgateError, UnknownPath
from proxy.core.event import Outcome
from proxy.core.ids import uuid7
from proxy.core.kinds import KINDS
from proxy.core.own_headers import REQUEST_ID
from proxy.pipeline.authenticate import authenticate
from proxy.pipeline.exchange import Exchange, Reply
from proxy.pipeline.line import travel
from proxy.pipeline.me import show_caller
from proxy.pipeline.models import list_models, one_model
from proxy.pipeline.own_headers import own_headers_of_error
from proxy.pipeline.pass_through import pass_through
from proxy.pipeline.report import Ending, report
from proxy.pipeline.services import Services
from proxy.pipeline.settle import CLIENT_CLOSED_REQUEST
from proxy.web.answer import Answer
from proxy.web.bounds import Bounds, Watcher
from proxy.web.downstream import AiohttpDownstream
from proxy.web.entropy import bytes_of_id
from proxy.web.errors import answer_of, fault, reply_of
from proxy.web.pages.team_site import TeamSite
from proxy.web.paths import VERSION_PREFIX, Place, place_of, without_api_version
from proxy.web.protocol import AnyAnswer
from proxy.web.room import BodyRoom
from proxy.web.server import OpenAIServer

__all__ = ["VERSION_PREFIX", "OpenAIRoutes"]

_METERED = {kind.path: endpoint for endpoint, kind in KINDS.items()}
_STRAIGHT = {f"{VERSION_PREFIX}{path}": (Place(path), endpoint) for path, endpoint in _METERED.items()}
"""Where nearly all requests go, by paths as they are sent, without a query."""
_MODELS_PATH, _ME_PATH = "/models", "/tollgate/me"
_MODEL_PATH = f"{_MODELS_PATH}/"
_SHOWN_CHARACTERS = 256
_UNAVAILABLE = 503
_CLIENT_ID = re.compile(r"(?!(?:.*[._:-])?sk-)[A-Za-z0-9._:-]{1,128}", re.ASCII)
"""What is logged of an id that a client gave; what begins as a key does is none."""
_CREDENTIALS = ("Authorization", "api-key")

Step = Callable[[Exchange, AiohttpDownstream], Awaitable[Reply]]


class OpenAIRoutes:
    """The public listener: each request becomes an exchange, is sent on its way and answered with what comes back."""

    def __init__(
        self, services: Services, *, max_body_bytes: int, max_held_bytes: int, site: TeamSite | None = None
    ) -> None:
        self._services = services
        self._site = site
        self._max_body_bytes = max_body_bytes
        self._room = BodyRoom(max_held_bytes)

    def server(self, bounds: Bounds | None = None, watcher: Watcher | None = None) -> OpenAIServer:
        """Build the server of the public listener."""
        return OpenAIServer(self.handle, max_body_bytes=self._max_body_bytes, bounds=bounds, watcher=watcher)

    def handle(self, request: web.BaseRequest) -> Awaitable[AnyAnswer]:
        """Answer it. The endpoint is found by the path as it was sent: another spelling of one is another path."""
        if request.method == "POST" and (straight := _STRAIGHT.get(request.raw_path)) is not None:
            return self._answer(request, *straight, self._metered)
        return self._answer(request, *self._find(request))

    def _find(self, request: web.BaseRequest) -> tuple[Place, str, Step]:
        sent = request.raw_path.partition("?")[0]
        known = place_of(sent)
        place = known or Place(sent)
        match request.method, known:
            case "POST", (path, _) if (endpoint := _METERED.get(path)) is not None:
                return place, endpoint, self._metered
            case "GET", (path, "") if path == _MODELS_PATH:
                return place, MODELS, self._models
            case "GET", (path, "") if _names_a_model(path):
                return place, MODELS, self._model
            case "GET", (path, "") if path == _ME_PATH:
                return place, ME, self._me
            case method, (path, "") if (family := passed(method, path)) is not None:
                return place, family.endpoint, partial(self._passed, family)
            case _:
                return place, *self._beside(request, sent, known)

    async def _metered(self, exchange: Exchange, client: AiohttpDownstream) -> Reply:
        return await travel(exchange, client, self._services)

    async def _passed(self, family: Passed, exchange: Exchange, client: AiohttpDownstream) -> Reply:
        return await pass_through(exchange, family, client, self._services)

    async def _models(self, exchange: Exchange, _: AiohttpDownstream) -> Reply:
        return await list_models(exchange, self._services)

    async def _model(self, exchange: Exchange, _: AiohttpDownstream) -> Reply:
        name = unquote(exchange.path.removeprefix(_MODEL_PATH))
        return await one_model(exchange, name, self._services)

    async def _me(self, exchange: Exchange, _: AiohttpDownstream) -> Reply:
        return await show_caller(exchange, self._services)

    def _beside(self, request: web.BaseRequest, sent: str, known: Place | None) -> tuple[str, Step]:
        """What is no part of the API: a page, or nothing."""
        if self._site is not None and self._site.methods(sent):
            return PAGE, partial(self._page, self._site, sent, request.remote)
        return "_other", partial(self._other, sent, known)

    async def _page(
        self, site: TeamSite, sent: str, address: str | None, exchange: Exchange, client: AiohttpDownstream
    ) -> Reply:
        methods = site.methods(sent) or ()
        if exchange.method not in methods:
            raise MethodNotAllowed(exchange.method, sent, "GET" if "GET" in methods else "POST")
        return await site.answer(sent, exchange, client.stream, address)

    async def _other(self, sent: str, known: Place | None, exchange: Exchange, _: AiohttpDownstream) -> Reply:
        """Every path that is not open, and every method that an open one does not have."""
        shown = sent[:_SHOWN_CHARACTERS]
        if known is not None and never_open(known.path):
            await authenticate(exchange, self._services)
            raise EndpointClosed(shown)
        method = None if known is None else _method_of(known)
        if method is not None:
            raise MethodNotAllowed(exchange.method, shown, method)
        raise UnknownPath(exchange.method, shown)

    async def _answer(self, request: web.BaseRequest, place: Place, endpoint: str, step: Step) -> AnyAnswer:
        """Run one exchange, whatever becomes of it, and count it exactly once."""
        telemetry = self._services.telemetry
        exchange = self._exchange(request, place, endpoint)
        left_out = self._services.policy.headers_left_out
        id_headers = ((REQUEST_ID, exchange.request_id),)
        client = AiohttpDownstream(request, id_headers, self._max_body_bytes, left_out, self._room)
        telemetry.started()
        # Holds unless something better is known: a task that is cancelled never gets to say so.
        ending = Ending(CLIENT_CLOSED_REQUEST, Outcome.CLIENT_GONE)
        try:
            reply = await step(exchange, client)
            ending = _ending_of(reply)
        except ConnectionResetError:
            reply = Reply(CLIENT_CLOSED_REQUEST)
        except asyncio.CancelledError:
            if not self._services.shutdown.over:
                raise
            reply, ending = await _failed(exchange, client, Overloaded("shutting down"))
        except Exception as error:  # noqa: BLE001 - the last border: no error leaves here unshaped
            reply, ending = await _failed(exchange, client, error)
        finally:
            client.release()
            if not exchange.outlives:
                report(exchange, ending, self._services)
        return client.response or Answer(reply.status, (*reply.headers, *id_headers), reply.body or b"", left_out)

    def _exchange(self, request: web.BaseRequest, place: Place, endpoint: str) -> Exchange:
        clock = self._services.clock
        at_ms = clock.now_ms()
        event_id = uuid7(at_ms, bytes_of_id())
        return Exchange(
            event_id=event_id,
            request_id=f"req_{event_id.replace('-', '')}",
            client_request_id=_client_request_id(request.headers),
            at_ms=at_ms,
            started_ns=clock.monotonic_ns(),
            method=request.method,
            path=place.path,
            query=without_api_version(query) if (query := request.raw_path.partition("?")[2]) else "",
            endpoint=endpoint,
            headers=request.headers,
            deployment=place.deployment,
            secure=request.protocol.ssl_context is not None,
        )


def _ending_of(reply: Reply) -> Ending:
    if not reply.error_code:
        return Ending(reply.status)
    outcome = Outcome.UNAVAILABLE if reply.status == _UNAVAILABLE else Outcome.REJECTED
    return Ending(reply.status, outcome, reply.error_code)


def _names_a_model(path: str) -> bool:
    return path.startswith(_MODEL_PATH) and len(path) > len(_MODEL_PATH)


def _method_of(place: Place) -> str | None:
    """The method that an open endpoint takes; None: there is none there."""
    if place.path in _METERED:
        return "POST"
    is_free = place.path in {_MODELS_PATH, _ME_PATH} or _names_a_model(place.path)
    return "GET" if is_free and not place.deployment else None


async def _failed(exchange: Exchange, client: AiohttpDownstream, error: Exception) -> tuple[Reply, Ending]:
    """Break off an answer that has begun, in a stream with an event; put an error in the place of one that has not."""
    answer = answer_of(error) if isinstance(error, TollgateError) else fault(error)
    code = answer.code or answer.type
    status = answer.status
    if client.response is not None:
        status = client.response.status
        event = exchange.error_event(answer.message, code) if exchange.error_event is not None else b""
        # An event of which this client has only a part is ended first; between two events that is nothing.
        await client.break_off(event and b"\n\n" + event)
    # Its frames hold it, in the ending, and with it the request: that would be left to the collector.
    error.__traceback__ = None
    ending = Ending(status, answer.outcome, code, error)
    # It says how far the request came.
    return reply_of(answer, own_headers_of_error(exchange)), ending


def _client_request_id(headers: Mapping[str, str]) -> str:
    """What the client calls its request, for the log; empty where that is not fit to be seen."""
    theirs = headers.get("x-request-id") or headers.get("x-client-request-id")
    if not theirs or not _CLIENT_ID.fullmatch(theirs):
        return ""
    # A client that mistakes one header for another has its key in both.
    return "" if any(theirs in headers.get(name, "").split() for name in _CREDENTIALS) else theirs
