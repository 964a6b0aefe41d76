"""What is said of a request at each point it can come to, and what is not known there yet."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from msgspec import structs

from proxy.core.errors import LimitReached, Overloaded, UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.money import parse_usd
from proxy.core.record import CacheResult
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.forward import dispatch
from proxy.pipeline.lookup import look_up
from proxy.pipeline.own_headers import own_headers, own_headers_of_error
from proxy.pipeline.settle import settle, settle_broken, settle_hit
from proxy.ports import CachedAnswer

MODEL = "gpt-4o-mini"
REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}
CALLED = {"x-tollgate-upstream", "x-tollgate-attempts"}
MONEY = {"x-tollgate-cost-usd", "x-tollgate-saved-usd"}


@pytest.fixture
def sent(bench):
    """An exchange as it is once upstream has begun to answer."""

    async def send(**request):
        exchange = await bench.exchange(json.dumps({**REQUEST, **request}).encode())
        await look_up(exchange, bench.services)
        await admit(exchange, bench.services)
        dispatch(exchange, bench.services)
        exchange.attempts = 2
        return exchange

    return send


def end(bench, exchange):
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(9, 3))


async def test_a_plain_answer_says_what_the_ledger_will(bench, sent):
    exchange = await sent()
    exchange.queued_ns = 1_999_999
    end(bench, exchange)
    told = dict(own_headers(exchange))
    assert (told["x-tollgate-upstream"], told["x-tollgate-attempts"]) == ("openai", "2")
    assert (told["x-tollgate-cache"], told["x-tollgate-queue-wait-ms"]) == ("bypass", "1")
    (event,) = await bench.events()
    assert parse_usd(told["x-tollgate-cost-usd"]) == event["cost_pico_usd"] > 0
    assert "x-tollgate-saved-usd" not in told


async def test_the_head_of_a_stream_says_nothing_of_money(bench, sent):
    exchange = await sent(stream=True)
    exchange.stream = exchange.kind.listen(exchange.asked)
    for _ in range(2):
        told = dict(own_headers(exchange))
        assert told.keys() >= CALLED
        assert not told.keys() & MONEY
        end(bench, exchange)  # a flight may have ended before its leader is told the head


async def test_what_is_still_being_counted_is_not_said_to_cost_anything(bench, sent):
    exchange = await sent()
    end(bench, exchange)
    exchange.counting = asyncio.get_running_loop().create_future()
    assert not dict(own_headers(exchange)).keys() & MONEY
    exchange.counting.set_result(None)
    assert "x-tollgate-cost-usd" in dict(own_headers(exchange))


async def test_a_model_without_a_price_costs_nobody_knows_what(bench, sent):
    exchange = await sent()
    exchange.price = None
    end(bench, exchange)
    assert not dict(own_headers(exchange)).keys() & MONEY


async def test_a_hit_costs_nothing_and_says_what_it_saved(bench):
    exchange = await bench.exchange(json.dumps({**REQUEST, "temperature": 0, "stream": True}).encode())
    exchange.hit = CachedAnswer(200, (), b"{}", MODEL, bench.clock.ms, 60_000, 90, 20, 12_345)
    exchange.cache = CacheResult.HIT
    await admit(exchange, bench.services)
    settle_hit(exchange, bench.services)
    told = dict(own_headers(exchange))
    assert told["x-tollgate-cache"] == "hit"
    assert (told["x-tollgate-cost-usd"], told["x-tollgate-saved-usd"]) == ("0.000000000000", "0.000000012345")
    assert not told.keys() & CALLED


@pytest.mark.parametrize("fault", list(UpstreamFault))
async def test_an_error_after_the_call_says_who_was_called_and_what_it_cost(bench, sent, fault):
    exchange = await sent(max_tokens=50)
    exchange.running = fault is UpstreamFault.TIMEOUT
    settle_broken(exchange, bench.services, UpstreamFailure("openai", fault))
    told = dict(own_headers_of_error(exchange))
    assert (told["x-tollgate-upstream"], told["x-tollgate-attempts"]) == ("openai", "2")
    assert told["Cache-Status"].startswith("tollgate; fwd=bypass")
    (event,) = await bench.events()
    assert parse_usd(told["x-tollgate-cost-usd"]) == event["cost_pico_usd"]
    assert (event["cost_pico_usd"] > 0) == exchange.running


async def test_one_that_was_not_called_names_no_upstream(bench, sent):
    exchange = await sent()
    exchange.attempts = 0
    settle_broken(exchange, bench.services, Overloaded("the queue is full"))
    told = dict(own_headers_of_error(exchange))
    assert not told.keys() & CALLED
    assert told["x-tollgate-queue-wait-ms"] == "0"


async def test_a_refusal_says_how_long_it_waited_and_nothing_of_a_call(bench):
    exchange = await bench.exchange(json.dumps({**REQUEST, "temperature": 0}).encode())
    team = structs.replace(
        exchange.principal.team, limits=replace(exchange.principal.team.limits, requests_per_minute=1)
    )
    exchange.principal = structs.replace(exchange.principal, team=team)
    await look_up(exchange, bench.services)
    await admit(exchange, bench.services)
    exchange.queued_ns = 20_000_000_000
    with pytest.raises(LimitReached):
        await admit(exchange, bench.services)
    told = dict(own_headers_of_error(exchange))
    assert told == {
        "Cache-Status": "tollgate; detail=uri-miss",
        "x-tollgate-cache": "miss",
        "x-tollgate-queue-wait-ms": "20000",
    }


async def test_one_that_the_cache_was_not_asked_for_says_the_same(bench):
    exchange = await bench.exchange(json.dumps(REQUEST).encode())
    exchange.queued_ns = 3_000_000
    assert own_headers_of_error(exchange) == (("x-tollgate-cache", "bypass"), ("x-tollgate-queue-wait-ms", "3"))
    exchange.queued_ns = 0
    await admit(exchange, bench.services)
    dispatch(exchange, bench.services)
    exchange.attempts = 1
    assert dict(own_headers_of_error(exchange)).keys() >= CALLED


async def test_what_came_to_nothing_of_it_is_told_nothing(bench):
    exchange = await bench.exchange(json.dumps(REQUEST).encode())
    assert own_headers_of_error(exchange) == ()
