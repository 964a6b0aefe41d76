"""What is asked for several times at once goes upstream once: on a stage, in virtual time."""

import asyncio
import json

import pytest
from msgspec.structs import replace

from proxy.core.bucket import Scope
from proxy.core.errors import Overloaded, UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.record import CacheResult
from proxy.core.replay import assemble
from proxy.core.tiers import Limits, Schedule
from tests.support.stage import (
    ROOMY,
    LeasedCache,
    LoopClock,
    Play,
    SlowLimiter,
    Stage,
    Upstream,
    chat,
    on_stage,
    plain,
    stream,
)

SSE = "text/event-stream; charset=utf-8"
STREAM = chat(stream=True)
COUNTED = chat(stream=True, stream_options={"include_usage": True})
COLLAPSED = "tollgate; fwd=uri-miss; collapsed"


def slow(body=None, **play):
    """An answer after ten seconds."""
    return Play([body or plain()], before=[10.0], **play)


def streamed(*steps, **play):
    return Play(steps, kind=SSE, **play)


def paced(events, seconds=1.0):
    """A stream with a pause before each event."""
    return streamed(*[step for event in events for step in (seconds, event)])


def told(asked):
    """The completion of an answer, in whatever form it came."""
    if asked.body.startswith(b"{"):
        return json.loads(asked.body)
    *events, done, _ = asked.body.split(b"\n\n")
    assert done == b"data: [DONE]"
    return assemble([json.loads(event.removeprefix(b"data: ")) for event in events])


def outcomes(stage):
    return [event.outcome for event in stage.books.ended]


def test_a_hundred_that_ask_the_same_are_one_call():
    async def play():
        stage = Stage(slow())
        for _ in range(100):
            stage.ask()
        leader, *followers = await stage.all()
        assert len(stage.upstream.requests) == 1
        assert {asked.body for asked in stage.asked} == {plain()}
        assert await stage.charged() == (100, 8)
        paid, *saved = stage.books.ended
        assert (paid.outcome, paid.event_id, paid.attempts) == (Outcome.OK, leader.exchange.event_id, 1)
        assert paid.cost_pico_usd > 0
        assert len(saved) == 99
        for event in saved:
            assert (event.outcome, event.cost_pico_usd, event.saved_pico_usd) == (
                Outcome.CACHED, 0, paid.cost_pico_usd,
            )  # fmt: skip
            assert (event.usage, event.attempts, event.upstream, event.status) == (paid.usage, 0, "", 200)
        assert leader.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
        assert {asked.headers["Cache-Status"] for asked in followers} == {COLLAPSED}
        # Each of them is told where the limits stood when it was admitted.
        left = [int(asked.headers["x-ratelimit-remaining-requests"]) for asked in stage.asked]
        assert left == list(range(999_999, 999_899, -1))
        assert "x-upstream-request-id" in leader.headers
        assert "x-upstream-request-id" not in followers[0].headers
        results = [record.cache for record in stage.books.records]
        assert (results.count(CacheResult.MISS), results.count(CacheResult.COLLAPSED)) == (1, 99)
        assert {record.upstream_ms for record in stage.books.records} == {10_000}
        stage.ties_out()
        again = stage.ask()
        await stage.all()
        assert again.headers["Cache-Status"].startswith("tollgate; hit")

    on_stage(play)


@pytest.mark.parametrize("body", [STREAM, COUNTED], ids=["bare", "usage"])
def test_a_follower_has_a_piece_before_upstream_sends_the_next(body):
    async def play():
        events = stream("deep", "er")
        signals = [asyncio.Event() for _ in events]
        stage = Stage(streamed(*[step for pair in zip(signals, events, strict=True) for step in pair]))
        asked = [stage.ask(body) for _ in range(3)]
        seen = b""
        for number, (signal, event) in enumerate(zip(signals, events, strict=True)):
            await asyncio.sleep(1)
            assert {each.client.text for each in asked} == {seen}
            assert all(each.client.head is not None for each in asked), "the head has come at once"
            signal.set()
            await asyncio.sleep(1)
            visible = {each.client.text for each in asked}
            assert len(visible) == 1
            (now,) = visible
            shown = body is COUNTED or b'"choices": [],' not in event
            assert (len(now) > len(seen)) == shown, number
            seen = now
        await stage.all()
        assert all(each.client.closed and not each.client.aborted for each in asked)
        assert len(stage.upstream.requests) == 1
        assert await stage.charged() == (3, 8)
        assert outcomes(stage) == [Outcome.OK, Outcome.CACHED, Outcome.CACHED]
        assert [each.headers["Cache-Status"] for each in asked] == ["tollgate; fwd=uri-miss", COLLAPSED, COLLAPSED]
        assert {record.ttft_ms for record in stage.books.records} == {1_000}
        stage.ties_out()

    on_stage(play)


