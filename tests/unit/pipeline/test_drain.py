"""Calls whose clients have left, where they are read to their end: on a stage, in virtual time."""

import asyncio
import itertools
import json

import pytest

from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.record import CacheResult
from proxy.core.retry import RetryPolicy
from tests.support.stage import Play, Stage, chat, on_stage, plain, stream

SSE = "text/event-stream; charset=utf-8"
SHARED, ALONE = chat(), chat(temperature=1)
PLAIN = [SHARED, ALONE]
STREAMS = [{**body, "stream": True} for body in PLAIN]
COUNTED = [{**body, "stream_options": {"include_usage": True}} for body in STREAMS]
NAMES = ["may be kept", "may not"]
USED = 8
"""Tokens, as upstream says."""


def answer_after(seconds, body=None, **play):
    return Play([body or plain()], before=[seconds], **play)


def paced(events, seconds=1.0, **play):
    return Play([step for event in events for step in (seconds, event)], kind=SSE, **play)


def draining(*plays, most=10, **policy):
    stage = Stage(*plays, max_draining=most, **policy)
    stage.given_up = []
    stage.services.flights.on_given_up = stage.given_up.append
    return stage


async def left(stage, body, after_seconds):
    """Ask, and leave."""
    asked = stage.ask(body)
    await asyncio.sleep(after_seconds)
    await asked.leave()
    return asked


def reserved(asked):
    return asked.exchange.admitted.reservation.cost.tokens


@pytest.mark.parametrize("body", [*PLAIN, *STREAMS, *COUNTED])
def test_what_was_sent_is_read_to_its_end_and_accounted_for_exactly(body):
    async def play():
        stage = draining(paced(stream("a", "b", "c")) if body.get("stream") else answer_after(5))
        asked = await left(stage, body, 2.5)
        assert stage.books.records == stage.books.ended == [], "it is not over"
        assert stage.books.in_flight == stage.upstream.running == len(stage.services.flights.draining) == 1
        assert await stage.charged() == (1, reserved(asked))
        await stage.all()
        assert stage.upstream.cut == 0
        (event,) = stage.books.ended
        assert (event.outcome, event.status, event.estimated, event.attempts) == (Outcome.CLIENT_GONE, 200, False, 1)
        assert event.usage.total_tokens == USED
        assert event.cost_pico_usd > 0
        (record,) = stage.books.records
        assert (record.outcome, record.cost_pico_usd) == (Outcome.CLIENT_GONE, event.cost_pico_usd)
        assert record.duration_ms >= 5_000
        assert await stage.charged() == (1, USED)
        assert not stage.services.flights.draining
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [*PLAIN, *STREAMS])
def test_without_the_setting_upstream_is_stopped(body):
    async def play():
        stage = Stage(paced(stream("a", "b", "c")) if body.get("stream") else answer_after(5))
        asked = await left(stage, body, 2.5)
        await stage.all()
        assert (stage.upstream.running, stage.upstream.cut) == (0, 1)
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated) == (Outcome.CLIENT_GONE, True)
        assert await stage.charged() == (1, reserved(asked))
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("form", [0, 1], ids=["plain", "stream"])
def test_what_was_drained_is_in_the_cache(form):
    async def play():
        stage = draining(paced(stream("so ", "deep")) if form else answer_after(5))
        body = STREAMS[0] if form else SHARED
        await left(stage, body, 2.5)
        await stage.all()
        again = stage.ask(body)
        await stage.all()
        assert again.headers["Cache-Status"].startswith("tollgate; hit")
        assert len(stage.upstream.requests) == 1
        assert [event.outcome for event in stage.books.ended] == [Outcome.CLIENT_GONE, Outcome.CACHED]
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", STREAMS, ids=NAMES)
@pytest.mark.parametrize("drained", [True, False], ids=["drain", "cancel"])
def test_leaving_at_any_instant_of_a_stream(body, drained):
    events = stream("one ", "two ", "three")

    async def play():
        seen = set()
        for half_ms, turns in itertools.product(range(40), (0, 1, 3)):
            stage = Stage(paced(events, 0.002, before=[0.004]), max_draining=int(drained))
            asked = stage.ask(body)
            await asyncio.sleep(half_ms / 2_000)
            for _ in range(turns):
                await asyncio.sleep(0)
            was_cut = asked.task.cancel()
            await stage.all()
            stage.ties_out()
            assert len(stage.services.flights.draining) == 0
            if not stage.books.begun:
                assert await stage.charged() == (0, 0)
                continue
            (event,) = stage.books.ended
            requests, tokens = await stage.charged()
            assert requests == 1
            seen.add((event.outcome, event.estimated))
            if drained and event.attempts:
                assert (event.usage.total_tokens, event.estimated, stage.upstream.cut) == (USED, False, 0)
                assert tokens == USED
            elif event.outcome is Outcome.CLIENT_GONE and event.estimated:
                assert was_cut
                assert tokens == reserved(asked)
            else:
                assert tokens == event.usage.total_tokens
        gone = Outcome.CLIENT_GONE
        assert {(gone, not drained), (Outcome.OK, False)} <= seen

    on_stage(play)


