import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import async_solipsism
import pytest
from async_solipsism.clock import Clock

from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.pacer import MOST_MODELS, Pacer, PacerOptions
from proxy.adapters.upstream_bucket import SharedBucket
from proxy.core.bucket import Cost, Refused
from proxy.core.errors import Overloaded, StoreAway
from proxy.core.fair_queue import Entry, QueueRefusal
from tests.support.stage import LoopClock
from tests.support.tasks import Tasks

TICKS = 0.001
"""Room for the ticks of the virtual clock."""


class Ticking(Clock):
    """A wait shorter than a tick takes a tick, and so do a thousand looks at the clock.

    Else time would stand still for whoever waits for it again and again, as aiolimiter does by a rounding error.
    """

    looks = 0

    def time(self) -> float:
        self.looks += 1
        if self.looks == 1_000:
            self.advance(self.resolution)
        return super().time()

    def advance(self, delta: float) -> None:
        self.looks = 0
        super().advance(max(delta, self.resolution) if delta else 0.0)


def virtual_loop() -> asyncio.AbstractEventLoop:
    loop = async_solipsism.EventLoop()
    loop._selector.clock.__class__ = Ticking  # the loop holds it too
    return loop


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs on a loop whose time passes when nothing is left to do; no pump is left running at the end."""

    async def bounded() -> None:
        async with asyncio.timeout(100_000):
            await test()
            await asyncio.sleep(5)
        assert {task.get_coro().__name__ for task in asyncio.all_tasks()} == {"bounded"}

    def run() -> None:
        with asyncio.Runner(loop_factory=virtual_loop) as runner:
            runner.run(bounded())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@dataclass
class Watch:
    waits: list[float] = field(default_factory=list)
    refusals: Counter[QueueRefusal] = field(default_factory=Counter)

    def waited(self, seconds: float) -> None:
        self.waits.append(seconds)

    def refused(self, reason: QueueRefusal) -> None:
        self.refusals[reason] += 1


def pacer_of(rate: int | None, *, max_waiting=1_000, deadline_seconds=10_000.0, **more) -> Pacer:
    more = {"watch": Watch(), **more}
    return Pacer(PacerOptions(rate, max_waiting, deadline_seconds), LoopClock(), Tasks(), **more)


def bucket_of(rpm: int | None, tpm: int | None, limiter: MemoryLimiter | None = None) -> SharedBucket:
    limiter = MemoryLimiter(LoopClock()) if limiter is None else limiter
    return SharedBucket(limiter, "openai", rpm, tpm)


async def times_of(pacer: Pacer, calls: int) -> list[float]:
    """When each of so many calls, all wanted at once, had its turn; in the order in which they asked."""
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def call() -> float:
        await pacer.turn("a")
        return loop.time() - started

    return await asyncio.gather(*(call() for _ in range(calls)))


class Calls:
    """Calls of several teams, in the order of their turns."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def want(self, team: str, count: int = 1, weight: int = 1, tokens: int = 0) -> None:
        async def call() -> None:
            await self.pacer.turn(team, weight, tokens)
            self.order.append(team)

        self.tasks += [asyncio.ensure_future(call()) for _ in range(count)]

    async def all(self) -> list[str]:
        await asyncio.gather(*self.tasks)
        return self.order


@pytest.mark.parametrize("rate", [1, 7, 30, 60, 90, 3_500])
def test_the_pace_holds_over_every_span(rate: int) -> None:
    @in_virtual_time
    async def run() -> None:
        pacer = pacer_of(rate)
        at = await times_of(pacer, min(200, 3 * rate + 5))
        burst = max(1, rate / 30)  # two seconds' worth, and no less than one call
        for first, start in enumerate(at):
            for last in range(first, len(at)):
                assert last - first + 1 <= burst + rate / 60 * (at[last] - start) + 1 + TICKS
        assert at == sorted(at), "whoever asked first is first"
        # Not slower than asked for, either.
        assert at[-1] <= (len(at) - 1) * 60 / rate + TICKS
        assert pacer.waiting == 0

    run()


@in_virtual_time
async def test_within_the_pace_nobody_waits_and_nothing_is_started() -> None:
    pacer = Pacer(PacerOptions(60, 1, 1), LoopClock(), spawn=lambda _: pytest.fail("a task"))
    loop = asyncio.get_running_loop()
    for _ in range(50):
        before = loop.time()
        await pacer.turn("a", on_wait=lambda: pytest.fail("a wait"))
        assert loop.time() == before
        await asyncio.sleep(1)


