"""Somebody leaves at every instant there is: each wait on the way of a shared call is cut short once."""

import asyncio
import itertools
import json

import pytest

from proxy.core.event import Outcome
from proxy.core.replay import assemble
from tests.support.stage import (
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

MS = 0.001
FORMS = {"plain": chat(), "stream": chat(stream=True)}
HOW_LONG_HALF_MS = 40
"""Longer than everything takes: the last round is one in which nobody leaves any more."""


class FarCache(LeasedCache):
    """As every other store of this play it takes a millisecond to answer."""

    async def get(self, address):
        await asyncio.sleep(MS)
        return await super().get(address)


def act(streams):
    pieces = stream("so ", "deep") if streams else [plain("so deep")]
    return Play([step for piece in pieces for step in (MS, piece)], before=[MS], kind="text/event-stream" * streams)


def content(asked):
    if asked.body.startswith(b"{"):
        return json.loads(asked.body)["choices"][0]["message"]["content"]
    assert asked.client.head is None or asked.client.closed
    *events, done, _ = asked.body.split(b"\n\n")
    assert done == b"data: [DONE]"
    return assemble([json.loads(each.removeprefix(b"data: ")) for each in events])["choices"][0]["message"]["content"]


async def leave_after(
    half_ms: int, turns: int, who: tuple[int, ...], form: dict, processes: int, max_draining: int
) -> bool:
    """Play it once; says whether anybody was in time to leave."""
    limiter, cache, upstream = SlowLimiter(LoopClock()), FarCache(), Upstream([act])
    limiter.reserve_seconds = MS
    stages = [
        Stage(limiter=limiter, cache=cache, upstream=upstream, max_draining=max_draining) for _ in range(processes)
    ]
    for stage in stages:
        stage.doorman.admit("growth", max_parallel=50)
    others = [FORMS["plain"], FORMS["stream"]]
    asked = [stages[number % processes].ask(body, pace_seconds=MS) for number, body in enumerate([form, *others])]
    await asyncio.sleep(half_ms * MS / 2)
    for _ in range(turns):
        await asyncio.sleep(0)
    left = [asked[number] for number in who if asked[number].task.cancel()]
    for stage in stages:
        await stage.all()

    assert [content(each) for each in asked if each not in left] == ["so deep"] * (len(asked) - len(left))
    for stage in stages:
        assert len(stage.services.flights) == stage.books.in_flight == len(stage.services.flights.draining) == 0
        assert len(stage.books.records) == len(stage.asked)
        events = [event.event_id for event in stage.books.ended]
        assert len(set(events)) == len(events)
        assert {each.event_id for each in stage.books.begun} <= set(events)
    events = [event for stage in stages for event in stage.books.ended]
    calls = [event for event in events if event.outcome is not Outcome.CACHED]
    assert len(calls) == sum(len(stage.books.begun) for stage in stages)
    assert len(upstream.requests) == sum(event.attempts for event in calls)
    assert upstream.running == 0
    assert set(limiter._in_flight.values()) <= {0}
    assert cache.held == {}
    requests, tokens = await stages[0].charged()
    assert len(calls) <= requests <= len(asked)
    # More where upstream was let go of, and may run on, or where two had reserved at once.
    assert tokens >= sum(event.usage.total_tokens for event in calls)
    if max_draining:
        assert upstream.cut == 0
        assert not any(event.estimated for event in calls if event.attempts)
    return bool(left)


@pytest.mark.parametrize("max_draining", [0, 9], ids=["cancel", "drain"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1), (0, 1, 2)], ids=["first", "second", "two", "all"])
def test_leaving_at_any_instant_leaves_nothing_behind(who, form, processes, max_draining):
    instants = 0
    for half_ms, turns in itertools.product(range(HOW_LONG_HALF_MS), (0, 2)):
        seen = []

        async def play(half_ms=half_ms, turns=turns, seen=seen):
            seen.append(await leave_after(half_ms, turns, who, FORMS[form], processes, max_draining))

        on_stage(play)
        instants += seen[0]
        if not seen[0]:
            break
    assert 10 < instants < 2 * HOW_LONG_HALF_MS