def test_no_more_than_so_many_are_drained_at_once():
    async def play():
        stage = draining(answer_after(10), most=2)
        for number in range(3):
            await left(stage, chat(temperature=1, seed=number), 1)
        assert stage.given_up == ["full"]
        assert (stage.upstream.running, stage.upstream.cut) == (2, 1)
        assert [event.estimated for event in stage.books.ended] == [True]
        await stage.all()
        assert [event.estimated for event in stage.books.ended] == [True, False, False]
        assert {event.outcome for event in stage.books.ended} == {Outcome.CLIENT_GONE}
        await left(stage, chat(temperature=1, seed=9), 1)
        await stage.all()
        assert stage.upstream.cut == 1, "there is room again"
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [*PLAIN, *STREAMS])
def test_a_call_is_drained_until_the_deadline_of_the_whole(body):
    async def play():
        slow = paced(stream(*"abcdefgh"), 10) if body.get("stream") else Play([30.0, plain()], before=[5.0])
        stage = draining(slow)
        object.__setattr__(stage.services.policy, "retry", RetryPolicy(max_attempts=1, total_deadline_ms=20_000))
        asked = await left(stage, body, 6)
        began = asyncio.get_running_loop().time()
        await stage.all()
        assert asyncio.get_running_loop().time() - began == pytest.approx(14)
        (event,) = stage.books.ended
        assert event.outcome is Outcome.CLIENT_GONE
        assert event.estimated
        assert (stage.upstream.running, stage.upstream.cut) == (0, 1)
        if body.get("stream"):
            assert stage.given_up == ["deadline"]
            assert await stage.charged() == (1, reserved(asked))
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", STREAMS, ids=NAMES)
def test_one_that_has_lasted_longer_than_the_deadline_is_stopped_at_once(body):
    async def play():
        stage = draining(paced(stream(*"abcdefgh"), 10))
        object.__setattr__(stage.services.policy, "retry", RetryPolicy(max_attempts=1, total_deadline_ms=20_000))
        await left(stage, body, 45)
        assert stage.given_up == ["deadline"]
        assert len(stage.books.records) == 1
        await stage.all()
        assert stage.upstream.cut == 1
        stage.ties_out()

    on_stage(play)


def test_the_deadline_holds_for_who_has_joined_as_soon_as_it_leaves():
    async def play():
        stage = draining(paced(stream(*"abcdefgh"), 10))
        object.__setattr__(stage.services.policy, "retry", RetryPolicy(max_attempts=1, total_deadline_ms=20_000))
        await left(stage, STREAMS[0], 6)
        other = stage.ask(STREAMS[0])
        await asyncio.sleep(30)
        assert (stage.given_up, stage.upstream.cut) == ([], 0), "somebody listens"
        await other.leave()
        assert stage.given_up == ["deadline"]
        await stage.all()
        assert stage.upstream.cut == 1
        assert [record.outcome for record in stage.books.records] == [Outcome.CLIENT_GONE] * 2
        stage.ties_out()

    on_stage(play)


