"""What may go wrong upstream, and what comes of it, as one table.

Each row is a fault, asked for in every form it can meet: chat and responses, plain and streamed, and embeddings. It
says what the client gets, how often upstream was called, what is charged, and what metrics and breaker know of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import CHAT, TEAM, UPSTREAM_KEY, Answer, Gateway, Open, nobody

CERTIFICATE = Path(__file__).parents[1] / "support" / "tls" / "server.pem"
INPUT = "How deep is the bucket?"


class Charge(Enum):
    """What an account has of a request in the end; a request that was called upstream counts as one in any case."""

    NOTHING = auto()
    USED = auto()
    """As upstream told."""
    COUNTED = auto()
    """What was counted here of what came."""
    RESERVED = auto()
    """All that it could have been: it may have run to its end, and nobody told."""


NOTHING, USED, COUNTED, RESERVED = Charge


@dataclass(frozen=True)
class Form:
    """One form of asking."""

    path: str
    body: dict[str, Any]
    reserved: tuple[int, int]
    prompt: int
    """Tokens of the prompt as they are counted here."""

    @property
    def stream(self) -> bool:
        return self.body.get("stream", False)


RESPONSE = {"model": "gpt-4o-mini", "input": INPUT}
FORMS = {
    "chat": Form("/v1/chat/completions", CHAT, (7, 1_024), 13),
    "chat stream": Form("/v1/chat/completions", {**CHAT, "stream": True}, (7, 1_024), 13),
    "responses": Form("/v1/responses", RESPONSE, (13, 1_024), 13),
    "responses stream": Form("/v1/responses", {**RESPONSE, "stream": True}, (13, 1_024), 13),
    "embeddings": Form("/v1/embeddings", {"model": "text-embedding-3-small", "input": INPUT}, (6, 0), 6),
}


@dataclass(frozen=True)
class End:
    """What a fault comes to."""

    status: int
    code: str | None
    calls: int
    charge: Charge
    kind: str | None = None
    """Under which the metrics have each call that failed."""
    outage: bool = False
    """The breaker counts it."""
    broken: bool = False
    """A stream that begins well and breaks off with an error that says `code`."""
    cut_off: bool = False
    """The connection is broken behind it, so that nobody can take the stream for whole."""

    @property
    def failures(self) -> int:
        """Calls that failed: all, or all but the one that brought the answer."""
        return self.calls - (self.status == 200 and not self.broken)

    @property
    def outcome(self) -> str:
        return "ok" if self.status == 200 and not self.broken else "upstream_error"


def fine(calls: int = 1, kind: str | None = None, charge: Charge = USED) -> End:
    return End(200, None, calls, charge, kind)


def broken(code: str, kind: str) -> End:
    return End(200, code, 1, COUNTED, kind, broken=True, cut_off=True)


def unreachable(kind: str, calls: int = 3) -> End:
    return End(502, "upstream_unreachable", calls, NOTHING, kind, outage=True)


NO_ANSWER = End(502, "upstream_unreachable", 1, RESERVED, "content")
"""Upstream did its work, and what it said is none."""
HALF_AN_ANSWER = End(502, "upstream_unreachable", 1, RESERVED, "broken")
RATE = "rate_limit_exceeded"

Elsewhere = Callable[[], AbstractAsyncContextManager[str]]


@dataclass(frozen=True)
class Fault:
    """A row: the wishes the simulator is told, and what comes of them. None: this form cannot meet it."""

    wishes: tuple[str, ...]
    plain: End | None
    stream: End | None
    responses_stream: End | None = None
    """Where a stream of that endpoint comes to another end than other streams."""
    elsewhere: Elsewhere | None = None
    """Another upstream than the simulator."""
    settings: dict[str, object] = field(default_factory=dict)

    def of(self, form: Form) -> End | None:
        if not form.stream:
            return self.plain
        return (self.responses_stream if form.path == "/v1/responses" else None) or self.stream


def both(*wishes: str, end: End, **more: Any) -> Fault:
    return Fault(wishes, end, end, **more)


def error(status: int, code: str | None, calls: int, *more: str, outage: bool = False, blamed: bool = True) -> Fault:
    kind = f"status_{status}" if blamed else None
    return both(f"status: {status}", *more, end=End(status, code, calls, NOTHING, kind, outage))


@contextlib.asynccontextmanager
async def strange_certificate() -> AsyncIterator[str]:
    """A server whose certificate no authority of this system has signed."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@contextlib.asynccontextmanager
async def away() -> AsyncIterator[str]:
    with nobody() as url:
        yield url