def test_who_comes_late_hears_it_from_the_beginning():
    async def play():
        stage = Stage(paced(stream("a", "b", "c")))
        first = stage.ask(STREAM)
        await asyncio.sleep(3.5)
        assert b"[DONE]" not in first.client.text
        late = stage.ask(STREAM)
        await asyncio.sleep(0)
        await stage.all()
        assert late.body == first.body
        assert len(stage.upstream.requests) == 1
        stage.ties_out()

    on_stage(play)


def test_the_account_of_a_follower_is_written_before_its_last_piece():
    async def play():
        stage = Stage(paced(stream("a")))
        stage.ask(STREAM)
        gate = asyncio.Event()
        held = stage.ask(STREAM, gate=gate)
        await asyncio.sleep(60)
        assert held.client.pieces == []
        assert not held.exchange.settled, "what it writes is not the end"
        gate.set()
        await stage.all()
        assert held.exchange.settled

        settled_at_done = []
        second = Stage(paced(stream("a")))
        second.ask(STREAM)
        follower = second.ask(STREAM)
        write = follower.client.write

        async def watch(data):
            if b"[DONE]" in data:
                settled_at_done.append(follower.exchange.settled)
            await write(data)

        follower.client.write = watch
        await second.all()
        assert settled_at_done == [True]

    on_stage(play)


@pytest.mark.parametrize("body", [chat(), STREAM], ids=["plain", "stream"])
def test_the_first_may_leave(body):
    async def play():
        stage = Stage(paced(stream("a", "b"), 3) if body is STREAM else slow())
        leader, other = stage.ask(body), stage.ask(body)
        await asyncio.sleep(5)
        await leader.leave()
        assert stage.books.records == [], "its call goes on"
        assert stage.books.in_flight == 2
        await stage.all()
        assert told(other)["choices"][0]["message"]["content"] in {"deep", "ab"}
        assert len(stage.upstream.requests) == 1
        assert stage.upstream.cut == 0
        assert outcomes(stage) == [Outcome.OK, Outcome.CACHED]
        assert await stage.charged() == (2, 8)
        by_id = {record.request_id: record for record in stage.books.records}
        assert by_id[leader.exchange.request_id].outcome is Outcome.OK
        assert by_id[leader.exchange.request_id].cost_pico_usd > 0
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("leaver", [0, 1])
def test_when_nobody_listens_upstream_is_stopped(leaver):
    async def play():
        stage = Stage(paced(stream("a", "b", "c"), 10))
        asked = [stage.ask(STREAM), stage.ask(STREAM)]
        await asyncio.sleep(25)
        await asked[leaver].leave()
        assert stage.upstream.running == 1
        await asked[1 - leaver].leave()
        assert outcomes(stage) == [Outcome.CLIENT_GONE]
        await stage.all()
        assert (stage.upstream.running, stage.upstream.cut) == (0, 1)
        (event,) = stage.books.ended
        assert event.event_id == asked[0].exchange.event_id
        assert (event.status, event.estimated, event.attempts) == (200, True, 1)
        requests, tokens = await stage.charged()
        assert (requests, tokens) == (2, asked[0].exchange.admitted.reservation.cost.tokens)
        assert [record.outcome for record in stage.books.records] == [Outcome.CLIENT_GONE] * 2
        assert {record.status for record in stage.books.records} == {200}
        stage.ties_out()
        # Nothing is left of it for who asks next.
        stage.upstream.plays = [streamed(*stream("new"))]
        assert (await stage.ask(STREAM).task).status == 200
        assert len(stage.upstream.requests) == 2

    on_stage(play)


def test_one_that_leaves_before_anything_came_has_spent_a_request():
    async def play():
        stage = Stage(slow())
        leader, follower = stage.ask(), stage.ask()
        await asyncio.sleep(1)
        await follower.leave()
        assert await stage.charged() == (2, leader.exchange.admitted.reservation.cost.tokens)
        (record,) = stage.books.records
        assert (record.outcome, record.status, record.cache) == (Outcome.CLIENT_GONE, 499, CacheResult.COLLAPSED)
        await stage.all()
        assert outcomes(stage) == [Outcome.OK]
        stage.ties_out()

    on_stage(play)


def test_a_leader_that_leaves_as_its_call_begins_leaves_nothing():
    async def play():
        stage = Stage(slow())
        only = stage.ask()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await only.leave()
        await stage.all()
        assert stage.upstream.running == 0
        assert await stage.charged() in {(0, 0), (1, only.exchange.admitted.reservation.cost.tokens)}
        stage.ties_out()

    on_stage(play)


def test_a_call_that_everybody_left_before_it_began_is_not_made():
    async def play():
        stage = Stage(slow())
        started = []
        object.__setattr__(stage.services, "spawn", started.append)
        only = stage.ask()
        await asyncio.sleep(1)
        await only.leave()
        for call in started:
            stage.tasks(call)
        await stage.all()
        assert stage.upstream.requests == []
        assert await stage.charged() == (0, 0)
        stage.ties_out()

    on_stage(play)


