"""Waiting for a turn, with the real thing: who is served, in which order, how many, and what is said to the others.

Who was served in which order is told where it was decided, for calls that go out together may arrive in any order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import pytest

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.registry import SqlRegistry
from proxy.core.event import Dispatch
from tests.faults.conftest import CHAT, Gateway, HeldTime, Open, until

WAIT = "x-tollgate-max-wait"
UNCACHED = {**CHAT, "temperature": 1, "max_tokens": 1}


class Queue:
    """Requests with names, sent one after the other, each once the one before it has been seen to wait."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.turns = gateway.worker.services.turns
        self.keys: dict[str, str] = {}
        self.asked: dict[str, asyncio.Task[tuple[int, dict, dict]]] = {}
        self.wishes: dict[str, str] = {}
        """What the simulator is asked for with each request."""
        self.turns_upstream: list[str] = []
        """Teams whose calls upstream had their turn, in that order."""
        self._dispatched: list[str] = []
        self._listen()

    def _listen(self) -> None:
        ledger = self.gateway.worker.ledger
        begin = ledger.begin

        def noted(dispatch: Dispatch) -> None:
            self._dispatched.append(dispatch.request_id)
            begin(dispatch)

        ledger.begin = noted
        for site in self.gateway.worker.services.upstreams:
            for key in site.keys:
                key.call.turn = partial(self._turn, key.call.turn)

    async def _turn(self, turn: Callable[..., Awaitable[object]], team: str, *more: object) -> object:
        got = await turn(team, *more)
        self.turns_upstream.append(team)
        return got

    def add_team(self, name: str, *, max_wait_ms: int | None = None, **fields: object) -> None:
        settings = self.gateway.settings
        registry = SqlRegistry(
            self.gateway.engine, self.gateway.worker.services.clock, load_or_create_pepper(settings.data_dir)
        )
        registry.add_team(name, "unlimited", **fields)
        more = {} if max_wait_ms is None else {"max_wait_ms": max_wait_ms}
        self.keys[name] = registry.issue_key(name, **more).key

    @property
    def upstream_waiting(self) -> int:
        return sum(key.call.waiting for site in self.gateway.worker.services.upstreams for key in site.keys)

    @property
    def seen(self) -> list[str]:
        """Names of the requests upstream has answered, in that order."""
        return [record.query.removeprefix("name=") for record in self.gateway.stats.records]

    @property
    def served(self) -> list[str]:
        """Names of the requests that limits have let through and that were answered, in the order of the former."""
        done = {name: task for name, task in self.asked.items() if task.done() and not task.cancelled()}
        names = {task.result()[1]["x-request-id"]: name for name, task in done.items()}
        return [names[request_id] for request_id in self._dispatched if request_id in names]

    def waiting_of(self, team: str) -> int:
        """How many calls of a team wait for upstream's pace."""
        pacers = [key.call._pacer for site in self.gateway.worker.services.upstreams for key in site.keys]
        return sum(lane.queue.waiting(team) for pacer in pacers for lane in pacer._lanes())

    def ask(self, name: str, team: str, wait: str | None = "20s", **more: object) -> asyncio.Task:
        async def answer() -> tuple[int, dict, dict]:
            waits = {WAIT: wait} if wait is not None else {}
            headers = {"Authorization": f"Bearer {self.keys[team]}", **waits, **self.wishes}
            url = f"{self.gateway.worker.base_url}/chat/completions?name={name}"
            async with self.gateway.session.post(url, json={**UNCACHED, **more}, headers=headers) as response:
                body = await response.read() if more else await response.json()
                return response.status, {name.lower(): value for name, value in response.headers.items()}, body

        self.asked[name] = asyncio.ensure_future(answer())
        return self.asked[name]

    async def line_up(self, name: str, team: str, waiting: Callable[[], int], **more: object) -> None:
        """Ask, and return when it waits or has been answered."""
        before = waiting()
        task = self.ask(name, team, **more)
        await until(lambda: task.done() or waiting() > before)

    def limits_waiting(self) -> int:
        return len(self.turns)

    async def gauge_is(self, queue: str, number: int) -> None:
        await until(lambda: self.gateway.metric("tollgate_queued_requests", queue=queue) == number)


@pytest.fixture
def queue(gateway: Gateway) -> Queue:
    return Queue(gateway)


