import asyncio
import json

import pytest

from proxy.core.answer import ChatStream
from proxy.core.errors import Overloaded, UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.pricing import cost_pico_usd
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.forward import dispatch
from proxy.pipeline.settle import settle, settle_broken, settle_hit, settle_refused, step_back
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import CachedAnswer

BODY = json.dumps(
    {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 200}
).encode()
RESERVED = (100, 200)


@pytest.fixture
async def exchange(bench):
    """One that has been admitted and dispatched."""
    exchange = await bench.exchange(BODY)
    await admit(exchange, bench.services)
    assert (exchange.reserved_input_tokens, exchange.reserved_output_tokens) == RESERVED
    assert await bench.charged() == (1, 300)
    dispatch(exchange, bench.services)
    return exchange


async def only_event(bench) -> dict:
    (event,) = await bench.events()
    return event


def tokens_of(event: dict) -> tuple[int, int]:
    return event["input_tokens"], event["output_tokens"]


async def test_what_was_not_used_is_given_back(bench, exchange):
    exchange.attempts = 1
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    assert await bench.charged() == (1, 110)
    event = await only_event(bench)
    assert (event["outcome"], event["status"], tokens_of(event), event["estimated"]) == ("ok", 200, (90, 20), False)
    assert event["cost_pico_usd"] == cost_pico_usd(exchange.price, Usage(90, 20), None)
    assert event["price_id"] == exchange.price.price_id


async def test_each_field_of_the_event_holds_what_it_is_named_for(bench, exchange):
    exchange.upstream, exchange.attempts, exchange.saved_pico_usd = "elsewhere", 3, 5
    exchange.started_ns -= 7_000_000
    settle(exchange, bench.services, status=201, outcome=Outcome.OK, usage=Usage(1, 2, 0, 0, 4, 0, 6))
    expected = {
        "event_id": exchange.event_id,
        "at_ms": exchange.at_ms,
        "request_id": exchange.request_id,
        "team": exchange.principal.team.name,
        "key_id": exchange.principal.key.kid,
        "endpoint": "chat",
        "model": "gpt-4o-mini",
        "upstream": "elsewhere",
        "status": 201,
        "outcome": "ok",
        "input_tokens": 1,
        "output_tokens": 2,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 4,
        "audio_input_tokens": 0,
        "audio_output_tokens": 6,
        "cost_pico_usd": exchange.cost_pico_usd,
        "saved_pico_usd": 5,
        "price_id": exchange.price.price_id,
        "estimated": False,
        "attempts": 3,
        "duration_ms": 7,
    }
    event = await only_event(bench)
    assert {name: event[name] for name in expected} == expected
    assert event.keys() - expected.keys() == {"day"}
    assert expected["cost_pico_usd"] not in {0, 5}


async def test_what_was_used_beyond_the_estimate_is_charged(bench, exchange):
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(400, 500))
    assert await bench.charged() == (1, 900)


async def test_only_the_first_settlement_counts(bench, exchange):
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    settle(exchange, bench.services, status=500, outcome=Outcome.FAILED, usage=Usage(1, 1))
    settle_broken(exchange, bench.services, ConnectionResetError())
    assert await bench.charged() == (1, 110)
    assert tokens_of(await only_event(bench)) == (90, 20)


async def test_without_usage_our_own_count_stands_and_says_so(bench, exchange):
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=None, counted_output_tokens=33)
    event = await only_event(bench)
    assert (tokens_of(event), event["estimated"]) == ((100, 33), True)
    assert await bench.charged() == (1, 133)


@pytest.mark.parametrize("error", [ConnectionResetError(), asyncio.CancelledError()])
async def test_a_client_that_left_while_upstream_was_at_work(bench, exchange, error):
    exchange.running = True
    settle_broken(exchange, bench.services, error)
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 499, True)
    assert tokens_of(event) == RESERVED
    assert await bench.charged() == (1, 300)


async def test_what_never_told_its_tier_is_priced_at_the_one_that_was_asked_for(bench):
    exchange = await bench.exchange(BODY[:-1] + b', "service_tier": "priority"}')
    await admit(exchange, bench.services)
    dispatch(exchange, bench.services)
    exchange.running = True
    settle_broken(exchange, bench.services, ConnectionResetError())
    dear = cost_pico_usd(exchange.price, Usage(*RESERVED), "priority")
    assert dear > cost_pico_usd(exchange.price, Usage(*RESERVED))
    assert (await only_event(bench))["cost_pico_usd"] == dear


async def test_the_tier_upstream_named_is_the_one_that_is_paid(bench):
    exchange = await bench.exchange(BODY[:-1] + b', "service_tier": "priority"}')
    await admit(exchange, bench.services)
    dispatch(exchange, bench.services)
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(9, 9), service_tier="default")
    assert (await only_event(bench))["cost_pico_usd"] == cost_pico_usd(exchange.price, Usage(9, 9))