def test_a_leader_that_is_refused_is_followed_by_one_that_is_not():
    async def play():
        stage = Stage(slow())
        stage.limiter.reserve_seconds = 0.5
        small = Limits(tokens_per_minute=1, token_capacity=10)
        stage.doorman.admit("growth/small", key_limits=small)
        stage.doorman.admit("growth/other")
        large = chat(max_tokens=100)
        refused = stage.ask(large, by="growth/small")
        await asyncio.sleep(0.1)
        others = [stage.ask(large, by="growth/other") for _ in range(5)]
        await stage.all()
        assert refused.status == 429
        assert [asked.status for asked in others] == [200] * 5
        assert len(stage.upstream.requests) == 1
        assert outcomes(stage) == [Outcome.OK] + [Outcome.CACHED] * 4
        assert stage.books.ended[0].key_id == "growth/other"
        assert await stage.charged() == (5, 8)
        stage.ties_out()

    on_stage(play)


def test_a_leader_that_leaves_before_it_is_admitted_is_followed_by_another():
    async def play():
        stage = Stage(slow())
        stage.limiter.reserve_seconds = 0.5
        leader = stage.ask()
        await asyncio.sleep(0.1)
        others = [stage.ask() for _ in range(3)]
        await asyncio.sleep(0.1)
        await leader.leave()
        await others[0].leave()
        await stage.all()
        assert [asked.status for asked in others[1:]] == [200, 200]
        assert outcomes(stage) == [Outcome.OK, Outcome.CACHED]
        stage.ties_out()

    on_stage(play)


def test_a_follower_may_be_refused_alone():
    async def play():
        stage = Stage(slow())
        stage.doorman.admit("growth/none", key_limits=Limits(requests_per_minute=1, request_capacity=1))
        leader = stage.ask()
        await asyncio.sleep(1)
        one, other = stage.ask(by="growth/none"), stage.ask(by="growth/none")
        await asyncio.sleep(1)
        await leader.leave()
        await stage.all()
        assert [one.status, other.status] == [200, 429]
        assert [record.outcome for record in stage.books.records].count(Outcome.LIMITED) == 1
        (limited,) = [record for record in stage.books.records if record.outcome is Outcome.LIMITED]
        assert limited.cache is CacheResult.MISS
        stage.ties_out()

    on_stage(play)


def test_everybody_may_be_refused_one_by_one():
    async def play():
        stage = Stage(slow())
        stage.limiter.reserve_seconds = 0.1
        stage.doorman.admit("poor", limits=Limits(tokens_per_minute=1, token_capacity=10))
        for _ in range(10):
            stage.ask(chat(max_tokens=100), by="poor")
        await stage.all()
        assert [asked.status for asked in stage.asked] == [429] * 10
        assert stage.upstream.requests == []
        assert await stage.charged("poor") == (0, 0)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
def test_what_upstream_says_in_the_end_is_said_to_all(status):
    async def play():
        body = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": None}}).encode()
        stage = Stage(slow(body, status=status))
        asked = [stage.ask(), stage.ask(), stage.ask(STREAM if status >= 429 else None)]
        await stage.all()
        assert [each.status for each in asked] == [status] * 3
        assert {each.body for each in asked} == {body}
        assert [each.headers["Cache-Status"] for each in asked] == ["tollgate; fwd=uri-miss", COLLAPSED, COLLAPSED]
        assert len({each.headers["x-ratelimit-remaining-requests"] for each in asked}) == 3
        assert outcomes(stage) == [Outcome.UPSTREAM_ERROR]
        assert [record.outcome for record in stage.books.records] == [Outcome.UPSTREAM_ERROR] * 3
        assert await stage.charged() == (3, 0)
        stage.ties_out()

    on_stage(play)


def test_what_upstream_has_against_one_request_is_not_held_against_another():
    async def play():
        body = b'{"error": {"message": "bad metadata"}}'
        stage = Stage(slow(body, status=400), slow())
        bad = stage.ask(chat(metadata={"a": "x" * 1_000}))
        good = [stage.ask() for _ in range(3)]
        await stage.all()
        assert bad.status == 400
        assert [each.status for each in good] == [200] * 3
        assert len(stage.upstream.requests) == 2
        assert outcomes(stage) == [Outcome.UPSTREAM_ERROR, Outcome.OK, Outcome.CACHED, Outcome.CACHED]
        assert good[0].headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored; collapsed=?0"
        assert await stage.charged() == (4, 8)
        stage.ties_out()

    on_stage(play)


def test_an_upstream_that_cannot_be_reached_cannot_be_reached_for_all():
    async def play():
        stage = Stage(Play([], before=[10.0, UpstreamFailure("stage", UpstreamFault.UNREACHABLE)]))
        for _ in range(20):
            stage.ask()
        stage.ask(STREAM)
        await stage.all()
        assert {asked.status for asked in stage.asked} == {502}
        assert len(stage.upstream.requests) == 1
        assert outcomes(stage) == [Outcome.UPSTREAM_ERROR]
        assert await stage.charged() == (21, 0)
        stage.ties_out()

    on_stage(play)