async def test_one_team_is_served_in_the_order_in_which_it_came_and_no_faster_than_its_limit(queue: Queue) -> None:
    queue.add_team("growth", requests_per_minute=240, request_capacity=2)
    begun = time.monotonic()
    names = [f"r{number:02}" for number in range(10)]
    for name in names:
        await queue.line_up(name, "growth", queue.limits_waiting)
    lined_up_seconds = time.monotonic() - begun
    answers = [await queue.asked[name] for name in names]
    assert [status for status, _, _ in answers] == [200] * 10
    assert queue.served == names
    assert sorted(queue.seen) == names
    assert len(names) <= 2 + (time.monotonic() - begun) * 4, "no more than the limit allows in the time it took"
    waited_ms = [int(headers["x-tollgate-queue-wait-ms"]) for _, headers, _ in answers]
    assert waited_ms.count(0) <= 2 + lined_up_seconds * 4, "no more than found room when they came"
    await queue.gateway.settled()
    logged = {record["request_id"]: record for record in queue.gateway.records()}
    for _, headers, _ in answers:
        record = logged[headers["x-request-id"]]
        assert int(record["queued_ms"]) == int(headers["x-tollgate-queue-wait-ms"])
        assert record["queued_ms"] <= record["overhead_ms"] <= record["duration_ms"]
    count = queue.gateway.metric("tollgate_queue_wait_seconds_count", queue="limits")
    assert count == sum(record["queued_ms"] > 0 for record in logged.values())
    assert queue.gateway.metric("tollgate_queue_wait_seconds_count", queue="upstream") == 0
    assert await queue.gateway.mismatches() == []


async def test_a_hundred_that_wait_for_their_limit_do_not_delay_another_team(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"queue.longest_wait_seconds": 3_600.0}))
    queue.add_team("crowd", requests_per_minute=6, request_capacity=1)
    queue.add_team("one")
    for number in range(120):
        queue.ask(f"c{number}", "crowd", wait="1h")
    await until(lambda: queue.limits_waiting() >= 100)
    status, _, _ = await queue.ask("one", "one", wait="1h")
    assert status == 200
    assert queue.limits_waiting() >= 90, "while all the others wait still"
    await leave(queue)


async def test_a_hundred_that_wait_for_upstream_do_not_delay_another_team(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"upstream.requests_per_minute": 90, "upstream.pacing_deadline_seconds": 300}))
    queue.add_team("crowd")
    queue.add_team("one")
    for number in range(120):
        queue.ask(f"c{number}", "crowd", wait=None)
    # Some are served meanwhile, and the more the longer it takes.
    await until(lambda: queue.upstream_waiting >= 70)
    one = queue.ask("one", "one", wait=None)
    await until(lambda: queue.waiting_of("one") == 1 or one.done())
    since = len(queue.turns_upstream)
    status, headers, _ = await queue.asked["one"]
    assert status == 200
    assert int(headers["x-tollgate-queue-wait-ms"]) > 0
    assert queue.turns_upstream.index("one") <= since + 2, "next, or next but one; a turn was perhaps being given"
    assert queue.waiting_of("crowd") >= 30, "most of those who came before"
    await until(lambda: queue.gateway.metric("tollgate_queued_requests", queue="upstream") >= 20)
    await leave(queue)
    assert queue.gateway.metric("tollgate_queue_wait_seconds_count", queue="upstream") >= 70


async def test_heavier_teams_have_more_of_upstream(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"upstream.requests_per_minute": 300, "upstream.pacing_deadline_seconds": 300}))
    queue.add_team("light")
    queue.add_team("heavy", weight=4)
    for number in range(100):
        queue.ask(f"light{number}", "light", wait=None)
        queue.ask(f"heavy{number}", "heavy", wait=None)
    await until(lambda: queue.waiting_of("heavy") >= 40 and queue.waiting_of("light") >= 20)
    since = len(queue.turns_upstream)
    await until(lambda: len(queue.turns_upstream) >= since + 23)
    order = queue.turns_upstream[since + 3 : since + 23]
    assert 14 <= order.count("heavy") <= 18, order
    await leave(queue)


async def leave(queue: Queue) -> None:
    """All clients leave: nothing more is sent, nothing is left, and what goes on goes on."""
    for task in queue.asked.values():
        task.cancel()
    await asyncio.gather(*queue.asked.values(), return_exceptions=True)
    await queue.gateway.noticed()
    await until(lambda: not queue.limits_waiting() and not queue.upstream_waiting)
    await queue.gauge_is("limits", 0)
    await queue.gauge_is("upstream", 0)
    await queue.gateway.settled()
    served = {name for name, task in queue.asked.items() if not task.cancelled() and task.result()[0] == 200}
    assert served <= set(queue.seen)
    calls = queue.gateway.stats.requests
    queue.add_team("afterwards")
    status, _, _ = await queue.ask("after", "afterwards", wait=None)
    assert status == 200
    assert queue.gateway.stats.requests == calls + 1, "nothing of those that have left"


