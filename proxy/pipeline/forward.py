"""Send it upstream, again if that may help, until the head of an answer has come."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from proxy.core.breaker import BreakerState
from proxy.core.chat import ask_for_usage
from proxy.core.errors import Overloaded, UpstreamFailure, UpstreamFault
from proxy.core.event import Dispatch
from proxy.core.headers import as_it_is, as_json, without_keys
from proxy.core.pricing import service_tier_of
from proxy.core.retry import Remedy, asked_wait_ms, is_outage, is_quota_used_up, remedy_for
from proxy.core.splice import with_model
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.interpret import takes_long
from proxy.pipeline.services import Services
from proxy.pipeline.tour import Stop, Tour
from proxy.pipeline.upstream_turn import take_turn
from proxy.pipeline.upstreams import KEY_REFUSED_REST_MS, Site
from proxy.ports import Body, UpstreamAnswer, UpstreamRequest

__all__ = ["dispatch", "forward"]


def dispatch(exchange: Exchange, services: Services) -> None:
    """Choose who is asked, and write the begin record: the ledger has it from here on. Raises `Overloaded`."""
    principal = exchange.principal
    # What a team keeps upstream, it finds again where it is asked in the same order each time.
    draw = 0.0 if principal.team.allow_stateful else random.random()  # noqa: S311 - spreads load, guards nothing
    route = services.upstreams.route(exchange.asked.model, draw)
    services.ledger.begin(
        Dispatch(
            event_id=exchange.event_id,
            at_ms=exchange.at_ms,
            request_id=exchange.request_id,
            team=principal.team.name,
            key_id=principal.key.kid,
            endpoint=exchange.endpoint,
            model=exchange.asked.model,
            upstream=route[0].name,
            reserved_input_tokens=exchange.reserved_input_tokens,
            reserved_output_tokens=exchange.reserved_output_tokens,
            price_id=exchange.price.price_id if exchange.price else None,
            service_tier=service_tier_of(exchange.asked.service_tier),
        )
    )
    exchange.route, exchange.upstream = route, route[0].name
    exchange.dispatched = True


async def forward(exchange: Exchange, services: Services) -> UpstreamAnswer:
    """Return an answer whose head has come; its body is unread. Raises `UpstreamFailure`, `Overloaded`, `StoreAway`.

    No byte has gone to the client yet, which is what makes trying again safe for it.
    """
    policy, clock = services.policy.retry, services.clock
    calls = _Calls(exchange, services)
    begun_ns = clock.monotonic_ns()
    try:
        # The first turn is waited for before the deadline begins: to put that off is dear.
        first = await calls.next_stop(0)
        if first is None:
            raise calls.nobody()
        # An upload takes as long as its client does; silence has a bound of its own.
        async with asyncio.timeout(None if exchange.as_it_is else policy.total_deadline_ms / 1_000) as deadline:
            return await calls.until_answered(first, deadline)
    except asyncio.CancelledError:
        calls.let_go()
        raise
    except TimeoutError:
        services.telemetry.upstream_failed(exchange.upstream, UpstreamFault.TIMEOUT)
        calls.let_go()
        calls.timed_out()
        raise UpstreamFailure(exchange.upstream, UpstreamFault.TIMEOUT) from None
    finally:
        exchange.upstream_ns += clock.monotonic_ns() - begun_ns


@dataclass(frozen=True, slots=True)
class _Failed:
    """A call that did not bring what was asked for: an error of upstream's, or none."""

    came: UpstreamAnswer | UpstreamFailure
    reason: str
    remedy: Remedy | None
    asked_ms: int | None = None

    def give_up(self) -> UpstreamAnswer:
        """The client is given what came."""
        if isinstance(self.came, UpstreamFailure):
            raise self.came
        return self.came

    def let_go(self) -> None:
        """Another call is made in its place."""
        if not isinstance(self.came, UpstreamFailure):
            self.came.close()