SOON = {"upstream.read_timeout_seconds": 0.8}
"""And still later than a head comes."""
MENDED = ("times: 2", "id: {form}")
"""The first two calls alone are disturbed."""

TABLE = {
    # Refusals: what may pass is tried again, what is the client's own or stays as it is comes back at once.
    "a storm of 429": error(429, RATE, 3),
    "429 for a moment": error(429, RATE, 3, "retry-after-ms: 20"),
    "429 for longer than anybody waits": error(429, RATE, 1, "retry-after-ms: 300"),
    "429 that passes": both("status: 429", *MENDED, end=fine(3, "status_429")),
    "a quota that is used up": error(429, "insufficient_quota", 1, "code: insufficient_quota"),
    "429 not to be tried again": error(429, RATE, 1, "should-retry: false"),
    "400": error(400, None, 1, blamed=False),
    "403": error(403, "unsupported_country_region_territory", 1),
    "404": error(404, "model_not_found", 1, blamed=False),
    "408": error(408, None, 3),
    "409": error(409, None, 1, blamed=False),
    "422": error(422, None, 1, blamed=False),
    "our key is refused": both("status: 401", end=End(502, "upstream_key_refused", 1, NOTHING, "status_401")),
    # Outages: the same, and the breaker counts them.
    "500": error(500, None, 3, outage=True),
    "502": error(502, None, 3, outage=True),
    "503": error(503, "server_is_overloaded", 3, outage=True),
    "504": error(504, None, 3, outage=True),
    "503 not to be tried again": error(503, "server_is_overloaded", 1, "should-retry: false", outage=True),
    "503 that passes": both("status: 503", *MENDED, end=fine(3, "status_503")),
    "nobody listens": both(end=unreachable("unreachable"), elsewhere=away),
    "a certificate of a stranger": both(end=unreachable("unreachable"), elsewhere=strange_certificate),
    "a reset": both("reset: 1", end=unreachable("broken")),
    "a reset that passes": both("reset: 1", *MENDED, end=fine(3, "broken")),
    "bytes that are no HTTP": both("garbage: 1", end=unreachable("broken")),
    # Silence: heard, perhaps still at work, and billed.
    "silence": both(
        "hang: 1", end=End(504, "upstream_timeout", 1, RESERVED, "timeout", outage=True), settings=SOON,
    ),
    "silence after the head": Fault(
        ("hang-after-head: 1",),
        End(504, "upstream_timeout", 1, RESERVED, "timeout"),
        broken("upstream_timeout", "timeout"),
        settings=SOON,
    ),
    # Answers that break off: never again, and never whole.
    "a cut": Fault(("cut-after: 3",), HALF_AN_ANSWER, broken("upstream_broken", "broken")),
    "a cut before the first event": Fault(("cut-after: 0",), HALF_AN_ANSWER, broken("upstream_broken", "broken")),
    "a cut in mid-chunk": Fault(("cut-inside-after: 3",), None, broken("upstream_broken", "broken")),
    "an error in mid-stream": Fault(
        ("error-event-after: 3",),
        None,
        broken("server_error", "content"),
        # An error event is one of the ends that a stream of responses has.
        End(200, "server_error", 1, COUNTED, "content", broken=True),
    ),
    # Answers that are odd.
    "a slow drip": both("drip-ms: 1", "split: 40", end=fine()),
    "compressed though nobody asked": both("gzip: 1", end=fine()),
    "no usage": both("no-usage: 1", end=fine(charge=COUNTED)),
    "no end in so many words": Fault(("no-done: 1",), None, fine()),
    "no JSON": Fault(("malformed: 1",), NO_ANSWER, None),
    "another content type": Fault(("content-type: text/html",), fine(), NO_ANSWER),
    "a redirect": both("redirect: http://127.0.0.1:1/v1", end=End(502, "upstream_unreachable", 1, NOTHING, "content")),
}  # fmt: skip


def unchunked(answer: Answer) -> bytes:
    """The payload of a chunked answer, as far as it came."""
    said, rest = b"", answer.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        said, rest = said + rest[:length], rest[length + 2 :]
    return said


