import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from proxy.core.bucket import Dimension
from proxy.core.errors import LimitReached, NeverAdmissible, Overloaded, UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.principal import Principal
from proxy.core.tiers import Limits
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit, scopes_of
from proxy.pipeline.forward import dispatch
from proxy.pipeline.line import travel
from proxy.pipeline.settle import settle, settle_broken, settle_hit, settle_refused
from proxy.pipeline.shadow import decide_shadow
from proxy.ports import CachedAnswer

MODEL = "gpt-4o-mini"
REQUEST = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 200}
BODY = json.dumps(REQUEST).encode()
OPEN_ENDED = json.dumps({name: value for name, value in REQUEST.items() if name != "max_tokens"}).encode()


def limited(exchange, *, team=None, key=None):
    """The exchange, its caller given other limits."""
    caller = exchange.principal
    exchange.principal = Principal(structs.replace(caller.team, **team or {}), structs.replace(caller.key, **key or {}))
    return exchange


async def told(bench, **limits):
    """Scopes by name, for a caller with such limits."""
    exchange = limited(await bench.exchange(BODY), **limits)
    scopes = scopes_of(exchange.principal, MODEL, bench.services.policy, exchange.at_ms)
    return {scope.name: scope for scope in scopes}, exchange.principal


async def test_a_plain_caller_passes_its_teams_bucket_alone(bench):
    scopes, _ = await told(bench, team={"model_limits": {"gpt-4o": Limits(1)}})
    assert list(scopes) == ["team"]
    assert scopes["team"].max_parallel is None


async def test_every_limit_is_a_scope_and_the_teams_comes_first(bench):
    by_model = {MODEL: Limits(None, 70), "gpt-4o": Limits(1)}
    scopes, principal = await told(
        bench, team={"max_parallel": 4, "model_limits": by_model}, key={"limits": Limits(5), "max_parallel": 2}
    )
    key = f"key:{principal.key.kid}"
    assert list(scopes) == ["team", key, f"model:{MODEL}"]
    assert [scope.max_parallel for scope in scopes.values()] == [4, 2, None]
    held = [scope.schedule.limits_at(bench.clock.ms) for scope in scopes.values()]
    assert held == [Limits(100, 10_000), Limits(5), Limits(None, 70)]


async def test_a_key_with_places_alone_is_a_scope_too(bench):
    scopes, principal = await told(bench, key={"max_parallel": 2})
    scope = scopes[f"key:{principal.key.kid}"]
    assert (scope.max_parallel, scope.schedule.before) == (2, Limits())


async def test_a_team_whose_tier_is_no_more_is_held_to_the_default(bench):
    scopes, caller = await told(bench, team={"tier": "gone", "limits": None})
    default = bench.services.policy.tiers["free"].schedule(caller.team.tier_since_ms, bench.clock.ms)
    assert scopes["team"].schedule == default
    assert default.after.requests_per_minute == 20


async def test_a_refusal_by_one_scope_charges_none_and_says_whose_it_is(bench):
    key = {"limits": Limits(1)}
    await admit(limited(await bench.exchange(BODY), key=key), bench.services)
    assert await bench.charged() == (1, 300)
    exchange = limited(await bench.exchange(BODY), key=key)
    with pytest.raises(LimitReached) as refused:
        await admit(exchange, bench.services)
    assert (refused.value.refusal.scope, refused.value.key) == (f"key:{exchange.principal.key.kid}", "test")
    assert refused.value.refusal.standing.requests.limit == 100
    with pytest.raises(NeverAdmissible) as never:
        await admit(
            limited(await bench.exchange(BODY), team={"model_limits": {MODEL: Limits(None, 299)}}), bench.services
        )
    assert never.value.refusal.scope == f"model:{MODEL}"
    assert await bench.charged() == (1, 300)


@pytest.mark.parametrize(
    ("limits", "reserved"),
    [
        ({}, 1_024),
        ({"key": {"limits": Limits(None, 400)}}, 300),
        ({"team": {"model_limits": {MODEL: Limits(None, 150)}}, "key": {"limits": Limits(None, 400)}}, 50),
    ],
    ids=["the default", "clamped to the key", "clamped to the smallest"],
)
async def test_the_default_reservation_never_makes_a_request_impossible(bench, limits, reserved):
    exchange = limited(await bench.exchange(OPEN_ENDED), **limits)
    await admit(exchange, bench.services)
    assert (exchange.reserved_input_tokens, exchange.reserved_output_tokens) == (100, reserved)


async def test_no_place_is_a_refusal_of_its_own(bench):
    one = {"max_parallel": 1}
    first = limited(await bench.exchange(BODY), team=one)
    await admit(first, bench.services)
    with pytest.raises(LimitReached) as refused:
        await admit(limited(await bench.exchange(BODY), team=one), bench.services)
    refusal = refused.value.refusal
    assert (refusal.dimension, refusal.limit, refusal.used) == (Dimension.PARALLEL, 1, 1)
    assert await bench.charged() == (1, 300)
    settle_refused(first, bench.services, 400)
    await admit(limited(await bench.exchange(BODY), team=one), bench.services)


HIT = CachedAnswer(200, (), b"{}", MODEL, 0, 60_000, 90, 20, 12_345)


