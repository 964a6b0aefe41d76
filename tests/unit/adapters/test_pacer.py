import asyncio
from collections.abc import Awaitable, Callable

import async_solipsism
import pytest
from async_solipsism.clock import Clock

from proxy.adapters.pacer import Pacer
from proxy.core.errors import Overloaded

TICKS = 0.001
"""Room for the ticks of the virtual clock."""


class Ticking(Clock):
    """A wait shorter than a tick takes a tick; else time would stand still for whoever waits for it again and again."""

    def advance(self, delta: float) -> None:
        super().advance(max(delta, self.resolution) if delta else 0.0)


def virtual_loop() -> asyncio.AbstractEventLoop:
    loop = async_solipsism.EventLoop()
    loop._selector.clock.__class__ = Ticking  # the loop holds it too
    return loop


def in_virtual_time(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs on a loop whose time passes when nothing is left to do."""

    def run() -> None:
        with asyncio.Runner(loop_factory=virtual_loop) as runner:
            runner.run(test())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


async def times_of(pacer: Pacer, calls: int) -> list[float]:
    """When each of so many calls, all wanted at once, had its turn; in the order in which they asked."""
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def call() -> float:
        await pacer.turn()
        return loop.time() - started

    return await asyncio.gather(*(call() for _ in range(calls)))


@pytest.mark.parametrize("rate", [1, 7, 30, 60, 90, 3_500])
def test_the_pace_holds_over_every_span(rate: int) -> None:
    @in_virtual_time
    async def run() -> None:
        pacer = Pacer(rate, max_waiting=1_000, deadline_seconds=10_000)
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
async def test_within_the_pace_nobody_waits() -> None:
    pacer = Pacer(60, max_waiting=1, deadline_seconds=1)
    loop = asyncio.get_running_loop()
    for _ in range(50):
        before = loop.time()
        await pacer.turn()
        assert loop.time() == before
        await asyncio.sleep(1)


@in_virtual_time
async def test_only_so_many_wait() -> None:
    pacer = Pacer(60, max_waiting=3, deadline_seconds=100)
    calls = [asyncio.ensure_future(pacer.turn()) for _ in range(10)]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in done] == [type(None)] * 5 + [Overloaded] * 5, "a burst of two, and three that wait"
    assert pacer.waiting == 0
    await pacer.turn()


@in_virtual_time
async def test_nobody_waits_longer_than_the_deadline() -> None:
    pacer = Pacer(60, max_waiting=100, deadline_seconds=4.5)
    loop = asyncio.get_running_loop()
    started = loop.time()

    async def call() -> tuple[bool, float]:
        try:
            await pacer.turn()
        except Overloaded:
            return False, loop.time() - started
        return True, loop.time() - started

    done = await asyncio.gather(*(call() for _ in range(20)))
    assert [at for admitted, at in done if not admitted] == [4.5] * 14
    assert sum(admitted for admitted, _ in done) == 6
    assert pacer.waiting == 0


@in_virtual_time
async def test_one_that_leaves_takes_no_turn_with_it() -> None:
    pacer = Pacer(60, max_waiting=100, deadline_seconds=100)
    loop = asyncio.get_running_loop()
    await times_of(pacer, 2)
    started = loop.time()
    leaving = [asyncio.ensure_future(pacer.turn()) for _ in range(5)]
    await asyncio.sleep(0)
    assert pacer.waiting == 5
    for each in leaving:
        each.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    assert pacer.waiting == 0
    await pacer.turn()
    assert loop.time() - started == pytest.approx(1.0)


@in_virtual_time
async def test_a_newcomer_does_not_overtake_those_who_wait() -> None:
    pacer = Pacer(60, max_waiting=100, deadline_seconds=100)
    order: list[int] = []

    async def call(number: int) -> None:
        await pacer.turn()
        order.append(number)

    async with asyncio.TaskGroup() as calls:
        for number in range(6):
            calls.create_task(call(number))
        await asyncio.sleep(1.0)
        for number in range(6, 9):
            calls.create_task(call(number))
    assert order == list(range(9))
