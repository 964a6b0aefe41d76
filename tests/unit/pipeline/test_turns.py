"""Requests that wait for limits to have room, in virtual time, on the line they travel."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import structs

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.core.bucket import Cost
from proxy.core.budget import Budget, Period
from proxy.core.errors import InvalidRequest
from proxy.core.fair_queue import QueueRefusal
from proxy.core.retry import RetryPolicy
from proxy.core.tiers import Limits
from proxy.pipeline.turns import MAX_WAIT_HEADER, Turns, parse_max_wait
from tests.support.stage import Asked, LeasedCache, LoopClock, Play, SlowLimiter, Stage, chat, on_stage, plain

SLOW = Limits(requests_per_minute=60, request_capacity=1)
"""One at once, and then one a second."""


@dataclass
class Watch:
    waits: list[float] = field(default_factory=list)
    refusals: Counter[QueueRefusal] = field(default_factory=Counter)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def refused(self, reason: QueueRefusal) -> None:
        self.refusals[reason] += 1


class WaitingStage(Stage):
    def __init__(self, *plays, max_waiting: int = 1_000, longest_wait_ms: int = 60_000, **more) -> None:
        super().__init__(*(plays or (Play([plain()]),)), **more)
        self.watch = Watch()
        self.turns = Turns(
            self.limiter,
            self.clock,
            self.tasks,
            self.watch,
            max_waiting=max_waiting,
            longest_wait_ms=longest_wait_ms,
        )
        self.services = replace(self.services, turns=self.turns)
        self.names: dict[str, float] = {}

    def want(self, name: str, *, by: str = "growth", wait: str | None = "60s", body: dict | None = None) -> Asked:
        """A request that nobody shares, known by its name."""
        messages = [{"role": "user", "content": name}]
        body = {"model": "gpt-4o-mini", "messages": messages, "max_tokens": 1, **(body or {})}
        return self.ask(body, by=by, headers={} if wait is None else {MAX_WAIT_HEADER: wait})

    def sent(self) -> list[str]:
        """Names of what upstream has seen, in that order."""
        return [json.loads(request.body)["messages"][0]["content"] for request in self.upstream.requests]

    async def over(self) -> list[Asked]:
        asked = await self.all()
        assert len(self.turns) == 0
        assert self.turns._costs == {}
        self.ties_out()
        return asked


def now() -> float:
    return asyncio.get_running_loop().time()


def statuses(stage: Stage) -> list[int]:
    return [asked.status for asked in stage.asked]


@pytest.mark.parametrize(
    ("text", "wait_ms"),
    [("20s", 20_000), ("500ms", 500), ("1m30s", 90_000), ("20", 20_000), ("0", 0), ("1.5", 1_500), (" 2s ", 2_000),
     ("0s", 0), ("0.0", 0), ("999999999", 999_999_999_000)],
)  # fmt: skip
def test_a_wait_is_a_duration_or_a_number_of_seconds(text, wait_ms):
    assert parse_max_wait(text) == wait_ms


@pytest.mark.parametrize("text", ["", "soon", "-1", "-5s", "1e3", "inf", "nan", "20 s", "1,5", "5d", "\u0665", "0x10"])
def test_nonsense_is_refused_by_name(text):
    with pytest.raises(InvalidRequest, match=MAX_WAIT_HEADER) as told:
        parse_max_wait(text)
    assert told.value.param == MAX_WAIT_HEADER


@given(st.text(max_size=12))
def test_whatever_is_said_is_a_wait_or_is_refused(text):
    with suppress(InvalidRequest):
        assert parse_max_wait(text) >= 0


def test_nonsense_is_a_400_even_where_there_is_room():
    async def play():
        stage = WaitingStage()
        asked = stage.want("x", wait="a while")
        await stage.over()
        assert asked.status == 400
        assert MAX_WAIT_HEADER.encode() in asked.body
        assert stage.sent() == []

    on_stage(play)


def test_those_who_wait_go_one_by_one_as_the_limit_allows_in_the_order_in_which_they_came():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=60, request_capacity=5))
        names = [f"r{number:02}" for number in range(20)]
        for name in names:
            stage.want(name)
        await asyncio.sleep(0.5)
        for second in range(16):
            assert stage.sent() == names[: 5 + second], "as many as the limit allows, and not one fewer"
            assert len(stage.turns) == 15 - second
            await asyncio.sleep(1)
        asked = await stage.over()
        assert statuses(stage) == [200] * 20
        assert stage.sent() == names
        waited = [each.exchange.queued_ns / 1e9 for each in asked]
        assert waited == pytest.approx([0] * 5 + list(range(1, 16)), abs=0.05)
        assert sorted(stage.watch.waits) == pytest.approx(list(range(1, 16)), abs=0.05)
        assert not stage.watch.refusals
        record = stage.books.records[-1]
        assert record.overhead_ms == pytest.approx(15_000, abs=50)
        assert record.upstream_ms == pytest.approx(0, abs=1)

    on_stage(play)


def test_one_whose_wait_would_be_too_long_is_refused_at_once_and_told_the_truth():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        for number in range(6):
            stage.want(f"r{number}")
        await asyncio.sleep(0.1)
        begun = now()
        short = [stage.want("short", wait=f"{seconds}s") for seconds in (1, 3, 5)]
        fits = stage.want("fits", wait="6s")
        await asyncio.wait([each.task for each in short])
        assert now() == begun, "at once"
        assert [each.status for each in short] == [429] * 3
        told_ms = [int(each.headers["retry-after-ms"]) for each in short]
        # Five wait already, the first of them for 0.9 s more: one more would be through after the sixth second.
        assert told_ms == pytest.approx([5_900] * 3, abs=2)
        assert {each.headers["Retry-After"] for each in short} == {"6"}
        assert short[0].body.startswith(b"Rate limit reached for gpt-4o-mini of team growth on requests per min")
        await fits.task
        assert fits.status == 200
        assert now() - begun == pytest.approx(5.9, abs=0.01), "what was told was the truth"
        await stage.over()
        assert stage.watch.refusals == {QueueRefusal.TOO_LONG: 3}
        assert "short" not in stage.sent()

    on_stage(play)


def test_those_who_come_at_once_count_on_each_other_however_long_the_limiter_takes():
    class Far(MemoryLimiter):
        async def peek(self, *question):
            await asyncio.sleep(0.1)
            return await super().peek(*question)

    async def play():
        stage = WaitingStage(limiter=Far(LoopClock()))
        stage.doorman.admit("growth", limits=SLOW)
        await stage.want("r0").task
        crowd = [stage.want(f"w{number}", wait="3500ms") for number in range(10)]
        await asyncio.sleep(0.2)
        assert [each.task.done() for each in crowd] == [False] * 3 + [True] * 7
        told = [int(each.headers["retry-after-ms"]) for each in crowd[3:]]
        assert told == pytest.approx([4_000 - 100] * 7, abs=5), "behind those three, and nobody else"
        await stage.over()
        assert stage.watch.refusals == {QueueRefusal.TOO_LONG: 7}

    on_stage(play)


def test_tokens_ahead_are_counted_too():
    async def play():
        stage = WaitingStage(Play([plain(tokens=500)]))
        stage.doorman.admit("growth", limits=Limits(tokens_per_minute=600, token_capacity=600))
        body = {"max_tokens": 500}
        stage.want("first", body=body)
        stage.want("second", body=body)  # some forty seconds
        await asyncio.sleep(1)
        small = stage.want("small", body={"max_tokens": 100}, wait="45s")
        await small.task
        assert (now(), small.status) == (1, 429)
        assert 45_000 < int(small.headers["retry-after-ms"]) < 60_000
        assert b"tokens per min" in small.body
        assert [each.status for each in await stage.over()] == [200, 200, 429]

    on_stage(play)


def test_one_that_does_not_wait_is_decided_at_once_whoever_waits():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        for number in range(3):
            stage.want(f"r{number}")
        await asyncio.sleep(0.5)
        refused = stage.want("at once", wait=None)
        await refused.task
        assert (now(), refused.status) == (0.5, 429)
        assert int(refused.headers["retry-after-ms"]) == 500, "as if nobody waited"
        await stage.over()
        assert stage.sent() == ["r0", "r1", "r2"]
        assert stage.turns.has_line("growth") is False

    on_stage(play)


def test_the_header_goes_before_the_key_and_neither_beyond_the_longest():
    async def play():
        stage = WaitingStage(longest_wait_ms=3_500)
        stage.doorman.admit("growth", limits=SLOW)
        principal = stage.doorman.principals["growth"]
        stage.doorman.principals["growth"] = structs.replace(
            principal, key=structs.replace(principal.key, max_wait_ms=2_500)
        )
        stage.want("now", wait=None)
        by_key = [stage.want(f"key{number}", wait=None) for number in range(3)]
        off = stage.want("off", wait="0")
        longer = [stage.want(f"longer{number}", wait="50s") for number in range(3)]
        await asyncio.sleep(0.1)
        assert [each.task.done() for each in by_key] == [False, False, True], "two seconds fit, three do not"
        assert off.status == by_key[2].status == 429
        assert [each.task.done() for each in longer] == [False, True, True]
        await stage.over()
        assert stage.sent() == ["now", "key0", "key1", "longer0"]

    on_stage(play)


def test_who_leaves_is_dropped_at_once_and_nothing_is_sent_or_charged():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        waiting = [stage.want(f"r{number}") for number in range(5)]
        await asyncio.sleep(0.5)
        for index in (1, 3):  # the first of those who wait, and one in their midst
            await waiting[index].leave()
        assert len(stage.turns) == 2
        assert stage.watch.waits == pytest.approx([0.5, 0.5])
        await asyncio.sleep(0.6)
        assert stage.sent() == ["r0", "r2"], "who is next has the turn"
        await asyncio.sleep(1)
        await stage.over()
        assert stage.sent() == ["r0", "r2", "r4"]
        assert [each.exchange.settled for each in waiting] == [True, False, True, False, True]

    on_stage(play)


def test_who_leaves_while_the_limiter_is_asked_is_charged_nothing():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        stage.limiter.reserve_seconds = 0.2
        await stage.want("r0").task
        waiting = [stage.want(f"w{number}") for number in range(2)]
        await asyncio.sleep(1.1)
        assert now() == pytest.approx(1.3), "asked at 1.2, to be answered at 1.4"
        await waiting[0].leave()
        await waiting[1].task
        assert waiting[1].status == 200
        assert now() == pytest.approx(1.6, abs=0.11), "what the one that left was given has come back"
        await stage.over()
        assert stage.sent() == ["r0", "w1"]

    on_stage(play)


def test_who_is_out_of_time_while_the_limiter_is_asked_is_charged_nothing():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        stage.limiter.reserve_seconds = 0.2
        await stage.want("r0").task
        late, other = stage.want("late", wait="900ms"), stage.want("other")
        await late.task
        assert (late.status, now()) == (429, pytest.approx(1.3))
        await other.task
        assert now() == pytest.approx(1.6, abs=0.11)
        await stage.over()
        assert stage.sent() == ["r0", "other"]

    on_stage(play)


def test_when_time_is_up_the_present_wait_is_told():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        stage.want("r0")
        waiting = [stage.want("w0", wait="2500ms"), stage.want("w1", wait="2400ms")]
        await asyncio.sleep(0.999)
        # What is about to be free is taken by others: two seconds' worth of it.
        stage.limiter.charge("growth", stage.asked[0].exchange.admitted.reservation.scopes, Cost(2, 0))
        await asyncio.wait([each.task for each in waiting])
        assert now() == pytest.approx(2.5)
        assert [each.status for each in waiting] == [429, 429]
        first, second = (int(each.headers["retry-after-ms"]) for each in waiting)
        assert first == pytest.approx(500, abs=2)
        assert second == pytest.approx(1_600, abs=2), "behind the first"
        await stage.over()
        assert stage.watch.refusals == {QueueRefusal.DEADLINE: 2}
        assert stage.sent() == ["r0"]

    on_stage(play)


def test_one_that_is_too_large_does_not_wait():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=60, request_capacity=1, tokens_per_minute=100))
        stage.want("r0")
        stage.want("r1")
        await asyncio.sleep(0)
        large = stage.want("large", body={"max_tokens": 500})
        await large.task
        assert (now(), large.status) == (0, 429)
        assert large.body.startswith(b"Request too large")
        assert "retry-after-ms" not in large.headers
        await stage.over()

    on_stage(play)


def test_what_costs_nothing_waits_for_nobody():
    async def play():
        stage = WaitingStage(hits_cost_requests=0)
        stage.doorman.admit("growth", limits=SLOW)
        await stage.ask(chat()).task
        waiting = stage.want("waits")
        await asyncio.sleep(0.5)
        hit = stage.ask(chat(), headers={MAX_WAIT_HEADER: "20s"})
        await hit.task
        assert (hit.status, now()) == (200, 0.5)
        assert "hit" in hit.headers["Cache-Status"]
        assert not waiting.task.done()
        await stage.over()

    on_stage(play)


def test_one_that_makes_room_before_it_knows_its_wait_leaves_nothing_behind():
    async def play():
        class Slow(SlowLimiter):
            async def peek(self, *question):
                await asyncio.sleep(0.3)
                return await super().peek(*question)

        stage = WaitingStage(max_waiting=3, limiter=Slow(LoopClock()))
        for team in ("growth", "sales"):
            stage.doorman.admit(team, limits=SLOW)
        crowd = [stage.want(f"g{number}") for number in range(4)]
        await asyncio.sleep(0.1)
        others = [stage.want(f"s{number}", by="sales") for number in range(2)]
        await stage.over()
        assert stage.watch.refusals == {QueueRefusal.FULL: 1}
        assert sorted(each.status for each in crowd) == [200, 200, 200, 429]
        assert [each.status for each in others] == [200, 200]

    on_stage(play)


def test_a_budget_is_not_waited_for():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", budgets=(Budget(Period.DAY, 1, True),))
        asked = stage.want("dear")
        await asked.task
        assert now() == 0
        assert asked.status in {429, 503}
        await stage.over()
        assert stage.watch.waits == []

    on_stage(play)


def test_a_place_is_waited_for_and_taken_as_soon_as_it_is_free():
    async def play():
        stage = WaitingStage(Play([5.0, plain()]), Play([0.3, plain()]), Play([plain()]))
        stage.doorman.admit("growth", max_parallel=1)
        begun = [stage.want(f"r{number}", wait="10s") for number in range(3)]
        await asyncio.sleep(4.9)
        assert stage.sent() == ["r0"]
        done = [(await asyncio.wait([each.task])) and now() for each in begun]
        assert done == pytest.approx([5.0, 5.3, 5.3], abs=0.001), "not a moment later, though a second is what is told"
        impatient = [stage.want("a", wait="300ms"), stage.want("b", wait="300ms")]
        await asyncio.wait([each.task for each in impatient])
        await stage.over()
        assert statuses(stage)[:3] == [200] * 3

    on_stage(play)


@pytest.mark.parametrize("at_ms", range(50, 1_500, 50))
def test_no_place_that_falls_free_is_slept_through(at_ms):
    """Whenever that is in the course of asking: before it is asked, decided, or heard."""

    class Far(MemoryLimiter):
        async def reserve(self, *question):
            await asyncio.sleep(0.1)
            decision = await super().reserve(*question)
            await asyncio.sleep(0.1)
            return decision

    async def play():
        stage = WaitingStage(Play([at_ms / 1_000, plain()]), Play([plain()]), limiter=Far(LoopClock()))
        stage.doorman.admit("growth", max_parallel=1)
        stage.want("r0")
        await asyncio.sleep(0.15)
        waits = stage.want("r1")
        await waits.task
        free = 0.2 + at_ms / 1_000
        # One question may be on its way already, and the next one takes as long as that.
        assert now() <= max(free, 0.35) + 0.2 + 0.2 + 0.001
        await stage.over()

    on_stage(play)


def test_a_place_that_does_not_fall_free_in_time_is_a_429():
    async def play():
        stage = WaitingStage(Play([50.0, plain()]))
        stage.doorman.admit("growth", max_parallel=1)
        stage.want("r0")
        asked = stage.want("r1", wait="700ms")
        await asked.task
        assert (now(), asked.status) == (0.7, 429)
        assert b"at one time" in asked.body
        await stage.over()

    on_stage(play)


def test_limits_that_are_changed_are_seen_by_who_waits():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=2, request_capacity=1))
        waiting = [stage.want(f"r{number}") for number in range(2)]
        await asyncio.sleep(3.5)
        assert not waiting[1].task.done()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=60, request_capacity=100))
        await waiting[1].task
        assert waiting[1].status == 200
        assert now() <= 4.5, "within a second"
        await stage.over()

    on_stage(play)


def test_a_key_that_ends_or_is_narrowed_while_it_waits_is_not_let_in():
    async def play():
        stage = WaitingStage()
        for key in ("growth/ci", "growth/dev"):
            stage.doorman.admit(key, limits=SLOW)
        await stage.want("first", by="growth/ci").task
        revoked, narrowed = stage.want("revoked", by="growth/ci"), stage.want("narrowed", by="growth/dev")
        await asyncio.sleep(0.5)
        del stage.doorman.principals["growth/ci"]
        principal = stage.doorman.principals["growth/dev"]
        narrow = structs.replace(principal.key, models=frozenset({"gpt-4o"}))
        stage.doorman.principals["growth/dev"] = structs.replace(principal, key=narrow)
        await stage.over()
        assert (revoked.status, narrowed.status) == (401, 404)
        assert stage.sent() == ["first"]

    on_stage(play)


def test_a_key_that_ends_while_its_request_arrives_is_not_let_in():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth/ci")
        slow = stage.want("slow", by="growth/ci", wait=None)
        receive = slow.client.receive

        async def later() -> bytes:
            await asyncio.sleep(20)
            return await receive()

        slow.client.receive = later
        await asyncio.sleep(19)
        del stage.doorman.principals["growth/ci"]
        await stage.over()
        assert slow.status == 401
        assert stage.sent() == []

    on_stage(play)


def test_a_full_queue_is_a_429_at_once_and_no_team_can_fill_it_for_another():
    async def play():
        stage = WaitingStage(max_waiting=4)
        stage.doorman.admit("growth", limits=SLOW)
        stage.doorman.admit("sales", limits=SLOW)
        crowd = [stage.want(f"g{number}") for number in range(7)]
        await asyncio.sleep(0.1)
        assert [each.task.done() for each in crowd] == [True] + [False] * 4 + [True] * 2
        assert [each.status for each in crowd[5:]] == [429] * 2
        one = [stage.want(f"s{number}", by="sales") for number in range(2)]
        await asyncio.sleep(0.1)
        assert crowd[4].status == 429, "the youngest makes room"
        assert int(crowd[4].headers["retry-after-ms"]) == pytest.approx(3_800, abs=110)
        await asyncio.wait([each.task for each in one])
        assert [each.status for each in one] == [200, 200]
        assert now() == pytest.approx(1.1, abs=0.01)
        await stage.over()
        assert statuses(stage)[:4] == [200] * 4
        assert stage.watch.refusals == {QueueRefusal.FULL: 3}

    on_stage(play)


def test_a_crowd_of_one_team_does_not_delay_another():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        stage.doorman.admit("sales", limits=SLOW)
        for number in range(30):
            stage.want(f"g{number}")
        await asyncio.sleep(2.5)
        begun = now()
        one = stage.want("one", by="sales")
        await one.task
        assert (one.status, now()) == (200, begun)
        await stage.over()

    on_stage(play)


def test_at_shutdown_those_who_wait_are_let_go():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=SLOW)
        for number in range(4):
            stage.want(f"r{number}")
        await asyncio.sleep(0.5)
        stage.turns.close()
        late = stage.want("late")
        await stage.over()
        assert now() == 0.5
        assert statuses(stage) == [200] + [503] * 4
        assert late.body.endswith(b"shutting down.")
        assert stage.watch.refusals == {QueueRefusal.SHUTDOWN: 4}

    on_stage(play)


# With those who ask the same.


def test_a_leader_that_waits_leads_those_who_come_meanwhile():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=60, request_capacity=1))
        wait = {MAX_WAIT_HEADER: "20s"}
        stage.want("before")
        await asyncio.sleep(0)
        asked = [stage.ask(chat(), headers=wait) for _ in range(4)]
        await asyncio.sleep(0.5)
        assert stage.sent() == ["before"]
        await stage.over()
        assert statuses(stage) == [200] * 5
        assert len(stage.sent()) == 2, "one call for the four"
        assert asked[0].exchange.queued_ns > 0

    on_stage(play)


def test_a_leader_that_leaves_while_it_waits_leaves_the_lead():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=60, request_capacity=1))
        wait = {MAX_WAIT_HEADER: "20s"}
        stage.want("before")
        await asyncio.sleep(0)
        asked = [stage.ask(chat(), headers=wait) for _ in range(3)]
        await asyncio.sleep(0.5)
        await asked[0].leave()
        assert asked[0].task.cancelled()
        await stage.over()
        assert [each.status for each in asked[1:]] == [200, 200]
        assert len(stage.sent()) == 2

    on_stage(play)


def two_processes(*plays: Play) -> tuple[WaitingStage, WaitingStage]:
    cache, one = LeasedCache(), WaitingStage(*plays)
    limiter, upstream = one.limiter, one.upstream
    return tuple(WaitingStage(cache=cache, limiter=limiter, upstream=upstream) for _ in range(2))


def test_a_leader_that_waits_keeps_no_other_process_from_the_answer():
    async def play():
        waiting, other = two_processes(Play([0.5, plain()]))
        waiting.doorman.admit("growth/slow", key_limits=Limits(requests_per_minute=6, request_capacity=1))
        waiting.want("before", by="growth/slow")
        await asyncio.sleep(1)
        leader = waiting.ask(chat(), by="growth/slow", headers={MAX_WAIT_HEADER: "20s"})
        await asyncio.sleep(1)
        begun = now()
        hurried = other.ask(chat())
        await hurried.task
        assert (hurried.status, now()) == (200, pytest.approx(begun + 0.5, abs=0.05))
        assert hurried.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
        await waiting.all()
        assert leader.status == 200
        assert leader.headers["Cache-Status"] == "tollgate; fwd=uri-miss; collapsed"
        assert len(waiting.upstream.requests) == 2
        assert not waiting.cache.held

    on_stage(play)


def test_a_leader_that_has_waited_keeps_its_answer():
    async def play():
        waiting, other = two_processes(Play([0.5, plain()]))
        waiting.doorman.admit("growth/slow", key_limits=Limits(requests_per_minute=6, request_capacity=1))
        waiting.want("before", by="growth/slow")
        await asyncio.sleep(1)
        leader = waiting.ask(chat(), by="growth/slow", headers={MAX_WAIT_HEADER: "20s"})
        await asyncio.sleep(9.2)
        assert leader.exchange.fill is not None, "it is admitted, and others wait for it"
        follower = other.ask(chat())
        await waiting.all()
        await other.all()
        assert leader.headers["Cache-Status"] == "tollgate; fwd=uri-miss; stored"
        assert follower.headers["Cache-Status"] == "tollgate; fwd=uri-miss; collapsed"
        assert len(waiting.upstream.requests) == 2
        assert not waiting.cache.held

    on_stage(play)


def test_one_that_waited_for_another_process_in_vain_and_then_for_limits_keeps_its_answer():
    async def play():
        one, other = two_processes(
            Play([plain()], before=[60.0]), Play([b"{}"], before=[2.0], status=500), Play([plain()])
        )
        other.doorman.admit("growth/slow", key_limits=Limits(tokens_per_minute=600))
        other.want("long", by="growth/slow", body={"max_tokens": 550})
        await asyncio.sleep(1)
        one.ask(chat(max_tokens=200))
        await asyncio.sleep(1)
        asked = other.ask(chat(max_tokens=200), by="growth/slow", headers={MAX_WAIT_HEADER: "30s"})
        await one.all()
        await asyncio.wait([asked.task])
        assert asked.exchange.queued_ns > 1e9
        assert asked.status == 200
        assert asked.headers["Cache-Status"].endswith("stored")
        await other.all()
        assert not other.cache.held

    on_stage(play)


def test_a_key_that_ends_while_it_waits_for_a_leader_is_not_let_in():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=6, request_capacity=1))
        limits = stage.doorman.principals["growth"].team.limits
        for key in ("growth/ci", "growth/dev"):
            stage.doorman.admit(key, limits=limits)
        stage.want("before")
        await asyncio.sleep(0)
        leader = stage.ask(chat(), headers={MAX_WAIT_HEADER: "60s"})
        await asyncio.sleep(1)
        revoked, stays = (
            stage.ask(chat(), by=by, headers={MAX_WAIT_HEADER: "60s"}) for by in ("growth/ci", "growth/dev")
        )
        await asyncio.sleep(1)
        del stage.doorman.principals["growth/ci"]
        await stage.over()
        assert (leader.status, revoked.status, stays.status) == (200, 401, 200)

    on_stage(play)


def test_who_does_not_wait_is_not_made_to_by_a_leader_that_does():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=6, request_capacity=1))
        stage.want("before")
        await asyncio.sleep(0)
        leader = stage.ask(chat(), headers={MAX_WAIT_HEADER: "20s"})
        await asyncio.sleep(2)
        begun = now()
        hurried = stage.ask(chat())
        await hurried.task
        assert (hurried.status, now()) == (429, begun), "as if nobody else had asked"
        short = stage.ask(chat(), headers={MAX_WAIT_HEADER: "3s"})
        long = stage.ask(chat(), headers={MAX_WAIT_HEADER: "30s"})
        await short.task
        assert short.status == 429
        assert now() == pytest.approx(begun + 3, abs=0.01)
        assert short.exchange.queued_ns == pytest.approx(3e9, abs=1e7)
        assert not leader.task.done()
        await stage.over()
        assert (leader.status, long.status) == (200, 200)
        assert now() < 25
        assert len(stage.sent()) == 2, "those who waited shared an answer"

    on_stage(play)


def test_the_wait_for_a_leader_is_a_part_of_the_wait():
    async def play():
        stage = WaitingStage(Play([plain()]), Play([1.0, plain()]))
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=6, request_capacity=1))
        stage.want("before")
        await asyncio.sleep(0)
        leader = stage.ask(chat(), headers={MAX_WAIT_HEADER: "20s"})
        await asyncio.sleep(2)
        # Eight seconds for the leader, and ten more for a turn of its own: less than two times fifteen.
        follower = stage.ask(chat(), headers={MAX_WAIT_HEADER: "15s"})
        await follower.task
        assert (follower.status, now()) == (429, pytest.approx(10, abs=0.01))
        await stage.over()
        assert leader.status == 200

    on_stage(play)


def test_who_was_in_line_already_when_the_leader_began_to_wait_goes_alone():
    async def play():
        stage = WaitingStage()
        stage.doorman.admit("growth", limits=Limits(requests_per_minute=6, request_capacity=1))
        stage.limiter.reserve_seconds = 0.2
        await stage.want("before").task
        begun = now()
        leader = stage.ask(chat(), headers={MAX_WAIT_HEADER: "20s"})
        await asyncio.sleep(0.1)
        hurried = [stage.ask(chat()) for _ in range(3)]
        patient = stage.ask(chat(), headers={MAX_WAIT_HEADER: "30s"})
        await asyncio.wait([each.task for each in hurried])
        assert [each.status for each in hurried] == [429] * 3
        assert now() - begun < 1, "once they knew"
        await hurried[0].leave()
        await stage.over()
        assert (leader.status, patient.status) == (200, 200)

    on_stage(play)


# The turn upstream.


def test_the_time_in_the_queue_is_neither_upstreams_nor_of_its_deadline():
    settled = []

    class Turn:
        def settle(self, tokens: int) -> None:
            settled.append(tokens)

    async def play():
        stage = WaitingStage(Play([1.0, plain(tokens=5)]))
        stage.services = replace(
            stage.services,
            policy=replace(stage.services.policy, retry=RetryPolicy(max_attempts=1, total_deadline_ms=3_000)),
        )
        asked_for = []

        async def turn(*question):
            *what, on_wait, model = question
            asked_for.append([*what, model])
            on_wait()
            await asyncio.sleep(20)
            return Turn()

        stage.upstream.turn = turn
        asked = stage.want("x", wait=None)
        await stage.over()
        assert asked.status == 200
        assert asked.exchange.queued_ns == 20_000_000_000
        record = stage.books.records[0]
        assert record.upstream_ms == pytest.approx(1_000, abs=1)
        assert record.overhead_ms == pytest.approx(20_000, abs=1)
        exchange = asked.exchange
        reserved = exchange.reserved_input_tokens + exchange.reserved_output_tokens
        assert asked_for == [["growth", 1, reserved, asked.exchange.asked.model]]
        assert settled == [8], "settled with what it has used"

    on_stage(play)


# Whatever happens.


@dataclass(frozen=True)
class Visit:
    at_ms: int
    team: str
    wait_ms: int
    tokens: int
    leaves_ms: int | None


VISITS = st.lists(
    st.builds(
        Visit,
        at_ms=st.integers(0, 40).map(lambda tenth: tenth * 100),
        team=st.sampled_from(["growth", "sales"]),
        wait_ms=st.sampled_from([0, 300, 1_000, 5_000, 30_000]),
        tokens=st.sampled_from([1, 10, 60]),
        leaves_ms=st.one_of(st.none(), st.none(), st.integers(0, 50).map(lambda tenth: tenth * 100 + 1)),
    ),
    min_size=1,
    max_size=25,
)


@given(VISITS, st.sampled_from([0.0, 0.05]), st.sampled_from([2, 1_000]), st.sampled_from([None, 1]))
@settings(max_examples=150, deadline=None)
def test_any_schedule(visits, reserve_seconds, max_waiting, max_parallel):
    limits = Limits(requests_per_minute=60, request_capacity=3, tokens_per_minute=600, token_capacity=100)

    async def play():
        stage = WaitingStage(Play([0.15, plain(tokens=1)]), max_waiting=max_waiting)
        stage.limiter.reserve_seconds = reserve_seconds
        for team in ("growth", "sales"):
            stage.doorman.admit(team, limits=limits, max_parallel=max_parallel)
        ended: dict[int, float] = {}

        async def visit(index: int, each: Visit) -> None:
            await asyncio.sleep(each.at_ms / 1_000)
            wait = f"{each.wait_ms}ms"
            asked = stage.want(str(index), by=each.team, wait=wait, body={"max_tokens": each.tokens})
            bound = None if each.leaves_ms is None else each.leaves_ms / 1_000
            await asyncio.wait([asked.task], timeout=bound)
            if not asked.task.done():
                await asked.leave()
            ended[index] = now()
            if not asked.task.cancelled():
                assert asked.status in {200, 429}
                if asked.status == 429:
                    assert now() - each.at_ms / 1_000 <= each.wait_ms / 1_000 + 4 * reserve_seconds + 0.01
                    assert int(asked.headers["retry-after-ms"]) >= 1

        await asyncio.gather(*(visit(index, each) for index, each in enumerate(visits)))
        asked = await stage.over()
        event(f"waited {min(5, len(stage.watch.waits))}")
        event(f"refusals {sorted(reason.value for reason in stage.watch.refusals)}")
        assert len(asked) == len(visits)
        assert set(stage.limiter._in_flight.values()) <= {0}
        sent = stage.sent()
        assert len(sent) == len(set(sent))
        for team in ("growth", "sales"):
            mine = [int(name) for name in sent if visits[int(name)].team == team]
            assert len(mine) <= 3 + now() + 1
            # First come, first served: of those who waited, and had to.
            queued = [int(name) for name in sent if visits[int(name)].team == team and was_queued(stage, name)]
            came = [visits[index].at_ms for index in queued]
            assert came == sorted(came)

    def was_queued(stage: WaitingStage, name: str) -> bool:
        (asked,) = [each for each in stage.asked if json.loads(each.client.body)["messages"][0]["content"] == name]
        return asked.exchange.queued_ns > 200_000_000

    on_stage(play)