@pytest.mark.parametrize("hits_cost", [0, 1])
async def test_a_hit_gives_its_place_back(bench, hits_cost):
    services = bench.with_policy(hits_cost_requests=hits_cost)
    for number in range(3):
        exchange = limited(await bench.exchange(BODY), team={"max_parallel": 1}, key={"max_parallel": 1})
        exchange.hit = HIT
        await admit(exchange, services)
        assert bool(services.limiter._in_flight) is bool(hits_cost)
        settle_hit(exchange, services)
        assert services.limiter._in_flight == {}
        assert await bench.charged() == (hits_cost * (number + 1), 0)


@pytest.mark.parametrize("hits_cost", [0, 1])
async def test_a_hit_that_is_never_given_costs_nothing_and_is_no_event(bench, hits_cost):
    services = bench.with_policy(hits_cost_requests=hits_cost)
    exchange = limited(await bench.exchange(BODY), team={"max_parallel": 1})
    exchange.hit = HIT
    await admit(exchange, services)
    settle_broken(exchange, services, asyncio.CancelledError())
    assert services.limiter._in_flight == {}
    assert await bench.charged() == (0, 0)
    assert await bench.events() == []
    assert exchange.outcome is Outcome.CLIENT_GONE


class Client:
    """A connection on which a request has come."""

    async def receive(self):
        return BODY


async def test_a_fault_of_ours_gives_place_and_tokens_back(bench, registry):
    registry.set_team("growth", max_parallel=1)
    # Without a ledger to write to, the step after admission falls over.
    services = replace(bench.with_policy(cache_enabled=False), ledger=None)
    for _ in range(3):
        exchange = await bench.exchange(BODY, headers={"Authorization": f"Bearer {bench.key}"})
        with pytest.raises(AttributeError):
            await travel(exchange, Client(), services)
        assert exchange.admitted.reservation.scopes[0].max_parallel == 1
        assert services.limiter._in_flight == {}
        assert await bench.charged() == (0, 0)


FAILURES = {
    "left": ConnectionResetError,
    "cancelled": asyncio.CancelledError,
    "crashed": RuntimeError,
    "overloaded": lambda: Overloaded("draining"),
    "upstream": lambda: UpstreamFailure("openai", UpstreamFault.BROKEN),
}


def end(exchange, services, how, *, running):
    """End an exchange in one of all the ways there are."""
    exchange.running = running
    if exchange.hit is not None and how in ("ok", "refused"):
        settle_hit(exchange, services)
    elif how == "ok":
        settle(exchange, services, status=200, outcome=Outcome.OK, usage=Usage(90, 400))
    elif how == "refused":
        settle_refused(exchange, services, 400)
    else:
        settle_broken(exchange, services, FAILURES[how]())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    most=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    history=st.lists(
        st.tuples(
            st.sampled_from(["arrive", "arrive", "end"]),
            st.sampled_from(["ok", "refused", *FAILURES]),
            st.sampled_from(["sent", "not sent", "hit"]),
            st.booleans(),
            st.integers(0, 5),
        ),
        max_size=25,
    ),
)
async def test_places_are_never_exceeded_and_never_leak(bench, most, history):
    """Arrivals and ends of every kind, in any order: what is open is what is counted, and in the end nothing is."""
    team = {"max_parallel": most[0], "limits": None, "tier": "unlimited", "shadow_tier": "free"}
    under_way, taken = [], bench.services.limiter._in_flight
    assert taken == {}
    arriving = await bench.exchange(BODY)
    for verb, how, kind, running, number in history:
        if verb == "arrive":
            exchange = limited(replace_exchange(arriving), team=team, key={"max_parallel": most[1]})
            exchange.hit = HIT if kind == "hit" else None
            if len(under_way) == min(most):
                with pytest.raises(LimitReached) as refused:
                    await admit(exchange, bench.services)
                assert refused.value.refusal.dimension is Dimension.PARALLEL
                continue
            await admit(exchange, bench.services)
            await decide_shadow(exchange, bench.services)
            if kind == "sent":
                dispatch(exchange, bench.services)
            under_way.append(exchange)
        elif under_way:
            end(under_way.pop(number % len(under_way)), bench.services, how, running=running)
        assert set(taken.values()) <= {len(under_way)}
        assert len(taken) == (2 if under_way else 0)
        assert len(under_way) <= min(most)
    for exchange in under_way:
        settle_broken(exchange, bench.services, RuntimeError())
    assert taken == {}


def replace_exchange(exchange):
    """Another request just like it, at its beginning."""
    other = replace(exchange)
    other.principal, other.asked = exchange.principal, exchange.asked
    return other


async def test_a_model_stays_open_by_the_name_it_was_asked_by(bench, registry):
    """Who waits for a turn is looked at again, and only the model itself is asked by then."""
    registry.set_team("growth", models=frozenset({"fast"}))
    bench.services.principals.invalidate()
    exchange = await bench.exchange(BODY)
    assert not exchange.may_use_model
    exchange.named = "fast"
    assert exchange.may_use_model
    registry.set_team("growth", models=frozenset({"another"}))
    bench.services.principals.invalidate()
    exchange.principal = await bench.services.principals.of(bench.key)
    assert not exchange.may_use_model