async def test_a_client_that_left_while_nothing_was_running(bench, exchange):
    settle_broken(exchange, bench.services, asyncio.CancelledError())
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["estimated"]) == ("client_gone", 499, False)
    assert (tokens_of(event), event["cost_pico_usd"]) == ((0, 0), 0)
    assert await bench.charged() == (1, 0)


async def test_a_client_that_left_a_stream_pays_for_what_ran_and_keeps_its_reservation(bench, exchange):
    exchange.stream, exchange.status, exchange.running = ChatStream(choices=1, hide_usage=True), 200, True
    exchange.stream.feed(b'data: {"choices":[{"index":0,"delta":{"content":"some"}}]}\n\n' * 3)
    settle_broken(exchange, bench.services, ConnectionResetError())
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["estimated"], tokens_of(event)) == (
        "client_gone", 200, True, (100, 3))  # fmt: skip
    assert await bench.charged() == (1, 300)


async def test_a_stream_that_told_its_usage_before_it_broke(bench, exchange):
    exchange.stream, exchange.status = ChatStream(choices=1, hide_usage=True), 200
    exchange.stream.feed(b'data: {"choices":[],"usage":{"prompt_tokens":90,"completion_tokens":4}}\n\n')
    settle_broken(exchange, bench.services, ConnectionResetError())
    event = await only_event(bench)
    assert (tokens_of(event), event["estimated"]) == ((90, 4), False)
    assert await bench.charged() == (1, 94)


@pytest.mark.parametrize(
    ("fault", "running", "status", "tokens"),
    [
        (UpstreamFault.TIMEOUT, True, 504, RESERVED),
        (UpstreamFault.TIMEOUT, False, 504, (0, 0)),
        (UpstreamFault.BROKEN, True, 502, RESERVED),
        (UpstreamFault.BROKEN, False, 502, (0, 0)),
        (UpstreamFault.UNREACHABLE, False, 502, (0, 0)),
        (UpstreamFault.CONTENT, True, 502, RESERVED),
    ],
)
async def test_an_upstream_that_failed(bench, exchange, fault, running, status, tokens):
    exchange.running = running
    settle_broken(exchange, bench.services, UpstreamFailure("openai", fault))
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["estimated"]) == ("upstream_error", status, running)
    assert tokens_of(event) == tokens
    assert await bench.charged() == (1, sum(tokens))


@pytest.mark.parametrize(
    ("error", "outcome", "status"), [(Overloaded("queue"), "unavailable", 503), (ZeroDivisionError(), "failed", 500)]
)
async def test_what_is_ours_to_blame_costs_nothing(bench, exchange, error, outcome, status):
    settle_broken(exchange, bench.services, error)
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["cost_pico_usd"]) == (outcome, status, 0)
    assert await bench.charged() == (0, 0)


async def test_what_was_never_dispatched_gives_all_back_and_leaves_no_event(bench):
    exchange = await bench.exchange(BODY)
    await admit(exchange, bench.services)
    settle_broken(exchange, bench.services, Overloaded("the spool is at its quota"))
    assert await bench.charged() == (0, 0)
    assert await bench.events() == []


async def test_an_error_of_upstreams_costs_a_turn(bench, exchange):
    settle_refused(exchange, bench.services, 429)
    event = await only_event(bench)
    assert (event["outcome"], event["status"], event["cost_pico_usd"]) == ("upstream_error", 429, 0)
    assert await bench.charged() == (1, 0)


async def test_a_hit_costs_a_request_and_saves_what_it_cost(bench, clock):
    exchange = await bench.exchange(BODY)
    exchange.hit = CachedAnswer(200, (), b"{}", "gpt-4o-mini", clock.ms, 60_000, 90, 20, 12_345)
    await admit(exchange, bench.services)
    settle_hit(exchange, bench.services)
    settle_hit(exchange, bench.services)
    event = await only_event(bench)
    assert (event["outcome"], event["cost_pico_usd"], event["saved_pico_usd"], event["attempts"]) == (
        "cached", 0, 12_345, 0)  # fmt: skip
    assert await bench.charged() == (1, 0)


async def test_a_late_settlement_gives_back_only_what_can_still_be_there(bench, exchange, clock):
    clock.ms += 60_000
    assert await bench.charged() == (0, 0)
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(1, 1))
    assert await bench.charged() == (0, 0), "a refund of what has refilled already would hand tokens out twice"


async def test_the_events_time_is_the_admissions(bench, exchange, clock):
    admitted_ms = clock.ms
    clock.ms += 4_321
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(1, 1))
    event = await only_event(bench)
    assert (event["at_ms"], event["duration_ms"]) == (admitted_ms, 4_321)


async def test_an_admission_that_is_undone_leaves_nothing_behind(bench, registry):
    registry.set_team("growth", shadow_tier="payg")
    bench.services.principals.invalidate()
    exchange = await bench.exchange(BODY)
    exchange.collapsed = True
    await admit(exchange, bench.services)
    await decide_shadow(exchange, bench.services)
    assert exchange.shadow is not None
    assert await bench.charged() == (1, 0)
    step_back(exchange, bench.services)
    assert await bench.charged() == (0, 0)
    assert exchange.shadow is None
