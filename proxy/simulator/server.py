"""The simulated upstream as an aiohttp application.

One request: faults it asks for -> time -> key -> operation -> limits -> chance -> answer.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web
from multidict import CIMultiDict

from proxy.simulator.behaviour import Behaviour
from proxy.simulator.clock import SystemTime, Time
from proxy.simulator.connection import client_left, reset, say_garbage, wait_for_leave
from proxy.simulator.endpoint import Answer, Asked, Blob, Stamp
from proxy.simulator.faults import NO_FAULTS, Attempts, Faults
from proxy.simulator.heads import EVENT_STREAM, JSON, Serials, head
from proxy.simulator.limits import Limits
from proxy.simulator.receiving import receive
from proxy.simulator.refusal import Refusal, of_status
from proxy.simulator.routes import Routes
from proxy.simulator.sending import send_plain
from proxy.simulator.stats import Record, Stats
from proxy.simulator.stream import Pace, send_stream
from proxy.simulator.words import fraction_of

__all__ = ["STATS", "make_app"]

STATS: web.AppKey[Stats] = web.AppKey("simulator_stats", Stats)
"""Where an application keeps its counts, for a test in the same process."""

_MAX_BODY_BYTES = 512 * 1024 * 1024
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
        self._routes = Routes(behaviour)

    async def show_stats(self, _: web.Request) -> web.Response:
        return web.Response(body=self.stats.body(), content_type=JSON)

    async def start_over(self, _: web.Request) -> web.Response:
        """Forget counts, buckets, attempts, what is kept, and the place in the sequence of failures."""
        self.stats.clear()
        self._limits.clear()
        self._attempts.clear()
        self._routes.clear()
        self._draws = 0
        return web.Response(status=204)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer one request to the API and record how it ended."""
        path, _, query = request.raw_path.partition("?")
        record = self.stats.begin(path, query, request.raw_headers, request.method)
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
        request, record = exchange.request, exchange.record
        received = await receive(request)
        self.stats.last_body = received.body
        record.body_bytes, record.body_sha256 = received.length, received.sha256
        faults = exchange.faults = self._attempts.still_faulty(Faults.of(request.raw_headers, self._faults))
        if faults.reset or faults.garbage:
            (reset if faults.reset else say_garbage)(request)
            return web.Response()
        if faults.hang:
            await wait_for_leave(request, self._time)
            raise ConnectionResetError
        await self._pause(self._behaviour.latency_ms + faults.delay_ms)
        if faults.redirect is not None:
            record.status, record.completed = 307, True
            return web.Response(status=307, headers={"Location": faults.redirect})
        if faults.status is not None:
            raise of_status(faults.status, self._limits.open_headers, faults.code)
        self._check_key(request.headers.get("Authorization", ""))
        operation, ids = self._routes.find(request.method, request.path)
        stamp = Stamp(exchange.serial[-29:], self._time.now_ms() // 1_000)
        asked = Asked(received.body, stamp, ids, request.query, received.form)
        answer = operation(asked)
        exchange.model = answer.model
        limits = self._limits.open_headers
        if answer.model:
            limits = self._limits.take(answer.model, answer.limit_tokens, self._time.now_ms())
            self._draw(limits)
        if isinstance(answer, Blob):
            return await self._send_blob(exchange, answer, limits)
        return await self._send(exchange, asked, answer, limits)

    async def _send_blob(self, exchange: _Exchange, blob: Blob, limits: Mapping[str, str]) -> web.StreamResponse:
        exchange.record.status = 200
        headers = self._head(exchange, blob.content_type, limits)
        response = await send_plain(exchange.request, blob.pieces(), blob.length, headers, exchange.faults, self._time)
        exchange.record.completed = exchange.faults.cut_after is None
        return response

    async def _send(
        self, exchange: _Exchange, asked: Asked, answer: Answer, limits: Mapping[str, str]
    ) -> web.StreamResponse:
        request, record, faults = exchange.request, exchange.record, exchange.faults
        pace = Pace(
            self._behaviour.ttft_ms if faults.ttft_ms is None else faults.ttft_ms,
            self._behaviour.chunk_ms if faults.chunk_ms is None else faults.chunk_ms,
        )
        record.stream = answer.stream
        self._routes.note(request.path, asked, answer)
        if not answer.stream and answer.model:
            await self._pause(pace.ttft_ms + pace.chunk_ms * answer.pauses)
        record.status = 200
        record.input_tokens, record.output_tokens = answer.input_tokens, answer.output_tokens
        if answer.stream:
            response: web.StreamResponse = web.StreamResponse(headers=self._head(exchange, EVENT_STREAM, limits))
            await send_stream(request, response, answer, asked.stamp, pace, faults, record, self._time)
            return response
        content = _NOT_JSON if faults.malformed else answer.body(asked.stamp, usage=not faults.no_usage)
        headers = self._head(exchange, answer.content_type, limits)
        if faults.shapes_plain:
            response = await send_plain(request, (content,), len(content), headers, faults, self._time)
            if faults.cut_after is not None:
                return response
        else:
            response = web.Response(body=content, headers=headers)
        record.output_tokens_sent = 0 if faults.malformed else answer.output_tokens
        record.completed = True
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
