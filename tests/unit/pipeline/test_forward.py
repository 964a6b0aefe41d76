"""Calls upstream in virtual time: breakers, probes and deadlines, whatever clients do meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from proxy.core.breaker import Breaker, BreakerState
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.retry import RetryPolicy
from proxy.core.routing import Candidate
from proxy.pipeline.upstreams import Site, SiteKey, Upstreams, breaker_policy
from tests.support.stage import Play, Stage, Upstream, chat, on_stage, plain, stream

REST_SECONDS = 2.0
OUTAGE = Play([b'{"error":{"message":"no"}}'], status=500)
ANSWER = Play([plain()])
SLOW = Play([plain()], before=[100.0])


def stage_of(*plays_of_each, failures=2, **retry):
    """A stage whose cache is out of the way, before upstreams that rest after two failures in a row."""
    stage = Stage(cache_enabled=False)
    houses = [Upstream(plays) for plays in plays_of_each]
    sites = [
        Site(
            Candidate(f"u{number}", f"http://u{number}", priority=number),
            (SiteKey(1, house),),
            breaker=Breaker(breaker_policy(failures, int(REST_SECONDS * 1_000))),
        )
        for number, house in enumerate(houses)
    ]
    policy = replace(stage.services.policy, retry=RetryPolicy(**{"max_attempts": 1, **retry}))
    stage.services = replace(stage.services, policy=policy, upstreams=Upstreams(sites))
    return stage, houses, sites


async def statuses(stage, count):
    """Of requests one after the other."""
    told = []
    for _ in range(count):
        asked = stage.ask()
        await asyncio.wait([asked.task])
        told.append(asked.status)
    return told


def test_a_key_rests_for_the_model_it_is_out_of_rate_for_and_for_all_where_it_is_refused():
    async def play():
        for status, others_rest in ((429, False), (401, True)):
            stage, _, (site,) = stage_of([Play([b"{}"], status=status)])
            await statuses(stage, 1)
            (key,) = site.keys
            assert key.rests_until_ms(chat()["model"]) > 0
            assert (key.rests_until_ms("another") > 0) is others_rest

    on_stage(play)


def test_one_request_tries_it_while_others_are_refused():
    async def play():
        stage, (house,), (site,) = stage_of([OUTAGE, OUTAGE, SLOW, ANSWER])
        assert await statuses(stage, 3) == [500, 500, 503]
        await asyncio.sleep(REST_SECONDS)
        probe, other = stage.ask(), stage.ask()
        await asyncio.wait([other.task])
        assert (other.status, len(house.requests)) == (503, 3)
        assert other.headers["Retry-After"] == "2", "one more rest: nobody knows how long the one under way takes"
        await asyncio.wait([probe.task])
        assert probe.status == 200
        assert site.breaker.state is BreakerState.CLOSED
        assert await statuses(stage, 2) == [200, 200]

    on_stage(play)


def test_of_those_who_waited_for_a_turn_one_tries_it():
    async def play():
        stage, (house,), _ = stage_of([OUTAGE, OUTAGE, SLOW])
        await statuses(stage, 2)
        house.turn_seconds = 1.0
        await asyncio.sleep(REST_SECONDS + 0.1)
        asked = [stage.ask() for _ in range(5)]
        await asyncio.sleep(2)
        assert len(house.requests) == 3
        await asyncio.wait([each.task for each in asked])
        assert sorted(each.status for each in asked) == [200, 503, 503, 503, 503]
        assert all(len(turn.settled) == 1 for turn in house.turns), "turns that were not used are given back"

    on_stage(play)


def test_a_client_that_leaves_does_not_keep_an_upstream_shut():
    async def play():
        stage, (house,), (site,) = stage_of([OUTAGE, OUTAGE, SLOW, ANSWER])
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS)
        probe = stage.ask()
        await asyncio.sleep(1)
        assert site.breaker.state is BreakerState.HALF_OPEN
        await probe.leave()
        assert await statuses(stage, 1) == [200], "the next is the probe, at once"
        assert site.breaker.state is BreakerState.CLOSED
        assert len(house.requests) == 4

    on_stage(play)


def test_somebody_elses_leaving_is_no_word_about_the_probe():
    async def play():
        stage, (house,), _ = stage_of([SLOW, OUTAGE, OUTAGE, SLOW, ANSWER])
        early = stage.ask()
        await asyncio.sleep(0.1)
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS)
        stage.ask()
        await asyncio.sleep(0.1)
        await early.leave()
        assert await statuses(stage, 1) == [503]
        assert len(house.requests) == 4

    on_stage(play)


def test_a_probe_that_is_long_in_coming_makes_way_for_another():
    async def play():
        stage, (house,), (site,) = stage_of([OUTAGE, OUTAGE, SLOW, ANSWER])
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS)
        stage.ask()
        await asyncio.sleep(29)
        assert await statuses(stage, 1) == [503]
        await asyncio.sleep(1)
        assert await statuses(stage, 1) == [200]
        assert site.breaker.state is BreakerState.CLOSED
        assert len(house.requests) == 4

    on_stage(play)


@pytest.mark.parametrize("early", ["breaks", "answers", "is out of time"])
def test_what_was_asked_before_tells_nothing_while_another_tries(early):
    async def play():
        last = {"breaks": UpstreamFailure("u0", UpstreamFault.BROKEN), "answers": 0.0, "is out of time": 100.0}[early]
        slow = Play([plain()], before=[REST_SECONDS + 0.5, last])
        probe_play = Play([plain()], before=[2.0])
        stage, (house,), (site,) = stage_of([slow, OUTAGE, OUTAGE, probe_play, ANSWER], total_deadline_ms=3_000)
        old = stage.ask()
        await asyncio.sleep(0.01)
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS + 0.1)
        probe = stage.ask()
        await asyncio.wait([old.task])
        assert old.status == {"breaks": 502, "answers": 200, "is out of time": 504}[early]
        assert site.breaker.state is BreakerState.HALF_OPEN
        assert await statuses(stage, 1) == [503]
        await asyncio.wait([probe.task])
        assert site.breaker.state is BreakerState.CLOSED
        assert await statuses(stage, 1) == [200]
        assert len(house.requests) == 5

    on_stage(play)


def test_the_head_of_a_stream_is_proof_enough():
    async def play():
        words = stream("deep")
        slow = Play([words[0], 50.0, *words[1:]], kind="text/event-stream")
        stage, _, (site,) = stage_of([OUTAGE, OUTAGE, slow])
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS)
        asked = stage.ask(chat(stream=True))
        await asyncio.sleep(1)
        assert site.breaker.state is BreakerState.CLOSED
        await asyncio.wait([asked.task])
        assert asked.client.closed

    on_stage(play)


def test_a_probe_that_fails_makes_the_rest_longer():
    async def play():
        stage, (house,), _ = stage_of([OUTAGE, OUTAGE, OUTAGE, ANSWER])
        await statuses(stage, 2)
        await asyncio.sleep(REST_SECONDS)
        assert await statuses(stage, 1) == [500]
        await asyncio.sleep(2 * REST_SECONDS - 0.1)
        assert await statuses(stage, 1) == [503]
        await asyncio.sleep(0.1)
        assert await statuses(stage, 1) == [200]
        assert len(house.requests) == 4

    on_stage(play)


def test_the_deadline_of_all_calls_counts_against_the_one_that_was_being_made():
    async def play():
        stage, (house,), (site,) = stage_of([SLOW], total_deadline_ms=5_000, failures=1)
        assert await statuses(stage, 1) == [504]
        assert site.breaker.state is BreakerState.OPEN
        assert (house.running, house.cut) == (0, 1)

    on_stage(play)


def test_a_wait_between_calls_is_nobodys_failure():
    async def play():
        stage, _, (site,) = stage_of([OUTAGE, ANSWER], max_attempts=3, first_backoff_ms=1, max_backoff_ms=1, failures=2)
        assert await statuses(stage, 1) == [200]
        assert (site.breaker.state, site.breaker.failures) == (BreakerState.CLOSED, 0)

    on_stage(play)


def test_who_leaves_between_two_calls_pays_for_none():
    async def play():
        long_ms = 3_000_000
        retry = {"max_attempts": 2, "first_backoff_ms": long_ms, "max_backoff_ms": long_ms, "total_deadline_ms": 10**9}
        stage, (house,), _ = stage_of([OUTAGE, ANSWER], failures=5, **retry)
        asked = stage.ask()
        await asyncio.sleep(0.001)
        await asked.leave()
        (ended,) = stage.books.ended
        assert (ended.attempts, ended.usage.total_tokens, ended.cost_pico_usd) == (1, 0, 0)
        assert len(house.requests) == 1

    on_stage(play)


def test_refusals_are_no_outage():
    async def play():
        for status in (400, 401, 403, 404, 408, 409, 429):
            refusal = Play([b'{"error":{"message":"no"}}'], status=status)
            stage, (house,), (site,) = stage_of([refusal])
            await statuses(stage, 5)
            assert site.breaker.state is BreakerState.CLOSED
            assert len(house.requests) == 5

    on_stage(play)


def test_the_account_names_who_was_asked_first_and_who_answered():
    async def play():
        broken = Play([], before=[UpstreamFailure("u0", UpstreamFault.BROKEN)])
        stage, houses, _ = stage_of([broken], [OUTAGE], [ANSWER], max_attempts=3)
        assert await statuses(stage, 1) == [200]
        (begun,), (ended,), (record,) = stage.books.begun, stage.books.ended, stage.books.records
        assert (begun.upstream, ended.upstream, ended.attempts) == ("u0", "u2", 3)
        assert record.tried == ("u0", "u1", "u2")
        assert [len(house.requests) for house in houses] == [1, 1, 1]
        assert [house.running for house in houses] == [0, 0, 0]

    on_stage(play)


def test_what_is_kept_upstream_is_looked_for_where_it_was_put():
    async def play():
        stage, houses, sites = stage_of([ANSWER], [ANSWER])
        for site in sites:
            site.candidate = replace(site.candidate, priority=0)
        stage.services = replace(stage.services, upstreams=Upstreams(sites))
        stage.doorman.admit("keepers", allow_stateful=True)
        for _ in range(20):
            asked = stage.ask(by="keepers")
            await asyncio.wait([asked.task])
            assert asked.status == 200
        assert [len(house.requests) for house in houses] == [20, 0]
        for _ in range(200):
            asked = stage.ask()
            await asyncio.wait([asked.task])
        assert min(len(house.requests) for house in houses) > 40, "others are spread"

    on_stage(play)