class _Calls:
    """The calls of one request."""

    __slots__ = ("_calling", "_exchange", "_failed", "_headers", "_is_probe", "_requests", "_services", "_tour")

    def __init__(self, exchange: Exchange, services: Services) -> None:
        self._exchange = exchange
        self._services = services
        policy, telemetry = services.policy.retry, services.telemetry
        self._tour = Tour(exchange.route, policy, telemetry.retry_refused, exchange.asked.model)
        headers = exchange.onward
        if exchange.as_it_is:
            headers += as_it_is(exchange.headers)
        elif exchange.body is None and exchange.headers.get("Content-Type") != "application/json":
            headers = as_json(headers)
        self._headers = headers
        self._requests: dict[Site, UpstreamRequest] = {}
        self._calling: Site | None = None
        self._is_probe = False
        self._failed: _Failed | None = None

    async def until_answered(self, stop: Stop, deadline: asyncio.Timeout) -> UpstreamAnswer:
        """Call, from `stop` on, until an answer came that is the client's, or no further call would help."""
        exchange, clock = self._exchange, self._services.clock
        begun_ns = clock.monotonic_ns()
        while True:
            came = await self._call(stop)
            if not isinstance(came, _Failed):
                return came
            request = self._requests[stop.site]
            self._tour.failed(stop, came.remedy, came.asked_ms, self._now_ms())
            # Nobody is there to have another answer, or it cannot be asked for.
            if exchange.drained or not (isinstance(request.body, bytes) or request.body.replayable):
                return came.give_up()
            self._failed = came
            following = await self.next_stop((clock.monotonic_ns() - begun_ns) // _NS_PER_MS, deadline)
            if following is None:
                return came.give_up()
            self.let_go()
            self._services.telemetry.retried(exchange.upstream, came.reason)
            stop = following

    async def next_stop(self, elapsed_ms: int, deadline: asyncio.Timeout | None = None) -> Stop | None:
        """Where the next call is made, once it may be made; None: nowhere."""
        while True:
            jitter = random.random()  # noqa: S311 - spreads retries out, guards nothing
            stop = self._tour.next(self._now_ms(), elapsed_ms, jitter)
            if stop is None:
                return None
            if stop.wait_ms:
                await asyncio.sleep(stop.wait_ms / 1_000)
            try:
                await take_turn(self._exchange, stop, self._services, deadline)
            except Overloaded as error:
                self._tour.full(stop, error)
                continue
            if stop.site.breaker.state is BreakerState.CLOSED or stop.site.breaker.admits(self._now_ms()):
                return stop

    def let_go(self) -> None:
        """Nobody is given what came last."""
        if self._failed is not None:
            self._failed.let_go()

    def nobody(self) -> Overloaded:
        """Why no call was made at all."""
        return self._tour.nobody(self._now_ms())

    def timed_out(self) -> None:
        """The deadline of all calls has passed in the middle of one."""
        if self._calling is not None:
            self._report(self._calling, is_outage=True)

    async def _call(self, stop: Stop) -> UpstreamAnswer | _Failed:
        exchange, site, answer = self._exchange, stop.site, None
        self._is_probe = site.breaker.state is BreakerState.HALF_OPEN
        try:
            request = self._requests.get(site) or await self._request(site)
            self._tour.called(stop, self._now_ms())
            exchange.attempts += 1
            exchange.tried.append(site.name)
            exchange.upstream, exchange.running, self._calling = site.name, True, site
            answer = await stop.key.call.send(request)
            exchange.running = answer.status < 300
            code = await _error_code(answer) if answer.status >= 400 else None
        except UpstreamFailure as failure:
            # One that kept silent is likely still at work; one that broke off before it answered is not.
            exchange.running = failure.fault is UpstreamFault.TIMEOUT and exchange.running
            self._calling = None
            self._report(site, is_outage=True)
            self._services.telemetry.upstream_failed(site.name, failure.fault)
            # Of an error that broke off, the head holds.
            headers = {} if answer is None else answer.headers
            return _Failed(failure, failure.fault, remedy_for(failure.fault, headers), self._asked_ms(headers))
        except BaseException:
            if self._is_probe:
                site.breaker.withdrawn(self._now_ms())
            raise
        self._calling = None
        self._note_remaining(stop, answer)
        self._report(site, is_outage=is_outage(answer.status))
        return answer if answer.status < 400 else self._refused(stop, answer, code)

    def _report(self, site: Site, *, is_outage: bool) -> None:
        """Tell how upstream is. While a call tries it, those that are older tell nothing of the present."""
        if site.breaker.state is BreakerState.HALF_OPEN and not self._is_probe:
            return
        if is_outage:
            site.breaker.failed(self._now_ms())
        else:
            site.breaker.succeeded()

    def _asked_ms(self, headers: Mapping[str, str]) -> int | None:
        return asked_wait_ms(headers, self._services.clock.now_ms())

    def _refused(self, stop: Stop, answer: UpstreamAnswer, code: str | None) -> _Failed:
        """Upstream answered with an error: what may mend it, and whose fault it is."""
        telemetry, reason = self._services.telemetry, f"status_{answer.status}"
        if answer.status in _UPSTREAM_TO_BLAME or answer.status >= 500:
            telemetry.upstream_failed(stop.site.name, reason)
        asked_ms = self._asked_ms(answer.headers)
        refusal = _KEY_REFUSALS.get(answer.status)
        if refusal is not None:
            if is_quota_used_up(answer.status, code):
                refusal = "quota"
            if refusal == "rate":
                # Upstream's limits are by model.
                stop.key.rest(self._now_ms(), asked_ms or 0, self._exchange.asked.model)
            else:
                stop.key.rest(self._now_ms(), KEY_REFUSED_REST_MS)
            telemetry.key_refused(stop.site.name, stop.key.number, refusal)
        return _Failed(answer, reason, remedy_for(answer.status, answer.headers, code), asked_ms)

    def _note_remaining(self, stop: Stop, answer: UpstreamAnswer) -> None:
        for dimension, header in _REMAINING:
            text = answer.headers.get(header)
            if text is not None and len(text) < _DIGITS and text.isdecimal() and text.isascii():
                self._services.telemetry.upstream_remaining(stop.site.name, stop.key.number, dimension, int(text))

    async def _request(self, site: Site) -> UpstreamRequest:
        """What is sent there; of a large body it is made in a thread."""
        long = takes_long(self._exchange.asked.raw)
        request = await asyncio.to_thread(self._made, site) if long else self._made(site)
        self._requests[site] = request
        return request

    def _made(self, site: Site) -> UpstreamRequest:
        """The request with the model by its name there, and the usage of a stream asked for where it may be."""
        exchange, asked = self._exchange, self._exchange.asked
        model = site.candidate.name_of(asked.model) or asked.model
        body: bytes | Body
        if exchange.body is not None:
            body = exchange.body(model)
        else:
            may_ask = site.ask_for_usage
            if may_ask is None:
                may_ask = self._services.policy.ask_for_stream_usage
            asking = asked.stream and not asked.include_usage and may_ask
            body = ask_for_usage(asked) if asking else asked.raw
            if model != asked.model:
                body = with_model(body, model)
        query = without_keys(exchange.query, exchange.headers) if exchange.query else ""
        return UpstreamRequest(
            method=exchange.method,
            path_qs=f"{exchange.path}?{query}" if query else exchange.path,
            headers=self._headers,
            body=body,
            as_it_is=exchange.as_it_is,
            model=model,
        )

    def _now_ms(self) -> int:
        return self._services.clock.monotonic_ns() // _NS_PER_MS


class _Error(msgspec.Struct):
    code: str | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error | None = None


_NS_PER_MS = 1_000_000
_DIGITS = 16
_REMAINING = tuple((dimension, f"x-ratelimit-remaining-{dimension}") for dimension in ("requests", "tokens"))
_KEY_REFUSALS = {401: "refused", 429: "rate"}
_decode_error = msgspec.json.Decoder(_ErrorBody).decode
_UPSTREAM_TO_BLAME = frozenset({401, 403, 408, 429})
"""Of the 4xx, those that say something about our account or about upstream, not about the client's request."""


async def _error_code(answer: UpstreamAnswer) -> str | None:
    try:
        body = await answer.read()
    except BaseException:
        answer.close()
        raise
    try:
        error = _decode_error(body).error
    except (msgspec.MsgspecError, RecursionError):
        return None
    return error.code if error else None
