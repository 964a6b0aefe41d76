"""Everybody, and nobody: what is answered, and that nothing is counted."""

from __future__ import annotations

import asyncio

import pytest

from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.outcomes import NeverSent, Why
from proxy.adapters.redis.policies import Open
from proxy.core.bucket import Admitted, Cost, Scope, Standing
from proxy.core.errors import StoreAway
from proxy.core.share import Away
from proxy.core.tiers import Limits, Schedule

AWAY = NeverSent(Why.AWAY)
TEAM = (Scope("team", Schedule(Limits(1), Limits(1))),)


def reserve(policy, cost):
    return asyncio.run(policy.reserve("a", TEAM, cost, AWAY))


def test_open_admits_and_counts_nothing():
    counted = []
    policy = Open(lambda: counted.append(1))
    decisions = [reserve(policy, Cost(1, 10**9)) for _ in range(5)]
    assert all(isinstance(decision, Admitted) for decision in decisions)
    assert len(counted) == 5
    assert decisions[0].standing == Standing()
    assert [policy.settle(decisions[0].reservation, Cost(0, 0)) for _ in range(2)] == [True, False]
    assert not policy.charge("a", TEAM, Cost(1, 0))
    assert "a" not in policy
    assert policy.untold() == ()
    assert list(policy.owed("a")) == []
    assert asyncio.run(policy.peek("a", TEAM, AWAY)) == (Standing(),)


def test_closed_says_that_the_store_is_away():
    with pytest.raises(StoreAway) as away:
        reserve(Closed(), Cost(1, 0))
    assert away.value.__cause__ is AWAY


@pytest.mark.parametrize("policy", [Closed(), Open(lambda: None)])
def test_who_counts_nothing_keeps_no_room_for_others_and_asks_at_any_time(policy):
    for back_ms in (None, 0):
        assert policy.ask_with(TEAM, Cost(1, 0), Away(600_000, 600_000, 600_000, back_ms)) is TEAM