def test_what_a_request_waited_for_its_turn_is_not_held_against_it():
    async def play():
        stage = draining(paced(stream("a", "b"), 10))
        object.__setattr__(stage.services.policy, "retry", RetryPolicy(max_attempts=1, total_deadline_ms=20_000))
        asked = stage.ask(STREAMS[1])
        await asyncio.sleep(6)
        asked.exchange.queued_ns = 60 * 10**9
        await asked.leave()
        await stage.all()
        assert stage.given_up == []
        (event,) = stage.books.ended
        assert event.usage.total_tokens == USED
        stage.ties_out()

    on_stage(play)


def test_nothing_is_kept_for_later_of_one_that_was_drained_in_time():
    async def play():
        stage = draining(answer_after(5))
        await left(stage, ALONE, 1)
        (flight,) = stage.services.flights.draining
        await stage.all()
        assert flight.deadline.cancelled()
        await asyncio.sleep(1_000)
        assert stage.given_up == []
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("form", [0, 1], ids=["plain", "stream"])
def test_who_asks_the_same_meanwhile_hears_it_from_its_beginning(form):
    async def play():
        stage = draining(paced(stream("so ", "deep"), 2) if form else answer_after(10))
        body = STREAMS[0] if form else SHARED
        await left(stage, body, 5)
        other = stage.ask(body)
        await stage.all()
        assert len(stage.upstream.requests) == 1
        text = b'"so "' in other.body and b'"deep"' in other.body if form else other.body == plain()
        assert text
        # As where others listened all the while: it was whole for somebody.
        assert [event.outcome for event in stage.books.ended] == [Outcome.OK, Outcome.CACHED]
        assert await stage.charged() == (2, USED)
        stage.ties_out()

    on_stage(play)


def test_who_joins_one_that_is_drained_may_leave_it_as_well():
    async def play():
        stage = draining(paced(stream(*"abcdef"), 2), most=1)
        await left(stage, STREAMS[0], 5)
        await left(stage, STREAMS[0], 3)
        (flight,) = stage.services.flights.draining
        assert flight.leader.drained
        await stage.all()
        assert stage.given_up == []
        assert len(stage.upstream.requests) == 1
        paid, *_ = stage.books.ended
        assert (paid.outcome, paid.usage.total_tokens, paid.estimated) == (Outcome.CLIENT_GONE, USED, False)
        assert [record.outcome for record in stage.books.records] == [Outcome.CLIENT_GONE] * 2
        assert await stage.charged() == (2, USED)
        stage.ties_out()

    on_stage(play)


def test_the_last_of_several_lets_it_drain():
    async def play():
        stage = draining(paced(stream(*"abcdef"), 2))
        asked = [stage.ask(STREAMS[0]) for _ in range(3)]
        for each in asked:
            await asyncio.sleep(2.5)
            await each.leave()
        assert [record.cache for record in stage.books.records] == [CacheResult.COLLAPSED] * 2
        await stage.all()
        assert stage.upstream.cut == 0
        assert await stage.charged() == (3, USED)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [SHARED, ALONE], ids=NAMES)
@pytest.mark.parametrize("status", [400, 500])
def test_an_error_of_upstream_is_nobody_s_and_costs_a_request(body, status):
    async def play():
        error = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": None}}).encode()
        stage = draining(answer_after(5, error, status=status))
        await left(stage, body, 2)
        await stage.all()
        (event,) = stage.books.ended
        assert (event.outcome, event.status, event.usage.total_tokens) == (Outcome.CLIENT_GONE, status, 0)
        assert await stage.charged() == (1, 0)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", STREAMS, ids=NAMES)