def test_what_is_ours_to_blame_costs_nobody_anything():
    async def play():
        stage = Stage(slow())

        def full(_):
            raise Overloaded("the spool is full")

        stage.books.begin = full
        stage.doorman.admit("growth/one", max_parallel=9)
        for _ in range(3):
            stage.ask(by="growth/one")
        await stage.all()
        assert [asked.status for asked in stage.asked] == [503] * 3
        assert await stage.charged() == (0, 0)
        stage.ties_out()

    on_stage(play)


def test_a_stream_that_breaks_breaks_for_all_who_hear_it_and_for_nobody_else():
    async def play():
        broken = streamed(10.0, stream("a")[0], 10.0, UpstreamFailure("stage", UpstreamFault.BROKEN))
        stage = Stage(broken, slow())
        hearing = [stage.ask(STREAM), stage.ask(STREAM)]
        waiting = [stage.ask(), stage.ask(), stage.ask()]
        await stage.all()
        assert all(asked.client.aborted and not asked.client.closed for asked in hearing)
        assert len({asked.body for asked in hearing}) == 1
        assert b'"code":"upstream_broken"' in hearing[1].body
        assert [asked.status for asked in waiting] == [200] * 3
        assert len(stage.upstream.requests) == 2, "one of those who waited, not each of them"
        assert outcomes(stage) == [Outcome.UPSTREAM_ERROR, Outcome.OK, Outcome.CACHED, Outcome.CACHED]
        requests, tokens = await stage.charged()
        assert requests == 5
        assert tokens == 8 + stage.books.ended[0].usage.total_tokens
        assert [record.outcome for record in stage.books.records].count(Outcome.UPSTREAM_ERROR) == 2
        stage.ties_out()

    on_stage(play)


def test_one_that_has_not_begun_to_hear_a_broken_stream_asks_again():
    async def play():
        broken = streamed(stream("a")[0], UpstreamFailure("stage", UpstreamFault.BROKEN), before=[10.0])
        stage = Stage(broken, streamed(*stream("whole"), before=[10.0]))
        leader = stage.ask(STREAM)
        await asyncio.sleep(9.9)
        stage.limiter.reserve_seconds = 1
        late = stage.ask(STREAM)
        await stage.all()
        assert leader.client.aborted
        assert told(late)["choices"][0]["message"]["content"] == "whole"
        assert len(stage.upstream.requests) == 2
        assert (await stage.charged())[0] == 2
        stage.ties_out()

    on_stage(play)


def test_an_upstream_that_always_breaks_is_not_asked_for_ever():
    async def play():
        stage = Stage(streamed(10.0, stream("a")[0], UpstreamFailure("stage", UpstreamFault.BROKEN)))
        waiting = [stage.ask(STREAM)]
        waiting += [stage.ask(chat(stream=True, stream_options={"include_usage": True})) for _ in range(10)]
        waiting += [stage.ask() for _ in range(10)]
        await stage.all()
        # What is no stream is broken all the same: upstream gives a plain request half an answer.
        assert len(stage.upstream.requests) <= 4
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("reason", ["content_filter", "stop"])
def test_an_answer_that_may_not_be_kept_is_heard_by_those_who_want_it_so(reason):
    """A filtered one, and one that is larger than an entry may be."""

    async def play():
        words = ["x" * 300] if reason == "stop" else ["a"]
        policy = {"cache_entry_max_bytes": 300}
        first = paced(stream(*words, reason=reason))
        second = slow(plain(*words, reason=reason))
        stage = Stage(first, second, paced(stream(*words, reason=reason)), **policy)
        bare, plains, counted = [[stage.ask(body) for _ in range(3)] for body in (STREAM, chat(), COUNTED)]
        await stage.all()
        assert {asked.status for asked in stage.asked} == {200}
        assert len(stage.upstream.requests) == 3, "one for each form"
        for alike in (bare, plains, counted):
            assert len({asked.body for asked in alike}) == 1
        assert outcomes(stage).count(Outcome.OK) == 3
        assert outcomes(stage).count(Outcome.CACHED) == 6
        assert await stage.charged() == (9, 24)
        assert not any("stored" in asked.headers["Cache-Status"] for asked in stage.asked)
        fourth = stage.ask(COUNTED)
        await stage.all()
        assert fourth.headers["Cache-Status"] == "tollgate; fwd=uri-miss"
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("first", [chat(), STREAM, COUNTED], ids=["plain", "bare", "usage"])
def test_who_wants_another_form_is_told_at_the_end(first):
    async def play():
        answer = slow() if first == chat() else paced(stream("de", "ep"))
        stage = Stage(answer)
        asked = [stage.ask(first), *[stage.ask(body) for body in (chat(), STREAM, COUNTED) for _ in range(2)]]
        await stage.all()
        assert len(stage.upstream.requests) == 1
        contents = {told(each)["choices"][0]["message"]["content"] for each in asked}
        assert contents == {"deep"}
        for each in asked:
            streams = json.loads(each.client.body).get("stream", False)
            assert each.headers["Content-Type"].startswith(SSE if streams else "application/json")
            counts = json.loads(each.client.body).get("stream_options") is not None
            assert (b'"usage"' in each.body) == (counts or not streams)
        assert [each.headers["Cache-Status"] for each in asked[1:]] == [COLLAPSED] * 6
        assert await stage.charged() == (7, 8)
        assert outcomes(stage) == [Outcome.OK] + [Outcome.CACHED] * 6
        assert len({event.saved_pico_usd for event in stage.books.ended[1:]}) == 1
        stage.ties_out()

    on_stage(play)