async def test_who_leaves_the_queue_costs_nothing(open_gateway: Open) -> None:
    time = HeldTime()
    queue = Queue(await open_gateway(time=time))
    queue.add_team("growth", max_parallel=1)
    queue.wishes = {"x-simulate-delay-ms": "1"}
    queue.ask("first", "growth")
    await until(lambda: time.waiting == 1)
    for name in ("gone", "stays"):
        await queue.line_up(name, "growth", queue.limits_waiting)
    queue.asked["gone"].cancel()
    await until(lambda: queue.limits_waiting() == 1)
    time.release()
    status, _, _ = await queue.asked["stays"]
    assert status == 200
    assert queue.seen == ["first", "stays"]
    await queue.gateway.settled()
    gone = [record for record in queue.gateway.records() if record["outcome"] == "client_gone"]
    assert [(record["attempts"], record["status"]) for record in gone] == [(0, 499)]
    assert gone[0]["queued_ms"] > 0
    events = await queue.gateway.events()
    assert [event["outcome"] for event in events] == ["ok", "ok"]


async def test_a_wait_that_would_be_too_long_is_a_429_at_once(queue: Queue) -> None:
    queue.add_team("growth", requests_per_minute=1, request_capacity=1)
    assert (await queue.ask("first", "growth"))[0] == 200
    status, headers, body = await queue.ask("second", "growth", wait="20s")
    assert status == 429
    assert 20_000 < int(headers["retry-after-ms"]) <= 60_000
    assert body["error"]["code"] == "rate_limit_exceeded"
    assert queue.seen == ["first"]
    await queue.gateway.settled()
    assert queue.gateway.metric("tollgate_queue_refusals_total", queue="limits", reason="too_long") == 1
    assert queue.gateway.metric("tollgate_rate_limited_total", team="growth", limit="requests") == 1
    status, _, body = await queue.ask("third", "growth", wait="a while")
    assert (status, body["error"]["param"]) == (400, WAIT)


async def test_a_key_may_wait_without_saying_so(queue: Queue) -> None:
    queue.add_team("growth", requests_per_minute=240, request_capacity=1, max_wait_ms=10_000)
    names = ["r0", "r1", "r2"]
    for name in names:
        await queue.line_up(name, "growth", queue.limits_waiting, wait=None)
    assert [(await queue.asked[name])[0] for name in names] == [200] * 3
    assert queue.served == names
    queue.ask("r3", "growth", wait=None)
    assert (await queue.ask("off", "growth", wait="0"))[0] in {200, 429}
    await queue.asked["r3"]


async def test_a_queue_that_is_full_is_a_429_at_once(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"queue.max_waiting": 2}))
    queue.add_team("growth", requests_per_minute=4, request_capacity=1)
    for name in ("r0", "r1", "r2"):
        await queue.line_up(name, "growth", queue.limits_waiting, wait="60s")
    assert (await queue.asked["r0"])[0] == 200
    assert queue.limits_waiting() == 2
    status, headers, _ = await queue.ask("r3", "growth", wait="60s")
    assert status == 429
    assert int(headers["retry-after-ms"]) > 15_000, "behind those who wait"
    assert queue.limits_waiting() == 2
    await leave(queue)
    assert queue.gateway.metric("tollgate_queue_refusals_total", queue="limits", reason="full") == 1


async def test_one_that_is_out_of_time_is_a_429(queue: Queue) -> None:
    queue.add_team("growth", max_parallel=1)
    async with AsyncExitStack() as stack:
        headers = {"Authorization": f"Bearer {queue.keys['growth']}", "x-simulate-chunk-ms": "5000"}
        post = partial(queue.gateway.session.post, f"{queue.gateway.worker.base_url}/chat/completions")
        slow = await stack.enter_async_context(
            post(json={**UNCACHED, "stream": True, "max_tokens": 100}, headers=headers)
        )
        assert slow.status == 200
        status, told, body = await queue.ask("late", "growth", wait="200ms")
        assert status == 429
        assert "at one time" in body["error"]["message"]
        assert int(told["x-tollgate-queue-wait-ms"]) > 100
        waits = queue.ask("waits", "growth", wait="30s")
        await until(lambda: queue.limits_waiting() == 1)
        slow.close()
    assert (await waits)[0] == 200, "the place was free, and was taken"
    assert queue.gateway.metric("tollgate_queue_refusals_total", queue="limits", reason="deadline") == 1


async def test_a_stream_waits_as_well(queue: Queue) -> None:
    queue.add_team("growth", requests_per_minute=240, request_capacity=1)
    for name in ("s0", "s1"):
        await queue.line_up(name, "growth", queue.limits_waiting, stream=True)
    for name in ("s0", "s1"):
        status, headers, body = await queue.asked[name]
        assert status == 200
        assert headers["content-type"].startswith("text/event-stream")
        assert body.endswith(b"data: [DONE]\n\n")


