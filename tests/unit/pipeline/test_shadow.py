import json
from dataclasses import replace

import pytest
from msgspec import structs

from proxy.core.bucket import Admitted, NeverFits, Refused, Scope
from proxy.core.errors import StoreAway
from proxy.core.event import Outcome
from proxy.core.tiers import DEFAULT_TIERS, Limits, Phase, Schedule, Tier
from proxy.core.usage import Usage
from proxy.pipeline.admit import admit
from proxy.pipeline.report import Ending, record_of
from proxy.pipeline.settle import settle, settle_broken, settle_hit
from proxy.pipeline.shadow import decide_shadow, shadow_status
from proxy.ports import CachedAnswer

REQUEST = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "x" * 396}], "max_tokens": 200}
SMALL = Limits(3, 600)
TIERS = {**DEFAULT_TIERS, "small": Tier("small", (Phase(SMALL),)), "rising": Tier("rising", (
    Phase(Limits(1), 60_000), Phase(Limits(2)),
))}  # fmt: skip


@pytest.fixture
def decided(bench):
    """An exchange of a team on trial, admitted and decided again."""

    async def decide(shadow_tier="small", *, hit=None, since_ms=None, services=None, **request):
        body = {name: value for name, value in {**REQUEST, **request}.items() if value is not None}
        exchange = await bench.exchange(json.dumps(body).encode())
        since_ms = bench.clock.ms if since_ms is None else since_ms
        team = structs.replace(exchange.principal.team, shadow_tier=shadow_tier, shadow_since_ms=since_ms)
        exchange.principal = structs.replace(exchange.principal, team=team)
        exchange.hit = hit
        services = services or bench.with_policy(tiers=TIERS)
        await admit(exchange, services)
        await decide_shadow(exchange, services)
        return exchange

    return decide


async def left(bench, limits=SMALL):
    (standing,) = await bench.services.limiter.peek("growth", (Scope("shadow", Schedule(limits, limits)),))
    return standing.requests.remaining, standing.tokens.remaining if standing.tokens else None


async def test_a_team_that_is_not_on_trial_is_decided_once(bench, decided):
    assert (await decided(None)).shadow is None
    assert (await decided("no-more-configured")).shadow is None
    assert len(bench.services.limiter) == 1


async def test_what_would_be_refused_is_told_and_charged_nothing(bench, decided):
    first, second = await decided(), await decided()
    assert [shadow_status(each.shadow) for each in (first, second)] == ["tier=small; ok"] * 2
    assert await left(bench) == (1, 0)
    third = await decided()
    assert isinstance(third.shadow.decision, Refused)
    assert shadow_status(third.shadow) == "tier=small; limited=tokens; wait_ms=30000"
    assert await left(bench) == (1, 0)
    # The team's own bucket knows nothing of it: three requests and what they reserved.
    assert await bench.charged() == (3, 900)


async def test_what_would_never_fit_has_no_wait(bench, decided):
    exchange = await decided(max_tokens=501)
    assert isinstance(exchange.shadow.decision, NeverFits)
    assert shadow_status(exchange.shadow) == "tier=small; limited=tokens; never"
    assert await left(bench) == (3, 600)


async def test_a_default_reservation_is_clamped_to_the_shadows_bucket(bench, decided):
    exchange = await decided(max_tokens=None)
    assert exchange.reserved_output_tokens == 1_024
    assert isinstance(exchange.shadow.decision, Admitted)
    assert await left(bench) == (2, 0)


async def test_it_is_settled_with_what_was_used(bench, decided):
    exchange = await decided()
    settle(exchange, bench.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    assert await left(bench) == (2, 490)
    over = await decided()
    settle(over, bench.services, status=200, outcome=Outcome.OK, usage=Usage(90, 910))
    assert await left(bench) == (1, 0)
    refused = await decided()
    settle(refused, bench.services, status=200, outcome=Outcome.OK, usage=Usage(90, 20))
    assert shadow_status(refused.shadow).startswith("tier=small; limited=tokens; wait_ms=")
    assert await left(bench) == (1, 0)
    assert await bench.charged() == (3, 110 + 1_000 + 110)


async def test_a_fault_of_ours_costs_it_nothing_either(bench, decided):
    settle_broken(await decided(), bench.services, RuntimeError())
    assert await left(bench) == (3, 600)


async def test_a_hit_is_one_of_its_requests(bench, decided):
    hit = CachedAnswer(200, (), b"{}", "gpt-4o-mini", bench.clock.ms, 60_000, 90, 20, 1)
    for number in range(3):
        exchange = await decided(hit=hit)
        settle_hit(exchange, bench.services)
        assert await left(bench) == (2 - number, 600)
    assert shadow_status((await decided(hit=hit)).shadow) == "tier=small; limited=requests; wait_ms=20000"


async def test_its_phases_count_from_the_beginning_of_the_trial(bench, decided):
    since_ms = bench.clock.ms
    limits = [
        (await decided("rising", since_ms=since_ms)).shadow.decision.standing.requests.limit
        for bench.clock.ms in (since_ms + 59_999, since_ms + 60_000)
    ]
    assert limits == [1, 2]


class Away:
    """A limiter that answers for the team and is gone when it is asked again."""

    def __init__(self, limiter):
        self._limiter = limiter

    async def reserve(self, team, scopes, cost, spend=None):
        if scopes[0].name == "shadow":
            raise StoreAway("limiter", "reserve")
        return await self._limiter.reserve(team, scopes, cost, spend)


async def test_a_limiter_that_is_away_decides_nothing(bench, decided):
    services = replace(bench.with_policy(tiers=TIERS), limiter=Away(bench.services.limiter))
    exchange = await decided(services=services)
    assert exchange.shadow is None
    assert await bench.charged() == (1, 300)


async def test_the_record_has_what_would_have_limited(bench, decided):
    limits = [record_of(await decided(), Ending(200), bench.services).shadow_limited for _ in range(3)]
    assert limits == ["", "", "tokens"]