def test_a_slow_follower_holds_up_nobody():
    async def play():
        stage = Stage(paced(stream("a", "b", "c")))
        leader, slow_one = stage.ask(STREAM), stage.ask(STREAM, pace_seconds=600)
        await leader.task
        assert leader.client.closed
        assert len(slow_one.client.pieces) <= 1
        await stage.all()
        assert slow_one.body == leader.body
        assert slow_one.client.closed
        stage.ties_out()

    on_stage(play)


def test_a_leader_that_does_not_read_holds_up_nobody():
    async def play():
        stage = Stage(streamed(*stream(*["x" * 10_000] * 100), before=[1.0]))
        never = asyncio.Event()
        leader = stage.ask(STREAM, gate=never)
        others = [stage.ask(STREAM) for _ in range(2)]
        await asyncio.wait([asked.task for asked in others])
        assert all(asked.client.closed for asked in others)
        assert leader.client.pieces == []
        never.set()
        await stage.all()
        assert leader.body == others[0].body
        stage.ties_out()

    on_stage(play)


def test_upstream_waits_while_nobody_reads():
    async def play():
        sent = 0

        def pour():
            nonlocal sent
            piece = stream("x" * 10_000)[1]
            for _ in range(1_000):
                sent += len(piece)
                yield piece
            yield from stream("end")[1:]

        class Pouring(Play):
            pass

        play_ = Pouring(pour(), kind=SSE)
        stage = Stage(play_)
        gate = asyncio.Event()
        asked = [stage.ask(STREAM, gate=gate), stage.ask(STREAM, gate=gate)]
        await asyncio.sleep(60)
        assert 0 < sent < 600_000
        (flight,) = stage.services.flights._under_way.values()
        assert flight.held_bytes < 600_000
        gate.set()
        await stage.all()
        assert {len(each.body) > 10_000_000 for each in asked} == {True}
        assert asked[0].body == asked[1].body
        stage.ties_out()

    on_stage(play)


def test_teams_share_nothing_and_the_keys_of_one_all():
    async def play():
        stage = Stage(slow())
        for name in ("growth/a", "growth/b", "sales"):
            stage.doorman.admit(name)
        for name in ("growth/a", "growth/b", "sales"):
            stage.ask(by=name)
        await stage.all()
        assert len(stage.upstream.requests) == 2
        assert {(event.key_id, event.outcome) for event in stage.books.ended} == {
            ("growth/a", Outcome.OK), ("growth/b", Outcome.CACHED), ("sales", Outcome.OK),
        }  # fmt: skip
        assert (await stage.charged(), await stage.charged("sales")) == ((2, 8), (1, 8))
        stage.ties_out()

    on_stage(play)


def test_a_key_that_may_not_use_the_model_is_given_nothing_of_its_teams_answers():
    async def play():
        stage = Stage(slow())
        for name in ("growth/barred", "growth/revoked"):
            stage.doorman.admit(name)
        barred = stage.doorman.principals["growth/barred"]
        stage.doorman.principals["growth/barred"] = replace(barred, key=replace(barred.key, models=frozenset({"o3"})))
        leader = stage.ask()
        follower = stage.ask(by="growth/revoked")
        await asyncio.sleep(1)
        del stage.doorman.principals["growth/revoked"]
        early = [stage.ask(by=name) for name in ("growth/barred", "growth/revoked")]
        await stage.all()
        late = [stage.ask(by=name) for name in ("growth/barred", "growth/revoked")]
        await stage.all()
        assert (leader.status, follower.status) == (200, 200), "what was asked for in time is answered"
        assert [each.status for each in early + late] == [404, 401] * 2
        assert all(b"deep" not in each.body for each in early + late)
        assert await stage.charged() == (2, 8)
        stage.ties_out()

    on_stage(play)


def test_what_is_not_to_be_kept_is_not_shared():
    async def play():
        stage = Stage(slow())
        for _ in range(3):
            stage.ask(chat(temperature=1))
            stage.ask(headers={"Cache-Control": "no-store"})
        await stage.all()
        assert len(stage.upstream.requests) == 6
        assert outcomes(stage) == [Outcome.OK] * 6
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("directive", ["no-cache", "max-age=0"])
def test_one_that_wants_a_new_answer_takes_none_that_was_begun(directive):
    async def play():
        stage = Stage(slow(plain("old")), slow(plain("new")), slow(plain("newer")))
        first = stage.ask()
        await asyncio.sleep(1)
        fresh = [stage.ask(headers={"Cache-Control": directive}) for _ in range(2)]
        await stage.all()
        contents = [told(asked)["choices"][0]["message"]["content"] for asked in (first, *fresh)]
        assert contents == ["old", "new", "newer"]
        last = stage.ask()
        await stage.all()
        assert told(last)["choices"][0]["message"]["content"] in {"new", "newer"}
        assert len(stage.upstream.requests) == 3
        stage.ties_out()

    on_stage(play)


