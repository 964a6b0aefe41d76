"""The simulated upstream as an aiohttp application.

One request: faults it asks for -> time -> key -> endpoint -> limits -> chance -> answer.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.chat import chat_endpoint
from proxy.simulator.clock import SystemTime, Time
from proxy.simulator.completions import completions_endpoint
from proxy.simulator.connection import client_left, cut, reset, wait_for_leave
from proxy.simulator.embeddings import embeddings_endpoint
from proxy.simulator.endpoint import Answer, Endpoint, Stamp, Static
from proxy.simulator.faults import NO_FAULTS, Attempts, Faults
from proxy.simulator.heads import EVENT_STREAM, JSON, Serials, head
from proxy.simulator.limits import Limits
from proxy.simulator.models import list_body, model_body
from proxy.simulator.moderations import moderations_endpoint
from proxy.simulator.refusal import Refusal, of_status
from proxy.simulator.responses import input_tokens_endpoint, responses_endpoint
from proxy.simulator.stats import Record, Stats
from proxy.simulator.stream import Pace, send_stream
from proxy.simulator.words import fraction_of

__all__ = ["STATS", "make_app"]

STATS: web.AppKey[Stats] = web.AppKey("simulator_stats", Stats)
"""Where an application keeps its counts, for a test in the same process."""

_MAX_BODY_BYTES = 512 * 1024 * 1024
_MODEL_PATH = "/v1/models/"
_BEARER = "bearer "
_NOT_JSON = b'{"id":"chatcmpl-'
_CLIENT_LEFT_STATUS = 499


def make_app(behaviour: Behaviour, *, time: Time | None = None) -> web.Application:
    """An application that answers as OpenAI's API does, and `/simulator/stats` and `/simulator/reset` beside it.

    Run it with `handler_cancellation=True` for a client that leaves to be noticed at once; without, it is noticed at
    the next chunk.
    """
    simulator = _Simulator(behaviour, time or SystemTime())
    app = web.Application(client_max_size=_MAX_BODY_BYTES)
    app[STATS] = simulator.stats
    app.router.add_get("/simulator/stats", simulator.show_stats)
    app.router.add_post("/simulator/reset", simulator.start_over)
    app.router.add_route("*", "/{path:.*}", simulator.serve)
    app.on_shutdown.append(simulator.stop)
    return app


@dataclass(slots=True)
class _Exchange:
    """One request on its way."""

    request: web.Request
    record: Record
    serial: str
    started_ns: int
    faults: Faults = NO_FAULTS
    model: str = ""


class _Simulator:
    def __init__(self, behaviour: Behaviour, time: Time) -> None:
        self.stats = Stats()
        self._behaviour = behaviour
        self._time = time
        self._serials = Serials(behaviour.seed)
        self._limits = Limits(behaviour.requests_per_minute, behaviour.tokens_per_minute)
        self._faults = Faults.named(behaviour.faults)
        self._attempts = Attempts()
        self._draws = 0
        self._stopping = False
        models = Static(list_body())
        self._endpoints: dict[tuple[str, str], Endpoint] = {
            ("POST", "/v1/chat/completions"): chat_endpoint(behaviour),
            ("POST", "/v1/completions"): completions_endpoint(behaviour),
            ("POST", "/v1/embeddings"): embeddings_endpoint(behaviour),
            ("POST", "/v1/moderations"): moderations_endpoint(behaviour),
            ("POST", "/v1/responses"): responses_endpoint(behaviour),
            ("POST", "/v1/responses/input_tokens"): input_tokens_endpoint,
            ("GET", "/v1/models"): lambda _: models,
        }

    async def show_stats(self, _: web.Request) -> web.Response:
        return web.Response(body=self.stats.body(), content_type=JSON)

    async def start_over(self, _: web.Request) -> web.Response:
        """Forget counts, buckets, attempts and the place in the sequence of failures."""
        self.stats.clear()
        self._limits.clear()
        self._attempts.clear()
        self._draws = 0
        return web.Response(status=204)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request to the API and record how it ended."""
        path, _, query = request.raw_path.partition("?")
        record = self.stats.begin(path, query, request.raw_headers)
        exchange = _Exchange(request, record, self._serials.next(), self._time.monotonic_ns())
        try:
            return await self._answer(exchange)
        except Refusal as refusal:
            return self._refuse(exchange, refusal)
        except ConnectionResetError:
            self._left(record)
            return web.Response()  # goes nowhere; raising would be logged as a fault of ours
        except asyncio.CancelledError:
            if client_left(request):
                self._left(record)
            raise
        finally:
            self.stats.end(record)

    async def stop(self, _: web.Application) -> None:
        """From now on a connection that breaks is our doing."""
        self._stopping = True

    def _left(self, record: Record) -> None:
        if not record.completed and not self._stopping:
            record.cut_by_client = True
            record.status = record.status or _CLIENT_LEFT_STATUS

    async def _answer(self, exchange: _Exchange) -> web.StreamResponse:
        request = exchange.request
        body = await request.read()
        self.stats.last_body = body
        faults = exchange.faults = self._attempts.still_faulty(Faults.of(request.raw_headers, self._faults))
        if faults.reset:
            reset(request)
            return web.Response()
        if faults.hang:
            await wait_for_leave(request, self._time)
            raise ConnectionResetError
        await self._pause(self._behaviour.latency_ms + faults.delay_ms)
        if faults.status is not None:
            raise of_status(faults.status, self._limits.open_headers)
        self._check_key(request.headers.get("Authorization", ""))
        answer = self._endpoint(request)(body)
        exchange.model = answer.model
        limits = self._limits.open_headers
        if answer.model:
            limits = self._limits.take(answer.model, answer.limit_tokens, self._time.now_ms())
            self._draw(limits)
        return await self._send(exchange, answer, limits)

    async def _send(self, exchange: _Exchange, answer: Answer, limits: Mapping[str, str]) -> web.StreamResponse:
        record, faults = exchange.record, exchange.faults
        stamp = Stamp(exchange.serial[-29:], self._time.now_ms() // 1_000)
        pace = Pace(
            self._behaviour.ttft_ms if faults.ttft_ms is None else faults.ttft_ms,
            self._behaviour.chunk_ms if faults.chunk_ms is None else faults.chunk_ms,
        )
        record.stream = answer.stream
        if answer.stream:
            record.status = 200
            record.input_tokens, record.output_tokens = answer.input_tokens, answer.output_tokens
            response = web.StreamResponse(headers=self._head(exchange, EVENT_STREAM, limits))
            await send_stream(exchange.request, response, answer, stamp, pace, faults, record, self._time)
            return response
        if answer.model:
            await self._pause(pace.ttft_ms + pace.chunk_ms * max(answer.output_tokens - 1, 0))
        record.status = 200
        record.input_tokens, record.output_tokens = answer.input_tokens, answer.output_tokens
        content = _NOT_JSON if faults.malformed else answer.body(stamp, usage=not faults.no_usage)
        headers = self._head(exchange, JSON, limits)
        if faults.cut_after is not None:
            return await self._cut_half_way(exchange.request, content, headers)
        record.output_tokens_sent = 0 if faults.malformed else answer.output_tokens
        record.completed = True
        return web.Response(body=content, headers=headers)

    @staticmethod
    async def _cut_half_way(request: web.Request, content: bytes, headers: CIMultiDict[str]) -> web.StreamResponse:
        response = web.StreamResponse(headers=headers)
        response.content_length = len(content)
        await response.prepare(request)
        await response.write(content[: len(content) // 2])
        cut(request)
        return response

    def _refuse(self, exchange: _Exchange, refusal: Refusal) -> web.Response:
        exchange.record.status = refusal.status
        exchange.record.completed = True
        headers = self._head(exchange, JSON, self._limits.open_headers | dict(refusal.headers))
        body = _NOT_JSON if exchange.faults.malformed else refusal.body()
        return web.Response(status=refusal.status, body=body, headers=headers)

    def _head(self, exchange: _Exchange, content_type: str, extra: Mapping[str, str]) -> CIMultiDict[str]:
        faults = exchange.faults
        headers = head(
            exchange.serial,
            content_type=faults.content_type or content_type,
            processing_ms=(self._time.monotonic_ns() - exchange.started_ns) // 1_000_000,
            model=exchange.model,
            extra=extra,
        )
        if faults is not NO_FAULTS:
            headers.update(faults.retry_headers())
        return headers

    def _endpoint(self, request: web.Request) -> Endpoint:
        path = request.path
        if endpoint := self._endpoints.get((request.method, path)):
            return endpoint
        if request.method == "GET" and path.startswith(_MODEL_PATH):
            return lambda _: Static(model_body(path.removeprefix(_MODEL_PATH)))
        raise Refusal(404, f"Unknown request URL: {request.method} {path}.", code="unknown_url")

    def _check_key(self, authorization: str) -> None:
        scheme, token = authorization[: len(_BEARER)], authorization[len(_BEARER) :].strip()
        if scheme.lower() != _BEARER or not token:
            raise Refusal(401, "You didn't provide an API key.", headers={"www-authenticate": "Bearer"})
        expected = self._behaviour.api_key
        if expected is not None and not hmac.compare_digest(token.encode(), expected.encode()):
            raise Refusal(401, "Incorrect API key provided.", code="invalid_api_key")

    def _draw(self, limits: Mapping[str, str]) -> None:
        """Fail as often as was asked for: the k-th request after a start or reset always fares the same."""
        if not self._behaviour.error_rate:
            return
        self._draws += 1
        if fraction_of("error", self._behaviour.seed, self._draws) < self._behaviour.error_rate:
            raise of_status(self._behaviour.error_status, limits)

    async def _pause(self, wait_ms: float) -> None:
        if wait_ms:
            await self._time.sleep(wait_ms / 1_000)
