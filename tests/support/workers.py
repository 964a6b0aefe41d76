"""Several workers in tests: asking over many connections, and looking at the processes, the figures and the store."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import requests

from proxy.adapters.clock import SystemClock
from proxy.adapters.redis.fallback import Closed
from proxy.adapters.redis.limiter import RedisLimiter
from proxy.adapters.redis.scripts import Scripts
from proxy.core.bucket import Scope, Standing
from proxy.core.tiers import Limits, Schedule
from tests.support.redis_route import open_route
from tests.support.tollgate_process import Team, Tollgate, eventually

__all__ = ["ask", "burst", "figure", "has_ended", "slow_stream", "standing_in_redis", "until_all_serve", "workers_of"]

_ASK = {"model": "gpt-4o-mini", "max_tokens": 8, "messages": [{"role": "user", "content": "Who?"}]}
_AT_ONCE = 20


def ask(gateway: Tollgate, team: Team, **more: Any) -> requests.Response:
    """One completion over a connection of its own, so that any of the workers may be dealt it."""
    with requests.Session() as session:
        session.trust_env = False
        url = f"{gateway.base_url}/chat/completions"
        return session.post(url, json=_ASK, headers={**team.headers, "Connection": "close"}, timeout=30, **more)


def burst(gateways: Sequence[Tollgate], team: Team, count: int) -> Counter[int]:
    """How so many requests ended, made at one time, and to each gateway in turn."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        asked = pool.map(lambda number: ask(gateways[number % len(gateways)], team).status_code, range(count))
        return Counter(asked)


def slow_stream(session: requests.Session, gateway: Tollgate, team: Team, chunk_ms: int) -> requests.Response:
    """A stream that has begun; its connection stays with one worker."""
    answer = session.post(
        f"{gateway.base_url}/chat/completions",
        json=_ASK | {"stream": True},
        headers={**team.headers, "x-simulate-chunk-ms": str(chunk_ms)},
        stream=True,
        timeout=30,
    )
    assert answer.status_code == 200
    return answer


def workers_of(gateway: Tollgate) -> list[psutil.Process]:
    """The processes that hold a seat, the oldest first."""
    children = psutil.Process(gateway._child.pid).children()
    # Of two that were started in one tick of the clock the lower number was first.
    return sorted(
        (child for child in children if not has_ended(child)), key=lambda child: (child.create_time(), child.pid)
    )


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until_all_serve(gateway: Tollgate, times: int) -> None:
    """Wait until workers have said so many times, over all, that they serve."""
    eventually(
        lambda: len(re.findall(r"worker \d+: serving", gateway.stderr)) >= times,
        seconds=60,
        what=f"{times} starts of workers",
    )


def figure(gateway: Tollgate, name: str, **labels: str) -> float:
    """The sum of a metric over all label sets that have these labels."""
    found = re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", gateway.metrics(), re.MULTILINE)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(float(value) for told, value in found if all(each in told for each in wanted))


def standing_in_redis(url: str, team: Team, limits: Limits) -> Standing:
    """Where the team's own bucket stands in the store."""

    async def look() -> Standing:
        async with open_route(url) as route:
            limiter = RedisLimiter(Scripts(route), SystemClock(), Closed(), lambda *_: None)
            return (await limiter.peek(team.name, (Scope("team", Schedule(limits, limits)),)))[0]

    return asyncio.run(look())