def test_others_may_follow_one_that_wants_a_new_answer():
    async def play():
        stage = Stage(slow())
        fresh = stage.ask(headers={"Cache-Control": "no-cache"})
        await asyncio.sleep(1)
        other = stage.ask()
        aged = stage.ask(headers={"Cache-Control": "max-age=5"})
        await stage.all()
        assert len(stage.upstream.requests) == 1
        assert fresh.headers["Cache-Status"] == "tollgate; fwd=request; stored; detail=no-cache"
        assert other.headers["Cache-Status"] == aged.headers["Cache-Status"] == COLLAPSED

    on_stage(play)


def test_an_entry_too_old_for_one_is_replaced_and_its_followers_are_told_why():
    async def play():
        stage = Stage(slow(plain("old")), slow(plain("new")))
        stage.ask()
        await stage.all()
        await asyncio.sleep(60)
        young = [stage.ask(headers={"Cache-Control": "max-age=59"}) for _ in range(2)]
        await stage.all()
        assert [asked.headers["Cache-Status"] for asked in young] == [
            "tollgate; fwd=request; stored; detail=max-age", "tollgate; fwd=request; collapsed; detail=max-age",
        ]  # fmt: skip
        assert told(stage.asked[2])["choices"][0]["message"]["content"] == "new"
        assert [record.cache_reason for record in stage.books.records] == ["uri-miss", "max-age", "max-age"]

    on_stage(play)


class LateCache(LeasedCache):
    """Does not answer the first look after `blind` was set."""

    blind = False

    async def get(self, address):
        if self.blind:
            self.blind = False
            return None
        return await super().get(address)


def test_one_that_wants_none_so_old_is_not_given_what_its_leader_found_elsewhere():
    async def play():
        cache = LateCache()
        stage = Stage(Play([plain("old")]), Play([plain("new")]), cache=cache)
        stage.ask()
        await asyncio.sleep(10)
        stage.limiter.reserve_seconds, cache.blind = 0.5, True
        leader = stage.ask()
        await asyncio.sleep(0.1)
        follower = stage.ask(headers={"Cache-Control": "max-age=5"})
        content = stage.ask(headers={"Cache-Control": "max-age=60"})
        await stage.all()
        assert [told(each)["choices"][0]["message"]["content"] for each in (leader, follower, content)] == [
            "old",
            "new",
            "old",
        ]
        assert content.headers["Age"] == "10"
        assert "detail=max-age" in follower.headers["Cache-Status"]
        assert len(stage.upstream.requests) == 2
        stage.ties_out()

    on_stage(play)


def test_only_if_cached_waits_for_nobody():
    async def play():
        stage = Stage(slow())
        stage.ask()
        await asyncio.sleep(1)
        asked = stage.ask(headers={"Cache-Control": "only-if-cached"})
        await asked.task
        assert asked.status == 504
        assert asked.headers["Cache-Status"] == "tollgate; detail=only-if-cached"
        assert asked.headers["x-should-retry"] == "false"
        await stage.all()
        assert await stage.charged() == (1, 8)
        again = stage.ask(headers={"Cache-Control": "only-if-cached"})
        await stage.all()
        assert again.body == plain()
        stage.ties_out()

    on_stage(play)


def test_a_place_is_held_by_all_and_given_back_by_all():
    async def play():
        stage = Stage(slow())
        stage.doorman.admit("growth/three", max_parallel=3)
        asked = [stage.ask(by="growth/three") for _ in range(5)]
        await asyncio.sleep(1)
        assert list(stage.limiter._in_flight.values()) == [3]
        await stage.all()
        assert [each.status for each in asked] == [200, 200, 200, 429, 429]
        stage.ties_out()
        assert (await stage.ask(by="growth/three").task).status == 200

    on_stage(play)


def test_where_hits_count_nothing_neither_do_followers():
    async def play():
        stage = Stage(slow(), hits_cost_requests=0)
        asked = [stage.ask() for _ in range(5)]
        await asyncio.sleep(1)
        await asked[4].leave()
        await stage.all()
        assert await stage.charged() == (1, 8)
        stage.ties_out()

    on_stage(play)