async def test_the_pace_is_no_part_of_upstreams_deadline(open_gateway: Open) -> None:
    changes = {"upstream.requests_per_minute": 20, "upstream.total_timeout_seconds": 2.0}
    queue = Queue(await open_gateway(**changes))
    queue.add_team("growth")
    for number in range(2):
        await queue.line_up(f"r{number}", "growth", lambda: queue.upstream_waiting, wait=None)
    answers = [await task for task in queue.asked.values()]
    assert [status for status, _, _ in answers] == [200] * 2
    assert int(answers[-1][1]["x-tollgate-queue-wait-ms"]) > 2_000
    await queue.gateway.settled()
    assert max(record["upstream_ms"] for record in queue.gateway.records()) < 2_000


async def test_at_shutdown_those_who_wait_are_let_go_with_a_503(open_gateway: Open) -> None:
    changes = {"upstream.requests_per_minute": 1, "upstream.pacing_deadline_seconds": 300}
    queue = Queue(await open_gateway(**changes))
    queue.add_team("growth", requests_per_minute=2, request_capacity=1)
    queue.add_team("sales")
    await queue.ask("first", "growth")
    await queue.line_up("limits", "growth", queue.limits_waiting, wait="50s")
    await queue.line_up("pace", "sales", lambda: queue.upstream_waiting, wait=None)
    assert not any(queue.asked[name].done() for name in ("limits", "pace"))
    await queue.gateway.stop()
    for name in ("limits", "pace"):
        status, _, body = await queue.asked[name]
        assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert queue.seen == ["first"]


async def test_a_model_that_upstream_refuses_holds_back_no_other(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"upstream.max_attempts": 1, "upstream.pacing_deadline_seconds": 60}))
    queue.add_team("crowd")
    queue.add_team("other")
    post = partial(queue.gateway.session.post, f"{queue.gateway.worker.base_url}/chat/completions?name=refused")
    headers = {
        "Authorization": f"Bearer {queue.keys['crowd']}", "x-simulate-status": "429", "x-simulate-retry-after": "40",
    }  # fmt: skip
    for _ in range(2):
        async with post(json={**UNCACHED, "model": "gpt-4o"}, headers=headers) as response:
            assert response.status == 429
    waits = queue.ask("waits", "crowd", wait=None, model="gpt-4o")
    await until(lambda: queue.upstream_waiting == 1)
    status, told, _ = await queue.ask("one", "other", wait=None, model="gpt-4o-mini")
    assert (status, told["x-tollgate-queue-wait-ms"]) == (200, "0")
    assert queue.seen == ["refused", "refused", "one"]
    assert not waits.done()
    await leave(queue)


async def test_who_would_be_held_back_too_long_is_told_at_once(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"upstream.max_attempts": 1}))
    queue.add_team("growth")
    post = partial(queue.gateway.session.post, f"{queue.gateway.worker.base_url}/chat/completions?name=refused")
    headers = {
        "Authorization": f"Bearer {queue.keys['growth']}", "x-simulate-status": "429", "x-simulate-retry-after": "40",
    }  # fmt: skip
    for _ in range(2):
        async with post(json=UNCACHED, headers=headers) as response:
            assert response.status == 429
    status, told, body = await queue.ask("told", "growth", wait=None)
    assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert 30 < int(told["retry-after"]) <= 40
    assert queue.seen == ["refused", "refused"]
    assert queue.gateway.metric("tollgate_queue_refusals_total", queue="upstream", reason="too_long") == 1
    assert queue.gateway.metric("tollgate_queue_wait_seconds_count", queue="upstream") == 0


async def test_an_upstream_that_refuses_again_and_again_is_left_alone(open_gateway: Open) -> None:
    queue = Queue(await open_gateway(**{"upstream.max_attempts": 1}))
    queue.add_team("growth")
    post = partial(queue.gateway.session.post, f"{queue.gateway.worker.base_url}/chat/completions?name=refused")
    headers = {
        "Authorization": f"Bearer {queue.keys['growth']}", "x-simulate-status": "429", "x-simulate-retry-after": "3",
    }  # fmt: skip
    for _ in range(2):
        async with post(json=UNCACHED, headers=headers) as response:
            assert response.status == 429
    waits = queue.ask("waits", "growth", wait=None)
    await until(lambda: waits.done() or queue.upstream_waiting == 1)
    assert queue.seen == ["refused", "refused"]
    status, told, _ = await waits
    assert status == 200
    assert int(told["x-tollgate-queue-wait-ms"]) > 0
