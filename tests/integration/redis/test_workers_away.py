"""What workers do while their Redis is dead, frozen, cut off, emptied or being replaced, and once it is back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from contextlib import asynccontextmanager, contextmanager

from proxy.core.tiers import Limits
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_server import RedisServer, give_up_soon, run_sentinel
from tests.support.redis_server import eventually as until_redis
from tests.support.tollgate_process import eventually, run_tollgate
from tests.support.workers import ask, burst, figure, standing_in_redis, until_all_serve

WORKERS = 2
RATE, CAPACITY = 600, 30
FREE = 20
"""Requests a minute of the tier, and at once."""


@contextmanager
def workers(simulator, place, url, policy="share", deadline_ms=1_000):
    """`deadline_ms`: one that a busy machine keeps, and after which a Redis that stands still is away."""
    settings = f"""
[server]
workers = 2
[limits]
when_redis_is_away = "{policy}"
redis_deadline_ms = {deadline_ms}
"""
    options = ("--redis-url", url)
    with run_tollgate(place, simulator.base_url, simulator.key, settings=settings, options=options) as gateway:
        until_all_serve(gateway, WORKERS)
        yield gateway


def is_degraded(gateway):
    return figure(gateway, "tollgate_degraded", store="limiter") == 1


def until_degraded(gateway):
    eventually(lambda: is_degraded(gateway), what="tollgate_degraded")


def until_recovered(gateway):
    eventually(lambda: not is_degraded(gateway), what="no tollgate_degraded")


def until_said(gateway, words, times=1):
    eventually(lambda: gateway.stderr.count(words) >= times, what=words)


def limited_team(gateway, name, rate=RATE):
    return gateway.add_team(name, requests_per_minute=rate, request_capacity=CAPACITY)


@asynccontextmanager
async def away(how, redis, proxy):
    if how == "killed":
        redis.kill()
        yield
        redis.start()
    elif how == "frozen":
        with redis.frozen():
            yield
    else:
        proxy.refuses = True
        proxy.cut()
        yield
        proxy.refuses = False


async def test_shares_hold_the_limit_through_every_outage_and_are_charged_afterwards(simulator, tmp_path):
    in_thread = asyncio.to_thread
    with RedisServer() as redis:
        async with run_tcp_proxy(("127.0.0.1", redis.port)) as proxy:
            with workers(simulator, tmp_path, f"redis://127.0.0.1:{proxy.port}", deadline_ms=500) as gateway:
                for outage, how in enumerate(("killed", "frozen", "cut"), start=1):
                    # The proxy answers nobody while its own loop waits for the workers to start.
                    await in_thread(until_recovered, gateway)
                    team = await in_thread(limited_team, gateway, how)
                    began = time.monotonic()
                    # Both workers have seen the bucket used up when Redis goes away.
                    ended = await in_thread(burst, [gateway], team, 40)
                    async with away(how, redis, proxy):
                        await in_thread(until_degraded, gateway)
                        decisions = figure(gateway, "tollgate_degraded_decisions_total", policy="share")
                        while_away = Counter()
                        # A part has its rate from a second after the loss on.
                        async with asyncio.timeout(60):
                            while while_away[200] < 10:
                                while_away += await in_thread(burst, [gateway], team, 20)
                                assert ended[200] + while_away[200] <= CAPACITY + RATE * (time.monotonic() - began) / 60
                        assert set(while_away) <= {200, 429}
                        decided = figure(gateway, "tollgate_degraded_decisions_total", policy="share") - decisions
                        assert decided == while_away.total()
                    ended += while_away
                    # Redis that was killed has forgotten what it had given: a burst more, at most.
                    forgotten = CAPACITY if how == "killed" else 0
                    for _ in range(4):
                        ended += await in_thread(burst, [gateway], team, 40)
                        assert ended[200] <= CAPACITY + forgotten + RATE * (time.monotonic() - began) / 60
                    await in_thread(until_recovered, gateway)
                    for said in ("Redis does not answer; limits are held by the policy 'share'", "Redis answers again"):
                        await in_thread(until_said, gateway, said, outage)
                    assert (await in_thread(burst, [gateway], team, 2)).keys() <= {200, 429}


def test_what_was_used_is_charged_though_the_team_does_not_come_back(simulator, tmp_path):
    with RedisServer() as redis, workers(simulator, tmp_path, redis.url, deadline_ms=500) as gateway:
        team = limited_team(gateway, "slow", rate=30)
        limits = Limits(30, None, CAPACITY)
        assert burst([gateway], team, 10) == {200: 10}
        redis.kill()
        began = time.monotonic()
        until_degraded(gateway)
        ended = burst([gateway], team, 80)
        # Whatever is left of the thirty, the one cannot know that the other has not had it.
        assert ended[200] <= 30 * (time.monotonic() - began) / 60
        assert set(ended) <= {200, 429}

        def one_passes():
            ended.update([ask(gateway, team).status_code])
            return ended[200]

        eventually(one_passes, seconds=60, what="a part's first request")
        redis.start()

        # Redis has lost all it knew: it is charged with what was used meanwhile, and with no more.
        def charged():
            return CAPACITY - standing_in_redis(redis.url, team, limits).requests.remaining

        # Looked for from the first moment on: in two seconds as much has come back.
        assert 1 <= eventually(charged, seconds=30, what="the charge") <= ended[200]
        until_recovered(gateway)
        assert charged() <= ended[200]


def test_closed_refuses_in_openais_shape_and_open_lets_pass(simulator, tmp_path):
    with (
        RedisServer() as redis,
        workers(simulator, tmp_path / "closed", redis.url, "closed") as closed,
        workers(simulator, tmp_path / "open", redis.url, "open") as opened,
    ):
        teams = {gateway: gateway.add_team("growth", "free") for gateway in (closed, opened)}
        assert [ask(gateway, team).status_code for gateway, team in teams.items()] == [200, 200]
        with redis.frozen():
            for gateway in teams:
                until_degraded(gateway)
            for _ in range(4):
                answer = ask(closed, teams[closed])
                assert answer.status_code == 503
                assert int(answer.headers["Retry-After"]) >= 1
                error = answer.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["type"] == "service_unavailable_error"
            decisions = figure(opened, "tollgate_degraded_decisions_total", policy="open")
            assert burst([opened], teams[opened], 60) == {200: 60}
            assert figure(opened, "tollgate_degraded_decisions_total", policy="open") - decisions == 60
        for gateway, team in teams.items():
            until_recovered(gateway)
            # What passed uncounted stays so; what was in the air when it froze may be charged, and no more.
            assert ask(gateway, team).status_code in {200, 429}
        began = time.monotonic()
        passed = burst([closed], teams[closed], 60)[200]
        assert passed <= FREE + FREE * (time.monotonic() - began) / 60
        until_said(closed, "held by the policy 'closed'")


@contextmanager
def load(gateway, team):
    """Requests without end beside the block, and how they ended so far."""
    ended, stop = Counter(), threading.Event()

    def go_on():
        while not stop.is_set():
            ended[ask(gateway, team).status_code] += 1

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_store_that_is_emptied_gives_one_burst_more(simulator, tmp_path):
    with RedisServer() as redis, workers(simulator, tmp_path, redis.url, deadline_ms=10_000) as gateway:
        team = limited_team(gateway, "growth", rate=6)
        began = time.monotonic()
        with load(gateway, team) as ended:
            eventually(lambda: ended[429] > 5, what="the limit")
            first = ended[200]
            redis.ask("FLUSHALL")
            eventually(lambda: ended[200] >= first + CAPACITY, seconds=30, what="service goes on")
            refused = ended[429]
            eventually(lambda: ended[429] > refused + 5, what="the limit again")
        assert set(ended) == {200, 429}
        assert ended[200] <= 2 * CAPACITY + 6 * (time.monotonic() - began) / 60
        assert figure(gateway, "tollgate_degraded_decisions_total") == 0
        # Each worker that was served by the bucket misses it, and tells of it within half a second.
        eventually(lambda: figure(gateway, "tollgate_limiter_lost_buckets_total"), what="the loss is counted")
        assert figure(gateway, "tollgate_limiter_lost_buckets_total") <= WORKERS
        assert figure(gateway, "tollgate_store_events_total", event="connected") >= WORKERS


def test_a_failover_gives_one_burst_more_at_most_and_ends(simulator, tmp_path):
    with RedisServer() as primary, RedisServer(f"replicaof 127.0.0.1 {primary.port}") as replica:
        until_redis(lambda: replica.ask("INFO")["master_link_status"] == "up", "the replica follows")
        with run_sentinel(primary) as sentinel:
            until_redis(lambda: knows(sentinel), "it is known")
            url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster"
            with workers(simulator, tmp_path, url) as gateway:
                team = limited_team(gateway, "growth", rate=6)
                began = time.monotonic()
                with load(gateway, team) as ended:
                    eventually(lambda: ended[429] > 5, what="the limit")
                    primary.kill()
                    # As long as nobody takes its place.
                    until_degraded(gateway)
                    give_up_soon(sentinel)
                    until_redis(lambda: replica.ask("INFO")["role"] == "master", "a new primary")
                    until_recovered(gateway)
                    refused = ended[429]
                    eventually(lambda: ended[429] > refused + 5, what="the limit by the new primary")
                assert set(ended) == {200, 429}
                assert ended[200] <= 2 * CAPACITY + 6 * (time.monotonic() - began) / 60 + 1


def knows(sentinel):
    for replica in sentinel.ask("SENTINEL", "REPLICAS", "mymaster"):
        said = replica if isinstance(replica, dict) else dict(zip(replica[::2], replica[1::2], strict=True))
        return said["flags"] == "slave" and said["master-link-status"] == "ok"
    return False