def test_a_shadow_tier_decides_on_each_of_them_as_on_a_hit():
    async def play():
        stage = Stage(slow())
        stage.doorman.admit("growth/shadowed", shadow_tier="roomy")
        asked = [stage.ask(by="growth/shadowed") for _ in range(3)]
        await asyncio.sleep(1)
        used = stage.limiter.used("growth", each_scope("shadow"))
        reserved = asked[0].exchange.admitted.reservation.cost.tokens
        assert (used.requests, used.tokens) == (3, reserved)
        await stage.all()
        assert {each.headers["x-tollgate-shadow"] for each in asked} == {"tier=roomy; ok"}
        used = stage.limiter.used("growth", each_scope("shadow"))
        assert (used.requests, used.tokens) == (3, 8)
        stage.ties_out()

    on_stage(play)


def each_scope(name):
    return Scope(name, Schedule(ROOMY, ROOMY))


def test_a_call_that_is_ended_from_outside_ends_for_all_and_is_charged():
    async def play():
        stage = Stage(slow())
        asked = [stage.ask() for _ in range(3)]
        await asyncio.sleep(5)
        (flight,) = stage.services.flights._under_way.values()
        flight.stop()
        await stage.all()
        assert [each.status for each in asked] == [503] * 3
        (event,) = stage.books.ended
        assert (event.outcome, event.estimated) == (Outcome.UNAVAILABLE, True)
        assert stage.upstream.cut == 1
        stage.ties_out()

    on_stage(play)


def test_a_fault_of_ours_is_everybodys_and_told_as_from_one_place():
    async def play():
        stage = Stage(slow())

        def fall_over(_):
            raise RuntimeError("a fault")

        stage.books.begin = fall_over
        asked = [stage.ask() for _ in range(30)]
        await asyncio.wait([each.task for each in asked])
        errors = {each.task.exception() for each in asked}
        (error,) = errors
        depth, place = 0, error.__traceback__
        while place is not None:
            depth, place = depth + 1, place.tb_next
        assert depth < 20, "it does not grow with those who raise it"
        assert await stage.charged() == (0, 0)
        stage.ties_out()

    on_stage(play)


@pytest.mark.parametrize("body", [chat(), STREAM], ids=["plain", "stream"])
def test_a_long_stream_is_kept_though_its_frames_are_larger_than_an_entry(body):
    async def play():
        events = stream(*["word "] * 500)
        stage = Stage(streamed(*events), cache_entry_max_bytes=10_000)
        assert len(b"".join(events)) > 50_000
        stage.ask(STREAM)
        await stage.all()
        again = stage.ask(body)
        await stage.all()
        assert again.headers["Cache-Status"].startswith("tollgate; hit")
        assert told(again)["choices"][0]["message"]["content"] == "word " * 500

    on_stage(play)


def processes(count, *plays, **policy):
    """Several that share a cache, a limiter and an upstream."""
    cache, limiter, upstream = LeasedCache(), SlowLimiter(LoopClock()), Upstream(plays)
    return [Stage(cache=cache, limiter=limiter, upstream=upstream, **policy) for _ in range(count)], cache


async def all_of(stages):
    for stage in stages:
        await stage.all()
    for stage in stages:
        assert len(stage.services.flights) == 0
        assert stage.books.in_flight == 0
    assert stages[0].cache.held == {}, "every right was given back"


def test_of_several_processes_one_asks():
    async def play():
        stages, _ = processes(3, slow())
        for stage in stages:
            for body in (chat(), chat(), STREAM, COUNTED):
                stage.ask(body)
        await all_of(stages)
        assert len(stages[0].upstream.requests) == 1
        events = [event for stage in stages for event in stage.books.ended]
        assert [event.outcome for event in events].count(Outcome.OK) == 1
        assert [event.outcome for event in events].count(Outcome.CACHED) == 11
        assert await stages[0].charged() == (12, 8)
        told_all = {told(asked)["choices"][0]["message"]["content"] for stage in stages for asked in stage.asked}
        assert told_all == {"deep"}
        elsewhere = stages[1].asked[0]
        assert elsewhere.headers["Cache-Status"] == COLLAPSED
        assert [stage.books.begun != [] for stage in stages] == [True, False, False]

    on_stage(play)


def test_what_another_process_has_just_kept_is_not_asked_for_again():
    async def play():
        stages, cache = processes(2, slow())
        get = cache.get
        stages[0].ask()
        await asyncio.sleep(1)

        async def late(address):
            # The look that missed; by the time the right is asked for, the other has kept its answer.
            found = await get(address)
            if found is None:
                await asyncio.sleep(20)
            return found

        cache.get = late
        stages[1].ask()
        await asyncio.sleep(1)
        cache.get = get
        assert cache.waits == []
        await all_of(stages)
        assert len(stages[0].upstream.requests) == 1
        assert stages[1].asked[0].headers["Cache-Status"] == COLLAPSED

    on_stage(play)


def test_when_the_other_process_lets_go_with_nothing_kept_one_of_the_others_asks():
    async def play():
        stages, _ = processes(3, slow(b'{"error": {}}', status=500), slow())
        for stage in stages:
            stage.ask()
        await all_of(stages)
        assert len(stages[0].upstream.requests) == 2
        assert sorted(stage.asked[0].status for stage in stages) == [200, 200, 500]

    on_stage(play)