def test_a_stream_that_breaks_while_nobody_listens_is_charged_what_came(body):
    async def play():
        broken = [*stream("one", "two")[:3], UpstreamFailure("stage", UpstreamFault.BROKEN)]
        stage = draining(paced(broken))
        await left(stage, body, 1.5)
        await stage.all()
        (event,) = stage.books.ended
        assert (event.outcome, event.status, event.estimated) == (Outcome.CLIENT_GONE, 200, True)
        assert event.usage.output_tokens > 0
        assert await stage.charged() == (1, event.usage.total_tokens), "upstream is known to have stopped"
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [SHARED, ALONE], ids=NAMES)
def test_what_has_not_been_sent_is_not_sent_for_nobody(body):
    async def play():
        stage = draining(answer_after(5))
        gate = asyncio.Event()
        turn = stage.upstream.turn

        async def slow_turn(*args):
            await gate.wait()
            return await turn(*args)

        stage.upstream.turn = slow_turn
        await left(stage, body, 2)
        assert len(stage.books.records) == 1
        gate.set()
        await stage.all()
        assert stage.upstream.requests == []
        (event,) = stage.books.ended
        assert (event.outcome, event.attempts, event.usage.total_tokens) == (Outcome.CLIENT_GONE, 0, 0)
        assert not stage.services.flights.draining
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [SHARED, ALONE], ids=NAMES)
def test_a_fault_of_ours_with_nobody_there_is_counted_and_logged(body, caplog):
    async def play():
        stage = draining(paced(stream("a", "b")))
        asked = stage.ask({**body, "stream": True})
        await asyncio.sleep(1.5)
        asked.exchange.stream._parser = None
        await asked.leave()
        await stage.all()
        (record,) = stage.books.records
        (event,) = stage.books.ended
        assert record.outcome is event.outcome is Outcome.FAILED
        stage.ties_out()

    on_stage(play)
    (logged,) = caplog.records
    assert logged.getMessage().startswith("unexpected AttributeError\n")
    assert "relay" in logged.getMessage()


@pytest.mark.parametrize("most", [0, 5], ids=["cancel", "drain"])
@pytest.mark.parametrize("body", [*PLAIN, *STREAMS])
def test_what_is_cut_when_the_process_has_no_more_time_is_our_doing(body, most):
    async def play():
        stage = draining(paced(stream("a", "b", "c")) if body.get("stream") else answer_after(5), most=most)
        asked = stage.ask(body)
        await asyncio.sleep(2.5)
        stage.services.shutdown.over = True
        await asked.leave()
        await stage.all()
        assert (stage.upstream.running, stage.upstream.cut) == (0, 1)
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated) == (Outcome.UNAVAILABLE, True)
        assert event.status == (200 if body.get("stream") else 503)
        assert [record.outcome for record in stage.books.records] == [Outcome.UNAVAILABLE]
        assert await stage.charged() == (1, reserved(asked)), "upstream may run on"
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [SHARED, ALONE], ids=NAMES)
def test_what_fails_is_not_called_again_for_nobody(body):
    async def play():
        stage = draining(answer_after(5, b"{}", status=503), answer_after(5))
        object.__setattr__(stage.services.policy, "retry", RetryPolicy(max_attempts=5))
        await left(stage, body, 2)
        await stage.all()
        assert len(stage.upstream.requests) == 1
        (event,) = stage.books.ended
        assert (event.outcome, event.status, event.attempts) == (Outcome.CLIENT_GONE, 503, 1)
        assert await stage.charged() == (1, 0)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [SHARED, ALONE], ids=NAMES)
def test_between_two_calls_nothing_is_at_work_and_none_is_made(body):
    async def play():
        stage = draining(answer_after(1, b"{}", status=503), answer_after(5))
        wait = RetryPolicy(max_attempts=5, first_backoff_ms=10**6, max_backoff_ms=10**6, total_deadline_ms=10**8)
        object.__setattr__(stage.services.policy, "retry", wait)
        await left(stage, body, 1.01)
        assert len(stage.books.records) == 1
        await stage.all()
        assert len(stage.upstream.requests) == 1
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated, event.usage.total_tokens) == (Outcome.CLIENT_GONE, False, 0)
        assert await stage.charged() == (1, 0)
        stage.ties_out()

    on_stage(play)
