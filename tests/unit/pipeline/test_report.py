"""What is told of a request: every field from where it belongs, whatever the request has been through."""

import asyncio

import pytest
from msgspec import structs

from proxy.core.bucket import Gauge, Standing
from proxy.core.event import Outcome
from proxy.core.record import CacheResult
from proxy.core.usage import NO_USAGE, Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.report import Ending, record_of, report

BODY = b'{"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}'


async def test_every_field_is_in_its_place(bench):
    exchange = await bench.exchange(BODY)
    await admit(exchange, bench.services)
    standing = Standing(Gauge(10, 4, 1), Gauge(1_000, 250, 1))
    exchange.admitted = structs.replace(exchange.admitted, standing=standing)
    limits = exchange.admitted.reservation.scopes[0].schedule.limits_at(exchange.at_ms)
    exchange.request_id, exchange.client_request_id = "req_of_ours", "of the client"
    exchange.upstream, exchange.upstream_request_id, exchange.attempts = "second", "req_of_theirs", 3
    exchange.tried = ["first", "first", "second"]
    exchange.cache, exchange.cache_reason = CacheResult.MISS, "uri-miss"
    exchange.usage, exchange.cost_pico_usd, exchange.saved_pico_usd = Usage(11, 7, 5, 3, 2), 13, 17
    exchange.dispatched = exchange.settled = exchange.estimated = True
    exchange.status, exchange.outcome, exchange.price = 200, Outcome.CLIENT_GONE, None
    bench.clock.ms += 50
    exchange.upstream_ns, exchange.queued_ns = 30_000_000, 12_000_000
    exchange.first_byte_ns = exchange.started_ns + 9_500_000
    record = record_of(exchange, Ending(499, Outcome.OK, "a_code"), bench.services)
    assert structs.asdict(record) == {
        "request_id": "req_of_ours",
        "at_ms": exchange.at_ms,
        "method": "POST",
        "endpoint": "chat",
        "status": 200,
        "outcome": Outcome.CLIENT_GONE,
        "duration_ms": 50.0,
        "overhead_ms": 20.0,
        "upstream_ms": 30.0,
        "queued_ms": 12.0,
        "ttft_ms": 9.5,
        "team": "growth",
        "key_id": exchange.principal.key.kid,
        "model": "gpt-4o",
        "upstream": "second",
        "upstream_request_id": "req_of_theirs",
        "client_request_id": "of the client",
        "error_code": "a_code",
        "cache": CacheResult.MISS,
        "cache_reason": "uri-miss",
        "attempts": 3,
        "tried": ("first", "first", "second"),
        "usage": Usage(11, 7, 5, 3, 2),
        "cost_pico_usd": 13,
        "saved_pico_usd": 17,
        "estimated": True,
        "unpriced": True,
        "limited_scope": "",
        "limited_dimension": "",
        "shadow_limited": "",
        "token_use_ratio": 1 - 250 / limits.effective_token_capacity,
        "request_use_ratio": 1 - 4 / limits.effective_request_capacity,
    }


async def test_of_a_request_that_came_to_nothing_what_nobody_knows_is_empty(bench):
    exchange = await bench.exchange(BODY)
    del exchange.principal, exchange.asked
    exchange.price = None
    record = record_of(exchange, Ending(401, Outcome.REJECTED, "invalid_api_key"), bench.services)
    assert (record.status, record.outcome, record.error_code) == (401, Outcome.REJECTED, "invalid_api_key")
    assert (record.team, record.key_id, record.model, record.upstream) == ("", "", "", "")
    assert (record.ttft_ms, record.token_use_ratio, record.request_use_ratio, record.cache) == (None, None, None, None)
    assert (record.usage, record.attempts, record.tried, record.unpriced) == (NO_USAGE, 0, (), False)


@pytest.mark.parametrize("settled", [False, True])
async def test_a_fault_of_ours_is_told_whatever_settlement_said(bench, settled):
    exchange = await bench.exchange(BODY)
    exchange.settled, exchange.status, exchange.outcome = settled, 200, Outcome.OK
    record = record_of(exchange, Ending(500, Outcome.FAILED), bench.services)
    assert (record.status, record.outcome) == (500, Outcome.FAILED)


async def test_tokens_that_are_counted_later_are_waited_for(bench):
    exchange = await bench.exchange(BODY)
    exchange.attempts, exchange.upstream = 1, "openai"
    exchange.counting = asyncio.get_running_loop().create_future()
    bench.services.telemetry.started()
    report(exchange, Ending(200), bench.services)
    value, model = bench.metrics.registry.get_sample_value, {"team": "growth", "model": "gpt-4o"}
    assert value("tollgate_in_flight_requests") == 1
    exchange.usage, exchange.cost_pico_usd = Usage(3, 4), 5_000_000
    exchange.counting.set_result(None)
    await asyncio.sleep(0)
    assert value("tollgate_in_flight_requests") == 0
    assert value("tollgate_tokens_total", {**model, "kind": "input"}) == 3
    assert value("tollgate_tokens_total", {**model, "kind": "output"}) == 4
    assert value("tollgate_spend_usd_total", model) == pytest.approx(0.000005)