@in_virtual_time
async def test_only_so_many_wait() -> None:
    pacer = pacer_of(60, max_waiting=3, deadline_seconds=100)
    calls = [asyncio.ensure_future(pacer.turn("a")) for _ in range(10)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(each, Overloaded) for each in done] == [False] * 5 + [True] * 5, "a burst of two, and three wait"
    assert done[-1].retry_after_ms == 3_000, "by then those who wait have gone"
    assert pacer.watch.refusals == {QueueRefusal.FULL: 5}
    assert pacer.waiting == 0
    await pacer.turn("a")


@in_virtual_time
async def test_a_team_cannot_keep_another_out_of_a_full_queue() -> None:
    pacer = pacer_of(60, max_waiting=10)
    calls = Calls(pacer)
    calls.want("a", 12)
    await asyncio.sleep(0)
    calls.want("b")
    done = await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert [index for index, each in enumerate(done) if isinstance(each, Overloaded)] == [11], (
        "the youngest of the crowd"
    )
    assert calls.order.index("b") <= 4
    assert pacer.watch.refusals == {QueueRefusal.FULL: 1}


@in_virtual_time
async def test_nobody_waits_longer_than_the_deadline() -> None:
    pacer = pacer_of(60, max_waiting=100, deadline_seconds=4.5)
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def call() -> tuple[bool, float]:
        try:
            await pacer.turn("a")
        except Overloaded:
            return False, loop.time() - started
        return True, loop.time() - started

    done = await asyncio.gather(*(call() for _ in range(20)))
    assert [at for admitted, at in done if not admitted] == [4.5] * 14
    assert sum(admitted for admitted, _ in done) == 6
    assert pacer.waiting == 0
    assert pacer.watch.refusals == {QueueRefusal.DEADLINE: 14}
    assert sorted(pacer.watch.waits) == pytest.approx([1, 2, 3, 4, *[4.5] * 14], abs=TICKS)


@in_virtual_time
async def test_one_that_leaves_takes_no_turn_with_it() -> None:
    pacer = pacer_of(60)
    loop = asyncio.get_running_loop()
    await times_of(pacer, 2)
    started = loop.time()
    leaving = [asyncio.ensure_future(pacer.turn("a")) for _ in range(5)]
    await asyncio.sleep(0)
    assert pacer.waiting == 5
    for each in leaving:
        each.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert pacer.waiting == 0
    await pacer.turn("a")
    assert loop.time() - started == pytest.approx(1.0, abs=TICKS)


@in_virtual_time
async def test_one_that_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    limiter = MemoryLimiter(LoopClock())
    bucket = bucket_of(None, 600, limiter)
    pacer = pacer_of(6, bucket=bucket)
    await pacer.turn("a", tokens=10)
    leaving = asyncio.ensure_future(pacer.turn("a", tokens=400))
    loop = asyncio.get_running_loop()
    serve = pacer._whole.queue.serve

    def serve_and_leave(entry: Entry) -> None:
        serve(entry)
        loop.call_soon(leaving.cancel)  # comes before the waiter hears of its turn

    pacer._whole.queue.serve = serve_and_leave
    await asyncio.gather(leaving, return_exceptions=True)
    assert leaving.cancelled(), "the turn was given, and it has left all the same"
    assert loop.time() == pytest.approx(10, abs=TICKS)
    assert limiter.used("upstream:openai", bucket._scopes[0]).tokens == 0
    pacer._whole.queue.serve = serve
    await pacer.turn("b")
    assert loop.time() == pytest.approx(10, abs=TICKS), "the next one has its unit"


@in_virtual_time
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    pacer = pacer_of(60)
    order: list[int] = []

    async def call(number: int) -> None:
        await pacer.turn("a")
        order.append(number)

    async with asyncio.TaskGroup() as calls:
        for number in range(6):
            calls.create_task(call(number))
        await asyncio.sleep(1.0)
        for number in range(6, 9):
            calls.create_task(call(number))
    assert order == list(range(9))