def test_the_wait_for_another_process_is_bounded():
    async def play():
        stages, cache = processes(2, Play([plain()], before=[100.0]), cache_fill_wait_ms=30_000)
        for stage in stages:
            stage.ask()
        await asyncio.sleep(31)
        assert len(stages[0].upstream.requests) == 2
        assert cache.waits == [pytest.approx(30, abs=0.1)]
        await all_of(stages)
        first, second = (stage.asked[0] for stage in stages)
        assert first.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
        assert second.headers["Cache-Status"] == "tollgate; fwd=uri-miss", "it has not the right to keep its answer"

    on_stage(play)


def test_one_that_has_waited_for_another_process_in_vain_is_admitted_in_full():
    async def play():
        stages, _ = processes(2, Play([plain()], before=[100.0]), cache_fill_wait_ms=30_000)
        first = stages[0].ask()
        await asyncio.sleep(1)
        second = stages[1].ask()
        await asyncio.sleep(20)
        reserved = first.exchange.admitted.reservation.cost.tokens
        assert await stages[0].charged() == (2, reserved)
        await asyncio.sleep(15)
        assert second.exchange.admitted.reservation.cost == first.exchange.admitted.reservation.cost
        await all_of(stages)
        events = [event for stage in stages for event in stage.books.ended]
        assert [event.outcome for event in events] == [Outcome.OK, Outcome.OK]

    on_stage(play)


def test_one_that_is_refused_after_it_has_waited_for_another_process_is_refused_alone():
    async def play():
        stages, _ = processes(2, Play([plain()], before=[100.0]), cache_fill_wait_ms=30_000)
        large = chat(max_tokens=2_000)
        stages[0].ask(large)
        await asyncio.sleep(1)
        stages[1].doorman.admit("growth/small", key_limits=Limits(tokens_per_minute=100))
        small = stages[1].ask(large, by="growth/small")
        await asyncio.sleep(1)
        follower = stages[1].ask(large)
        await all_of(stages)
        assert small.status == 429
        assert follower.status == 200
        assert len(stages[0].upstream.requests) == 2
        requests, tokens = await stages[0].charged()
        assert requests <= 2, "one that never was sent gave its request back"
        assert tokens <= 2 * stages[0].asked[0].exchange.usage.total_tokens

    on_stage(play)


def test_a_cache_whose_waiting_does_not_work_is_not_asked_in_a_circle():
    async def play():
        stages, cache = processes(2, Play([plain()], before=[100.0]))
        claims = 0
        claim = cache.claim

        async def counted(address):
            nonlocal claims
            claims += 1
            return await claim(address)

        async def at_once(address, timeout_seconds):
            pass

        cache.claim, cache.filled = counted, at_once
        for stage in stages:
            stage.ask()
        await asyncio.sleep(5)
        assert len(stages[0].upstream.requests) == 2
        assert claims <= 10
        await all_of(stages)

    on_stage(play)


def test_one_that_wants_a_new_answer_waits_for_no_process():
    async def play():
        stages, cache = processes(2, slow())
        stages[0].ask()
        await asyncio.sleep(1)
        stages[1].ask(headers={"Cache-Control": "no-cache"})
        await asyncio.sleep(1)
        assert len(stages[0].upstream.requests) == 2
        assert cache.waits == []
        await all_of(stages)

    on_stage(play)


def test_who_leaves_while_waiting_for_another_process_leaves_nothing():
    async def play():
        stages, _ = processes(2, slow())
        first = stages[0].ask()
        await asyncio.sleep(1)
        waiting, follower = stages[1].ask(), stages[1].ask()
        await asyncio.sleep(1)
        reserved = first.exchange.admitted.reservation.cost.tokens
        assert await stages[0].charged() == (3, reserved), "whoever waits, for whomever, holds no tokens"
        await follower.leave()
        await waiting.leave()
        assert stages[1].books.ended == []
        assert await stages[0].charged() == (3, reserved), "their requests are spent"
        await all_of(stages)
        assert len(stages[0].upstream.requests) == 1

    on_stage(play)


def test_what_is_found_elsewhere_in_a_form_that_cannot_be_told_is_asked_for_in_ones_own():
    async def play():
        strange = plain().replace(b'"created"', b'"a member of tomorrow": 1, "created"')
        stages, _ = processes(2, slow(strange), streamed(*stream("deep"), before=[10.0]))
        stages[0].ask()
        await asyncio.sleep(1)
        asked = stages[1].ask(STREAM)
        await all_of(stages)
        assert told_stream(asked) == "deep"
        assert len(stages[0].upstream.requests) == 2
        again = [stages[0].ask(), stages[0].ask(STREAM)]
        await all_of(stages)
        assert again[0].body == strange
        assert [each.headers["Cache-Status"].split(";")[1] for each in again] == [" hit", " hit"]

    on_stage(play)


def told_stream(asked):
    return told(asked)["choices"][0]["message"]["content"]
