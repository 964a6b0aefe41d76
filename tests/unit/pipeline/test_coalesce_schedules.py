"""Whoever comes, leaves or dawdles, and whatever upstream does: the account ties out and nobody is told half of it."""

import asyncio
import json
from dataclasses import dataclass

from hypothesis import event, given, settings
from hypothesis import strategies as st

from proxy.core import bucket
from proxy.core.bucket import Admitted, Reservation
from proxy.core.errors import UpstreamFailure, UpstreamFault
from proxy.core.event import Outcome
from proxy.core.replay import assemble
from proxy.core.tiers import Limits
from proxy.pipeline.drain import give_up_all
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

SSE = "text/event-stream"
FORMS = (chat(), chat(stream=True), chat(stream=True, stream_options={"include_usage": True}))
ERROR = b'{"error": {"message": "no", "type": "server_error", "param": null, "code": null}}'
TENTHS = st.integers(0, 80).map(lambda tenths: tenths / 10)


@dataclass(frozen=True)
class Caller:
    comes: float
    stays: float | None
    form: int
    key: str
    pace: float
    cache_control: str


callers = st.builds(
    Caller,
    comes=TENTHS,
    stays=st.none() | TENTHS,
    form=st.integers(0, 2),
    key=st.sampled_from(["growth/a", "growth/b", "growth/poor", "sales"]),
    pace=st.sampled_from([0, 0, 0, 2.5]),
    cache_control=st.sampled_from(["", "", "", "", "no-cache", "max-age=2", "only-if-cached"]),
)


def act(kind: str, text: str):
    """What upstream does, in the form it is asked for."""

    def play(streams: bool) -> Play:
        if kind == "error":
            return Play([ERROR], status=500, before=[1.0])
        if kind == "unreachable":
            return Play([], before=[1.0, UpstreamFailure("stage", UpstreamFault.UNREACHABLE)])
        reason = "content_filter" if kind == "filtered" else "stop"
        pieces = stream(text, text, reason=reason) if streams else [plain(text * 2, reason=reason)]
        steps = [step for piece in pieces for step in (0.7, piece)]
        if kind == "broken":
            steps = [*steps[:3], UpstreamFailure("stage", UpstreamFault.BROKEN)]
        return Play(steps, kind=SSE if streams else "application/json", before=[0.5])

    return play


kinds = st.lists(
    st.sampled_from(["good", "good", "filtered", "error", "broken", "unreachable"]), min_size=1, max_size=4
)


def content(body: bytes) -> str:
    """What a whole answer says; fails for one that is not whole."""
    if body.startswith(b"{"):
        completion = json.loads(body)
    else:
        *events, done, nothing = body.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        completion = assemble([json.loads(each.removeprefix(b"data: ")) for each in events])
    return completion["choices"][0]["message"]["content"]


class Till(SlowLimiter):
    """Notes what it reserved, and what of requests that were given back the rule of refunds did not let return."""

    def __init__(self) -> None:
        super().__init__(LoopClock())
        self.reservations: list[Reservation] = []
        self.held_back = {"growth": 0.0, "sales": 0.0}

    async def reserve(self, team, scopes, cost, spend=None):
        decision = await super().reserve(team, scopes, cost, spend)
        if isinstance(decision, Admitted):
            self.reservations.append(decision.reservation)
        return decision

    def settle(self, reservation, actual, spent_nano_usd=0):
        before = self.lacking(reservation)
        if not reservation.handles[0].settled:
            self.held_back[reservation.team] += reservation.cost.requests - actual.requests
            super().settle(reservation, actual, spent_nano_usd)
            self.held_back[reservation.team] -= before - self.lacking(reservation)

    def lacking(self, reservation: Reservation) -> float:
        """Requests that the team's bucket lacks now, with what of one has come back since."""
        state = self._state((reservation.team, "team"))
        if state is None:
            return 0
        return bucket.advance(state, reservation.scopes[0].schedule, self._now_ms())[0][2] / bucket.UNITS


async def visit(stage: Stage, caller: Caller) -> None:
    await asyncio.sleep(caller.comes)
    headers = {"Cache-Control": caller.cache_control} if caller.cache_control else None
    body = {**FORMS[caller.form], "max_tokens": 100}
    asked = stage.ask(body, by=caller.key, headers=headers, pace_seconds=caller.pace)
    if caller.stays is not None:
        await asyncio.wait([asked.task], timeout=caller.stays)
        if not asked.task.done():
            await asked.leave()