@in_virtual_time
async def test_a_hundred_of_one_team_do_not_hold_up_another() -> None:
    calls = Calls(pacer_of(120))
    calls.want("crowd", 104)
    await asyncio.sleep(5.25)
    assert calls.order == ["crowd"] * 14
    calls.want("one")
    order = await calls.all()
    assert order.index("one") == 14, "next, though the unit was waited for on behalf of another"


@in_virtual_time
async def test_teams_are_served_by_weight() -> None:
    calls = Calls(pacer_of(600))
    calls.want("light", 60)
    await asyncio.sleep(0)
    calls.want("heavy", 60, weight=3)
    await asyncio.sleep(4.05)
    order = calls.order[20:]  # behind the burst
    assert len(order) >= 40
    assert abs(order.count("heavy") - 3 * order.count("light")) <= 3
    await calls.all()


@in_virtual_time
async def test_the_share_follows_how_many_workers_there_are() -> None:
    workers = 4
    pacer = pacer_of(240, workers=lambda: workers)
    calls = Calls(pacer)
    calls.want("a", 400)
    await asyncio.sleep(20.01)
    assert len(calls.order) in {21, 22}, "one a second, and two at once"
    workers = 1
    await asyncio.sleep(10)
    assert 22 + 36 <= len(calls.order) <= 22 + 41, "noticed within a second"
    workers = 8
    await asyncio.sleep(2)
    before = len(calls.order)
    await asyncio.sleep(20)
    assert len(calls.order) - before in {10, 11}
    workers = 1
    await calls.all()


@in_virtual_time
async def test_a_change_of_pace_gives_no_burst() -> None:
    workers = 1
    pacer = pacer_of(600, workers=lambda: workers)
    calls = Calls(pacer)
    calls.want("a", 2_000)
    loop = asyncio.get_running_loop()
    for workers in (2, 1, 3, 1, 2, 1) * 20:  # noqa: B007 - the pacer looks at it
        await asyncio.sleep(0.25)
        calls.want("b")
    assert len(calls.order) <= 20 + 10 * loop.time() + 1
    for task in calls.tasks:
        task.cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)


@in_virtual_time
async def test_a_slow_pace_that_changes_while_idle_still_lets_the_first_call_through() -> None:
    workers = 1
    pacer = pacer_of(2, workers=lambda: workers)
    loop = asyncio.get_running_loop()
    await asyncio.sleep(100)
    for workers in (2, 3, 4):  # noqa: B007 - as above
        await asyncio.sleep(300)
        before = loop.time()
        await pacer.turn("a")
        assert loop.time() == before


@in_virtual_time
async def test_refusals_of_upstream_slow_the_pace_and_it_comes_back() -> None:
    pacer = pacer_of(600)
    assert pacer.calls_per_minute() == 600
    pacer.observe(200, {"x-ratelimit-remaining-requests": "599", "x-ratelimit-limit-requests": "600"})
    assert pacer.calls_per_minute() == 600
    pacer.observe(429, {})
    assert pacer.calls_per_minute() == 300
    await asyncio.sleep(10)
    assert pacer.calls_per_minute() == 360
    for _ in range(30):
        pacer.observe(429, {})
        await asyncio.sleep(1)
    assert 30 <= pacer.calls_per_minute() <= 45, "the floor"
    calls = Calls(pacer)
    calls.want("a", 5)
    await asyncio.sleep(6)
    assert 3 <= len(calls.order) <= 5
    await asyncio.sleep(100)
    assert pacer.calls_per_minute() == 600


@in_virtual_time
async def test_a_limit_that_runs_low_slows_the_pace() -> None:
    pacer = pacer_of(600)
    low = {
        "x-ratelimit-remaining-tokens": "100",
        "x-ratelimit-limit-tokens": "90000",
        "x-ratelimit-reset-tokens": "59s",
    }
    pacer.observe(200, low)
    assert pacer.calls_per_minute() == 540


