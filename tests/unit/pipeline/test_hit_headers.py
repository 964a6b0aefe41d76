"""What is said with an answer from the cache: its age, and where the limits stand now."""

import json

import pytest

from proxy.core.bucket import Cost
from proxy.pipeline.admit import admit, scopes_of
from proxy.pipeline.relay import replay
from proxy.ports import CachedAnswer

MODEL = "gpt-4o-mini"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "temperature": 0}).encode()
STALE = (("content-type", "application/json"), ("openai-version", "2020-10-01"))


async def given(bench, *, stored_ms_ago=0, services=None):
    exchange = await bench.exchange(BODY)
    at_ms = bench.clock.ms - stored_ms_ago
    exchange.hit = CachedAnswer(200, STALE, b"{}", MODEL, at_ms, 60_000, 90, 20, 12_345)
    await admit(exchange, services or bench.services)
    return exchange, dict(replay(exchange).headers)


@pytest.mark.parametrize(("stored_ms_ago", "age"), [(0, "0"), (999, "0"), (1_000, "1"), (59_999, "59"), (-5_000, "0")])
async def test_age_is_whole_seconds_since_it_was_kept(bench, stored_ms_ago, age):
    _, headers = await given(bench, stored_ms_ago=stored_ms_ago)
    assert headers["Age"] == age


@pytest.mark.parametrize(("hits_cost", "left"), [(1, ["99", "98"]), (0, ["100", "100"])])
async def test_limits_are_told_as_they_are_at_this_moment(bench, hits_cost, left):
    services = bench.with_policy(hits_cost_requests=hits_cost)
    for remaining in left:
        _, headers = await given(bench, services=services)
        assert headers["x-ratelimit-remaining-requests"] == remaining
        assert headers["x-ratelimit-remaining-tokens"] == "10000"
    exchange = await bench.exchange(BODY)
    scopes = scopes_of(exchange.principal, MODEL, bench.services.policy, bench.clock.ms)
    bench.services.limiter.charge("growth", scopes, Cost(7, 3_000))
    _, headers = await given(bench, services=services)
    assert headers["x-ratelimit-remaining-requests"] == str(int(left[-1]) - 7 - hits_cost)
    assert headers["x-ratelimit-remaining-tokens"] == "7000"
    assert headers["x-ratelimit-limit-requests"] == "100"


async def test_a_hit_that_costs_nothing_passes_an_empty_bucket(bench):
    exchange = await bench.exchange(BODY)
    scopes = scopes_of(exchange.principal, MODEL, bench.services.policy, bench.clock.ms)
    bench.services.limiter.charge("growth", scopes, Cost(100, 10_000))
    _, headers = await given(bench, services=bench.with_policy(hits_cost_requests=0))
    assert (headers["x-ratelimit-remaining-requests"], headers["x-ratelimit-remaining-tokens"]) == ("0", "0")