@settings(max_examples=150, deadline=None)
@given(
    callers=st.lists(st.tuples(st.integers(0, 1), callers), min_size=1, max_size=12),
    kinds=kinds,
    reserve_seconds=st.sampled_from([0, 0, 0.3]),
    shared=st.booleans(),
    hits_cost_requests=st.integers(0, 1),
    entry_max_bytes=st.sampled_from([100, 1_048_576]),
    max_draining=st.sampled_from([0, 0, 1, 9]),
    turn_seconds=st.sampled_from([0, 0, 0.4]),
    cut_after=st.none() | st.none() | TENTHS,
)
def test_any_schedule(
    callers, kinds, reserve_seconds, shared, hits_cost_requests, entry_max_bytes, max_draining, turn_seconds, cut_after
):  # fmt: skip
    async def play():
        acts = [act(kind, f"answer {number} ") for number, kind in enumerate(kinds)]
        together = {"limiter": Till(), "upstream": Upstream(acts)}
        together["upstream"].turn_seconds = turn_seconds
        if shared:
            together["cache"] = LeasedCache()
        policy = {"hits_cost_requests": hits_cost_requests, "cache_entry_max_bytes": entry_max_bytes}
        policy["max_draining"] = max_draining
        stages = [Stage(**together, **policy) for _ in range(2 if shared else 1)]
        for stage in stages:
            stage.limiter.reserve_seconds = reserve_seconds
            for key in ("growth/a", "growth/b"):
                stage.doorman.admit(key)
            stage.doorman.admit("growth/poor", key_limits=Limits(tokens_per_minute=1, token_capacity=50))
            stage.doorman.admit("sales", max_parallel=3)
        visits = [visit(stages[index % len(stages)], caller) for index, caller in callers]
        await asyncio.gather(*visits, *([cut(stages[0], cut_after)] if cut_after is not None else []))
        for stage in stages:
            if stage.asked:
                await stage.all()
        await check(stages)

    on_stage(play)


async def cut(stage: Stage, after_seconds: float) -> None:
    """As a process does whose time to drain is up, while others may still come."""
    await asyncio.sleep(after_seconds + 0.05)  # nobody comes at this moment: who is asked for has begun
    stage.services.shutdown.over = True
    asked = [each.task for each in stage.asked]
    for task in asked:
        task.cancel()
    give_up_all(stage.services)
    if asked:
        await asyncio.wait(asked)
    assert not stage.services.flights.draining


async def check(stages: list[Stage]) -> None:
    upstream, limiter = stages[0].upstream, stages[0].limiter
    asked = [each for stage in stages for each in stage.asked]
    events = [each for stage in stages for each in stage.books.ended]
    begun = [each for stage in stages for each in stage.books.begun]
    records = [each for stage in stages for each in stage.books.records]
    event(f"{len(begun)} calls for {len(asked)}")
    event(f"outcomes {sorted({each.outcome.value for each in records})}")

    assert all(len(stage.services.flights) == 0 and stage.books.in_flight == 0 for stage in stages)
    assert not any(stage.services.flights.draining for stage in stages)
    assert len(records) == len(asked), "each is counted once"
    assert len({(id(stage), each.event_id) for stage in stages for each in stage.books.ended}) == len(events)
    assert len(events) == len(begun) + sum(each.outcome is Outcome.CACHED for each in events)
    assert upstream.running == 0
    assert len(upstream.requests) == sum(each.attempts for each in events)
    assert set(limiter._in_flight.values()) <= {0}, "every place is free"
    assert all(handle.settled for each in limiter.reservations for handle in each.handles)
    assert all(len(turn.settled) == 1 for turn in upstream.turns), "no turn is kept, nor settled twice"
    cache = stages[0].cache
    assert not isinstance(cache, LeasedCache) or cache.held == {}

    for each in asked:
        client = each.client
        if each.task.cancelled():
            assert not client.closed
            continue
        assert not (client.closed and client.aborted)
        if each.status == 200 and not client.aborted:
            assert content(each.body).startswith("answer ")
            assert (client.head is None) or client.closed
        elif client.head is not None:
            assert client.aborted
            assert not each.body.endswith(b"data: [DONE]\n\n")

    cost = {"growth": 0, "sales": 0}
    tokens = {"growth": 0, "sales": 0}
    for stage in stages:
        for each in stage.books.ended:
            if each.outcome is not Outcome.CACHED:
                # What was cut before upstream was at work on it costs nothing, not even its turn.
                cost[each.team] += each.outcome is not Outcome.UNAVAILABLE or each.estimated
                tokens[each.team] += each.usage.total_tokens
            else:
                assert each.cost_pico_usd == 0
                cost[each.team] += stage.services.policy.hits_cost_requests
    refilled = 1 + int(asyncio.get_running_loop().time() // 60)
    for team, spent in cost.items():
        requests, charged = await stages[0].charged(team)
        assert requests >= spent - refilled
        assert charged >= tokens[team] - refilled
        came = sum(each.exchange.principal.team.name == team for each in asked)
        # Who followed or waited in vain gives a request back and takes another; no more is left of the first than a
        # bucket keeps whose contents are given back out of their order.
        assert requests <= came + limiter.held_back[team] + 1e-6