@in_virtual_time
async def test_an_upstream_without_a_limit_is_left_alone_when_it_asks_twice() -> None:
    pacer = pacer_of(None, deadline_seconds=5)
    loop = asyncio.get_running_loop()
    assert pacer.calls_per_minute() is None
    await times_of(pacer, 500)
    assert loop.time() < TICKS
    pacer.observe(429, {"retry-after": "3"})
    await times_of(pacer, 500)
    assert loop.time() < TICKS, "one alone may be a matter of one model"
    pacer.observe(429, {"retry-after": "3"})
    begun = asyncio.ensure_future(times_of(pacer, 50))
    await asyncio.sleep(3.5)
    assert pacer.waiting == 49, "one call tries whether it may be called again"
    pacer.observe(429, {})
    await asyncio.sleep(0)
    await asyncio.sleep(1)
    assert pacer.waiting == 47, "and another, when that was answered, or a second later"
    pacer.observe(200, {})
    at = await begun
    assert at == pytest.approx([3, 3.5, 4.5, *[4.5] * 47], abs=TICKS), "then all may go"
    pacer.observe(429, {"retry-after": "3"})
    await times_of(pacer, 1)
    assert loop.time() == pytest.approx(4.5, abs=TICKS)


@in_virtual_time
async def test_who_would_be_held_back_beyond_its_deadline_is_told_so_at_once() -> None:
    pacer = pacer_of(None, deadline_seconds=5)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "8"})
    with pytest.raises(Overloaded) as told:
        await pacer.turn("a")
    assert asyncio.get_running_loop().time() == 0
    assert told.value.retry_after_ms == 8_000
    assert pacer.watch.refusals == {QueueRefusal.TOO_LONG: 1}
    await asyncio.sleep(3.5)
    await pacer.turn("a")
    assert asyncio.get_running_loop().time() == pytest.approx(8, abs=TICKS)


@in_virtual_time
async def test_one_who_may_wait_just_as_long_as_upstream_is_to_be_left_alone_is_told_at_once() -> None:
    """What upstream asks for counts, though it is tried sooner than that."""
    pacer = pacer_of(None, deadline_seconds=10)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "30"}, "a")
    loop = asyncio.get_running_loop()

    async def waits_of_one() -> tuple[float, int]:
        begun = loop.time()
        with pytest.raises(Overloaded) as told:
            await pacer.turn("a", model="a")
        return loop.time() - begun, told.value.retry_after_ms

    assert await waits_of_one() == (0, 30_000)
    await asyncio.sleep(5)
    assert await waits_of_one() == (0, pytest.approx(25_000, abs=2))
    await asyncio.sleep(5.5)
    await pacer.turn("a", model="a")
    assert await waits_of_one() == (0, pytest.approx(19_500, abs=2)), (
        "one tries it, and the others need not wait for that"
    )
    pacer.observe(200, {}, "a")
    await times_of(pacer, 5)


@in_virtual_time
async def test_a_hold_just_as_long_as_the_deadline_is_too_long() -> None:
    pacer = pacer_of(None, deadline_seconds=10)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "10"})
    with pytest.raises(Overloaded):
        await pacer.turn("a")
    assert asyncio.get_running_loop().time() == 0


# Models.