def seen_by_the_client(answer: Answer, form: Form, end: End) -> None:
    assert answer.status == end.status
    assert not {"content-encoding", "location", "www-authenticate"} & set(answer.headers)
    assert UPSTREAM_KEY.encode() not in answer.data
    if end.status != 200:
        assert answer.clean
        assert sorted(answer.error) == ["code", "message", "param", "type"]
        assert answer.error["code"] == end.code
        return
    if not form.stream:
        assert answer.clean
        assert {"choices", "output", "data"} & json.loads(answer.body).keys()
        return
    said = unchunked(answer)
    *_, last, rest = said.split(b"\n\n")
    assert rest == b"", "events that were passed in half are ended"
    assert answer.clean is not end.cut_off
    assert answer.data.endswith(b"0\r\n\r\n") is not end.cut_off
    if end.broken:
        assert b"[DONE]" not in said
        assert b"response.completed" not in said
        event = json.loads(last.rpartition(b"data: ")[2])
        told = event.get("error", event)
        assert end.code in {told["code"], told["type"]}


async def charged(gateway: Gateway, event: dict[str, Any], form: Form, end: End) -> None:
    tokens = event["input_tokens"], event["output_tokens"]
    assert event["estimated"] is (end.charge in {COUNTED, RESERVED} and tokens != (0, 0))
    match end.charge:
        case Charge.NOTHING:
            assert tokens == (0, 0)
        case Charge.USED:
            used = gateway.stats.records[-1]
            assert tokens == (used.input_tokens, used.output_tokens) != (0, 0)
        case Charge.RESERVED:
            assert tokens == form.reserved
        case Charge.COUNTED:
            assert tokens[0] == form.prompt
            assert 0 <= tokens[1] <= 40
    assert (event["cost_pico_usd"] > 0) == (tokens != (0, 0))


@dataclass
class Readings:
    """What the meters show, to be told from what they show later."""

    errors: dict[str, float]
    retries: dict[str, float]
    requests: float
    estimated: float
    taken: tuple[int, int]
    failures: int

    @classmethod
    async def of(cls, gateway: Gateway, outcome: str) -> Readings:
        (site,) = gateway.worker.services.upstreams
        return cls(
            by_label(gateway, gateway.worker.metrics.upstream_errors_total, "kind"),
            by_label(gateway, gateway.worker.metrics.retries_total, "reason"),
            gateway.total("tollgate_requests_total", team=TEAM, outcome=outcome),
            gateway.total("tollgate_estimated_usage_total", reason=outcome),
            await gateway.charged(),
            site.breaker.failures,
        )


def by_label(gateway: Gateway, counter: Any, label: str) -> dict[str, float]:
    samples = [sample for sample in counter.collect()[0].samples if sample.name.endswith("_total")]
    return {sample.labels[label]: sample.value for sample in samples if sample.value}


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}


async def shown(gateway: Gateway, before: Readings, event: dict[str, Any], end: End) -> None:
    after = await Readings.of(gateway, end.outcome)
    assert grown(before.errors, after.errors) == ({end.kind: end.failures} if end.kind and end.failures else {})
    assert grown(before.retries, after.retries) == ({end.kind: end.calls - 1} if end.calls > 1 else {})
    assert after.requests - before.requests == 1
    assert after.estimated - before.estimated == event["estimated"]
    assert after.taken == (before.taken[0] + 1, before.taken[1] + event["input_tokens"] + event["output_tokens"])
    assert after.failures == (before.failures + end.failures if end.outage else 0)
    assert gateway.in_flight == 0


@pytest.mark.parametrize("name", TABLE)
async def test_a_fault(open_gateway: Open, subtests: pytest.Subtests, name: str) -> None:
    fault = TABLE[name]
    async with contextlib.AsyncExitStack() as stack:
        settings = dict(fault.settings)
        if fault.elsewhere is not None:
            settings["upstream.base_url"] = await stack.enter_async_context(fault.elsewhere())
        gateway = await open_gateway(**settings)
        for form_name, form in FORMS.items():
            end = fault.of(form)
            if end is None:
                continue
            with subtests.test(form=form_name):
                wishes = [f"x-simulate-{wish.format(form=form_name)}" for wish in fault.wishes]
                before = await Readings.of(gateway, end.outcome)
                calls = gateway.stats.requests
                answer = await gateway.raw(gateway.request_bytes(form.body, *wishes, path=form.path))
                seen_by_the_client(answer, form, end)
                event = (await gateway.events())[-1]
                assert (event["status"], event["outcome"], event["attempts"]) == (end.status, end.outcome, end.calls)
                assert gateway.stats.requests - calls == (0 if fault.elsewhere else end.calls)
                await charged(gateway, event, form, end)
                await shown(gateway, before, event, end)
                logged = gateway.records()[-1]
                assert (logged["status"], logged["outcome"], logged["attempts"]) == (end.status, end.outcome, end.calls)
        assert UPSTREAM_KEY not in gateway.log.getvalue()
        assert await gateway.mismatches() == []