class Models:
    """Calls of several models, in the order of their turns."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.order: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    def want(self, model: str, count: int = 1, team: str = "a") -> None:
        async def call() -> None:
            await self.pacer.turn(team, model=model)
            self.order.append(model)

        self.tasks += [asyncio.ensure_future(call()) for _ in range(count)]


@pytest.mark.parametrize("rate", [None, 600])
def test_a_model_that_is_refused_holds_back_no_other(rate: int | None) -> None:
    @in_virtual_time
    async def run() -> None:
        pacer = pacer_of(rate)
        for _ in range(2):
            pacer.observe(429, {"retry-after": "5"}, "gpt-4o")
        calls = Models(pacer)
        calls.want("gpt-4o", 10)
        await asyncio.sleep(0)
        calls.want("gpt-4o-mini", 10, team="b")
        calls.want("gpt-4o-mini", 10)
        await asyncio.sleep(0.01)
        assert calls.order == ["gpt-4o-mini"] * 20, "at once, before it and behind it"
        assert pacer.waiting == 10
        await asyncio.sleep(5)
        assert pacer.waiting == 9
        pacer.observe(200, {}, "gpt-4o-mini")
        await asyncio.sleep(0.5)
        assert pacer.waiting == 9, "the answer of another model says nothing of it"
        pacer.observe(200, {}, "gpt-4o")
        await asyncio.gather(*calls.tasks)
        assert pacer.waiting == 0

    run()


@in_virtual_time
async def test_refusals_of_two_models_are_not_in_a_row_and_what_lies_between_is_of_one_model() -> None:
    pacer = pacer_of(None)
    loop = asyncio.get_running_loop()
    for model in ("a", "b", "c"):
        pacer.observe(429, {"retry-after": "5"}, model)
    for model in ("a", "b", "c"):
        await pacer.turn("team", model=model)
    assert loop.time() == 0
    pacer.observe(200, {}, "b")
    pacer.observe(429, {"retry-after": "5"}, "a")
    pacer.observe(429, {"retry-after": "5"}, "b")
    await pacer.turn("team", model="b")
    assert loop.time() == 0
    await pacer.turn("team", model="a")
    assert loop.time() == pytest.approx(5, abs=TICKS)


@in_virtual_time
async def test_a_model_that_is_slowed_down_leaves_the_others_the_whole_pace() -> None:
    pacer = pacer_of(600)
    for _ in range(8):
        pacer.observe(429, {}, "slow")
        await asyncio.sleep(1)
    assert pacer.calls_per_minute() == pacer.calls_per_minute("fast") == 600
    assert pacer.calls_per_minute("slow") < 60
    pacer.observe(200, {}, "slow")
    calls = Models(pacer)
    calls.want("slow", 100)
    await asyncio.sleep(0)
    calls.want("fast", 220)
    await asyncio.sleep(20.5)
    assert 20 * 10 <= calls.order.count("fast") <= 20 * 11 + 6
    assert calls.order.count("slow") <= 40
    assert len(calls.order) <= 20 + 20.5 * 10 + 1, "both together no more than the key has"
    for task in calls.tasks:
        task.cancel()
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert pacer.waiting == 0


@in_virtual_time
async def test_only_so_many_wait_whatever_their_models_and_no_team_keeps_another_out() -> None:
    pacer = pacer_of(None, max_waiting=10)
    for model in ("a", "b"):
        for _ in range(2):
            pacer.observe(429, {"retry-after": "5"}, model)
    calls = Models(pacer)
    for model in ("a", "b"):
        calls.want(model, 7, team="crowd")
    await asyncio.sleep(0)
    assert pacer.waiting == 10
    calls.want("a", team="one")
    await asyncio.sleep(0.01)
    assert pacer.waiting == 10
    assert sum(task.done() for task in calls.tasks) == 5
    assert not calls.tasks[-1].done()
    assert pacer.watch.refusals == {QueueRefusal.FULL: 5}
    pacer.observe(200, {}, "a")
    pacer.observe(200, {}, "b")
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert len(calls.order) == 10
    assert len(pacer.watch.waits) == 11, "those who wait still, and the one that yielded"


@in_virtual_time
async def test_a_team_has_its_part_of_the_places_once_not_once_for_each_model() -> None:
    pacer = pacer_of(None, max_waiting=8)
    for model in ("a", "b"):
        for _ in range(2):
            pacer.observe(429, {"retry-after": "5"}, model)
    calls = Models(pacer)
    calls.want("a", 4, team="one")
    calls.want("b", 4, team="other")
    await asyncio.sleep(0)
    calls.want("a", team="other")
    await asyncio.sleep(0.01)
    assert [task.done() for task in calls.tasks] == [False] * 8 + [True]
    pacer.observe(200, {}, "a")
    pacer.observe(200, {}, "b")
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert calls.order.count("a") == calls.order.count("b") == 4


@in_virtual_time
async def test_the_wait_for_a_model_and_for_the_key_is_one_wait() -> None:
    pacer = pacer_of(60, deadline_seconds=6)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "5"}, "a")
    calls = Models(pacer)
    calls.want("b", 8)  # the burst is used up, and six wait
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    begun = []
    with pytest.raises(Overloaded):
        await pacer.turn("a", model="a", on_wait=lambda: begun.append(loop.time()))
    assert loop.time() == pytest.approx(6, abs=TICKS), "five seconds for the model, and one for the key"
    assert begun == [0]
    await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert len(pacer.watch.waits) == 7, "each is told of once"
    assert max(pacer.watch.waits) == pytest.approx(6, abs=TICKS)


@in_virtual_time
async def test_who_leaves_the_key_gives_its_model_its_turn_back() -> None:
    pacer = pacer_of(60, deadline_seconds=100)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "2"}, "a")
    calls = Models(pacer)
    calls.want("b", 12)
    await asyncio.sleep(0)
    calls.want("a", 2)
    await asyncio.sleep(2.1)
    lane = pacer._models["a"]
    assert len(lane.queue) == 1, "the first tries it, and waits for the key"
    calls.tasks[-2].cancel()
    await asyncio.sleep(0.1)
    assert len(lane.queue) == 0, "the next one may"
    pacer.observe(200, {}, "a")
    await asyncio.gather(*calls.tasks, return_exceptions=True)


@in_virtual_time
async def test_only_so_many_models_are_remembered_and_the_rest_share_a_lane() -> None:
    pacer = pacer_of(60)
    for number in range(MOST_MODELS + 50):
        for _ in range(2):
            pacer.observe(429, {"retry-after": "5"}, f"model-{number}")
    assert len(pacer._models) == MOST_MODELS
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await pacer.turn("team", model="never-heard-of")
    await asyncio.sleep(200)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "5"}, "another")
    assert list(pacer._models) == ["another"], "of those that are as good as new nothing is kept"
    assert pacer._others is None
    pacer.observe(200, {}, "never-heard-of")
    await pacer.turn("team", model="never-heard-of")
    await asyncio.sleep(200)
    pacer.observe(200, {}, "another")
    assert (pacer._models, pacer._others) == ({}, None)


@in_virtual_time
async def test_at_shutdown_those_who_wait_for_a_model_are_let_go_as_well() -> None:
    pacer = pacer_of(None)
    for _ in range(2):
        pacer.observe(429, {"retry-after": "5"}, "a")
    calls = Models(pacer)
    calls.want("a", 3)
    await asyncio.sleep(0.1)
    pacer.close()
    done = await asyncio.gather(*calls.tasks, return_exceptions=True)
    assert [str(each.reason) for each in done] == ["shutting down"] * 3
    for _ in range(2):
        pacer.observe(429, {"retry-after": "5"}, "b")
    with pytest.raises(Overloaded, match="shutting down"):
        await pacer.turn("team", model="b")


@in_virtual_time
async def test_at_shutdown_all_who_wait_are_let_go() -> None:
    pacer = pacer_of(60)
    calls = [asyncio.ensure_future(pacer.turn("a")) for _ in range(10)]
    await asyncio.sleep(0.5)
    pacer.close()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(each.reason) for each in done[2:]] == ["shutting down"] * 8
    assert pacer.waiting == 0
    with pytest.raises(Overloaded):
        await pacer.turn("a")


@in_virtual_time
async def test_at_shutdown_what_need_not_wait_goes_on() -> None:
    pacer = pacer_of(60)
    pacer.close()
    await pacer.turn("a")
    await pacer.turn("a")
    with pytest.raises(Overloaded):
        await pacer.turn("a")


# The bucket that is shared.


@in_virtual_time
async def test_tokens_are_reserved_and_settled_with_what_was_used() -> None:
    limiter = MemoryLimiter(LoopClock())
    pacer = pacer_of(None, bucket=bucket_of(None, 6_000, limiter))
    loop = asyncio.get_running_loop()
    turn = await pacer.turn("a", tokens=5_000)
    waiting = asyncio.ensure_future(pacer.turn("b", tokens=5_000))
    await asyncio.sleep(2)
    assert not waiting.done()
    turn.settle(100)
    turn.settle(100)
    await asyncio.sleep(0.01)
    assert waiting.done(), "what came back is given to who waits, at once"
    assert loop.time() < 3
    (await waiting).settle(5_500)
    debt = asyncio.ensure_future(pacer.turn("c", tokens=2_000))
    begun = loop.time()
    await debt
    # 5,800 of 6,000 fit. 5,500 less what has come back, and 2,000: 1,700 too many, at 100 a second.
    assert loop.time() - begun == pytest.approx(17, abs=1.5)


@in_virtual_time
async def test_a_unit_of_the_pace_is_not_lost_while_the_bucket_is_waited_for() -> None:
    pacer = pacer_of(6, bucket=bucket_of(None, 600))
    loop = asyncio.get_running_loop()
    await pacer.turn("a", tokens=580)
    await asyncio.sleep(10.1)
    await pacer.turn("a", tokens=150)
    assert loop.time() == pytest.approx(15, abs=0.01), "not a call's time later"


@in_virtual_time
async def test_what_was_not_reserved_is_a_debt() -> None:
    pacer = pacer_of(None, bucket=bucket_of(None, 600))
    loop = asyncio.get_running_loop()
    (await pacer.turn("a")).settle(640)
    await pacer.turn("a", tokens=0)
    assert loop.time() == 0, "what takes no tokens waits for none"
    await pacer.turn("a", tokens=1)
    assert loop.time() == pytest.approx(6.1, abs=0.01)


@in_virtual_time
async def test_two_workers_together_have_what_the_bucket_has() -> None:
    limiter = MemoryLimiter(LoopClock())
    pacers = [pacer_of(None, bucket=bucket_of(60, None, limiter)) for _ in range(2)]
    calls = [Calls(pacer) for pacer in pacers]
    for each in calls:
        each.want("a", 60)
    await asyncio.sleep(30.5)
    together = sum(len(each.order) for each in calls)
    assert together == 58 + 30, "less by a thirtieth than upstream's, and one a second"
    assert min(len(each.order) for each in calls) > 0
    await asyncio.gather(*(each.all() for each in calls))


@in_virtual_time
async def test_what_another_worker_gives_back_is_found_within_a_second() -> None:
    limiter = MemoryLimiter(LoopClock())
    one, other = (pacer_of(None, bucket=bucket_of(None, 6_000, limiter)) for _ in range(2))
    turn = await one.turn("a", tokens=5_700)
    waiting = [asyncio.ensure_future(other.turn("b", tokens=5_000)) for _ in range(1)]
    await asyncio.sleep(2.1)
    turn.settle(0)
    await asyncio.sleep(1)
    assert waiting[0].done(), "though it was to wait 49 seconds"


@in_virtual_time
async def test_what_comes_back_while_the_bucket_is_asked_is_not_slept_through() -> None:
    class Far(MemoryLimiter):
        async def reserve(self, *question):
            decision = await super().reserve(*question)
            await asyncio.sleep(0.3)
            return decision

    pacer = pacer_of(None, bucket=bucket_of(None, 6_000, Far(LoopClock())))
    loop = asyncio.get_running_loop()
    turn = await pacer.turn("a", tokens=5_700)
    waiting = asyncio.ensure_future(pacer.turn("b", tokens=5_000))
    await asyncio.sleep(0.1)
    first = asyncio.ensure_future(pacer.turn("b", tokens=5_000))
    await asyncio.sleep(0.1)
    turn.settle(0)
    await asyncio.wait([waiting, first], return_when=asyncio.FIRST_COMPLETED)
    assert loop.time() < 1.3, "asked again as soon as the answer of before was heard"
    await asyncio.gather(waiting, first)
    await asyncio.sleep(1_000)
    begun = loop.time()
    turn = await pacer.turn("a", tokens=5_700)
    waiting = asyncio.ensure_future(pacer.turn("b", tokens=5_000))
    await asyncio.sleep(1.4)  # asked at 0.3, told at 0.6, and asked again at 1.6
    turn.settle(0)
    await waiting
    assert loop.time() - begun == pytest.approx(2.2, abs=0.05)


@in_virtual_time
async def test_one_that_is_larger_than_the_bucket_goes_when_that_is_full() -> None:
    pacer = pacer_of(None, bucket=bucket_of(None, 600))
    loop = asyncio.get_running_loop()
    await pacer.turn("a", tokens=10)
    await pacer.turn("a", tokens=10_000)
    assert loop.time() == pytest.approx(1, abs=0.01)


@in_virtual_time
async def test_the_first_is_not_starved_by_smaller_ones_of_its_team() -> None:
    calls = Calls(pacer_of(None, bucket=bucket_of(None, 600)))
    calls.want("a", tokens=500)
    await asyncio.sleep(0)
    calls.want("a", tokens=400)
    await asyncio.sleep(1)
    order: list[str] = []

    async def small() -> None:
        await calls.pacer.turn("a", tokens=1)
        order.append("small")

    small_ones = [asyncio.ensure_future(small()) for _ in range(5)]
    await calls.all()
    assert order == []
    await asyncio.gather(*small_ones)


@in_virtual_time
async def test_what_leaves_while_the_bucket_is_asked_is_given_back() -> None:
    class Slow(MemoryLimiter):
        async def reserve(self, *question):
            await asyncio.sleep(0.2)
            return await super().reserve(*question)

    limiter = Slow(LoopClock())
    bucket = bucket_of(None, 600, limiter)
    pacer = pacer_of(None, bucket=bucket)
    await pacer.turn("a", tokens=580)
    leaving = asyncio.ensure_future(pacer.turn("a", tokens=100))
    await asyncio.sleep(10.1)  # there is room, and it is being asked for
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.sleep(1)
    assert pacer.waiting == 0
    used = limiter.used("upstream:openai", bucket._scopes[0])
    assert used.tokens <= 580 - 110, "nothing of the one that left"


@in_virtual_time
async def test_what_the_store_cannot_decide_is_raised_for_whoever_asks() -> None:
    class Gone(MemoryLimiter):
        is_gone = False

        async def reserve(self, *question):
            if self.is_gone:
                raise StoreAway("limiter", "reserve")
            return await super().reserve(*question)

    limiter = Gone(LoopClock())
    pacer = pacer_of(None, bucket=bucket_of(None, 600, limiter))
    await pacer.turn("a", tokens=580)
    waiting = [asyncio.ensure_future(pacer.turn("a", tokens=100)) for _ in range(3)]
    await asyncio.sleep(1)
    limiter.is_gone = True
    with pytest.raises(StoreAway):
        await pacer.turn("b", tokens=1)
    done = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in done] == [StoreAway] * 3
    limiter.is_gone = False
    await asyncio.sleep(60)
    await pacer.turn("a", tokens=100)


@in_virtual_time
async def test_one_that_leaves_as_the_store_fails_takes_nobody_with_it() -> None:
    class Failing(MemoryLimiter):
        leaving: asyncio.Task[object] | None = None

        async def reserve(self, *question):
            if self.leaving is not None:
                self.leaving.cancel()
                self.leaving = None
                raise StoreAway("limiter", "reserve")
            return await super().reserve(*question)

    limiter = Failing(LoopClock())
    pacer = pacer_of(None, bucket=bucket_of(None, 600, limiter))
    await pacer.turn("a", tokens=580)
    leaving, stays = (asyncio.ensure_future(pacer.turn("a", tokens=100)) for _ in range(2))
    await asyncio.sleep(0.5)
    limiter.leaving = leaving
    await stays
    assert leaving.cancelled()
    assert pacer.waiting == 0


@in_virtual_time
async def test_no_team_can_have_the_name_of_the_bucket() -> None:
    from proxy.core.names import is_name

    limiter = MemoryLimiter(LoopClock())
    bucket = bucket_of(60, 600, limiter)
    refused = [await bucket.reserve(1) for _ in range(59)][-1]
    assert isinstance(refused, int)
    assert not is_name(bucket._team)
    assert isinstance(await limiter.reserve(bucket._team, bucket._scopes, bucket_cost(1)), Refused)


def bucket_cost(tokens: int):
    from proxy.core.bucket import Cost

    return Cost(1, tokens)


class FarAway(MemoryLimiter):
    """Decides at once; its answer takes a second."""

    async def reserve(self, *asked, **more):
        decision = await super().reserve(*asked, **more)
        await asyncio.sleep(1)
        return decision


@pytest.mark.parametrize("leaves_after", [0, 0.5, 1])
def test_who_leaves_while_the_bucket_answers_keeps_nothing_of_it(leaves_after: float) -> None:
    @in_virtual_time
    async def run() -> None:
        limiter = FarAway(LoopClock())
        bucket = bucket_of(10, 1_000, limiter)
        pacer = pacer_of(10, bucket=bucket)
        for _ in range(5):
            asked = asyncio.ensure_future(pacer.turn("a", 1, 900))
            await asyncio.sleep(leaves_after)
            asked.cancel()
            await asyncio.wait([asked])
            if not asked.cancelled():
                asked.result().undo()
        await asyncio.sleep(1.1)
        assert limiter.used("upstream:openai", bucket._scopes[0]) == Cost(0, 0)
        begun = asyncio.get_running_loop().time()
        await pacer.turn("b", 1, 900)
        assert asyncio.get_running_loop().time() - begun <= 1 + TICKS, "nor of the pace"

    run()
