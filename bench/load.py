"""Load: as much as a server takes from so many callers (closed loop), or so many requests a second (open loop).

The closed loop is wrk's, or one of our own where wrk is missing. In the open loop, requests are due at fixed instants,
whether earlier ones were answered or not; a latency counts from the instant at which the request was due, so the time
in which it waited for a free connection, or for us, is in it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import selectors
import shutil
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from caller import Caller, CallFailed, connect
from servers import PATH, Server

Result = TypeVar("Result")

CONNECTIONS = 32
OPEN_CONNECTIONS = 128
GRACE_SECONDS = 30.0
SETTLE_SECONDS = 10.0
POLL_SECONDS = 0.1
QUIET_POLLS = 3
TIMER_SECONDS = 1e-6
"""A timer may be early by the grain of the clock."""
NUMBER = "############"
"""Stands in a body where each request has a number of its own."""
_BLOCKS = itertools.count(1)

QUESTION = json.dumps(
    {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "You classify tickets. Answer with one word: billing, outage or other."},
            {
                "role": "user",
                "content": f"Ticket {NUMBER}. " + ("The page says it is overdue, but it was paid. " * 9)[:236],
            },
        ],
    }
)
"""450 bytes of a request that is the same every time but for its number: an answer may be kept, and is not found."""

WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = %(same)s
wrk.headers["Content-Type"] = "application/json"
local head, tail, number = %(head)s, %(tail)s, %(first)d
if %(fresh)s then
  request = function()
    number = number + 1
    return head .. string.format("%%012d", number) .. tail
  end
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\n{"count": %%d, "took": %%d, "failed": %%d, "refused": %%d, "p50": %%f, "p99": %%f}\\n',
    summary.requests, summary.duration, errors.connect + errors.read + errors.write + errors.timeout, errors.status,
    latency:percentile(50), latency:percentile(99)))
end
"""
"""Prints what it saw, in microseconds, as one line of JSON."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: `body`, as it is or (`fresh`) with another number in it each time."""

    body: str = QUESTION
    fresh: bool = True
    refused: bool = False
    """Whether every answer should be a 4xx, but for the few that a limit lets through."""
    connections: int = CONNECTIONS

    def block(self) -> int:
        """The first of a hundred million numbers that nobody else has."""
        return next(_BLOCKS) * 100_000_000

    def head(self, server: Server) -> str:
        """All that stands before the body."""
        told = {"Host": f"127.0.0.1:{server.port}", **server.headers, "Content-Type": "application/json"}
        told["Content-Length"] = str(len(self.body.encode()))
        return f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in told.items()) + "\r\n"

    def requests(self, server: Server) -> Iterator[bytes]:
        """One request after the other, as bytes."""
        whole = (self.head(server) + self.body).encode()
        if not self.fresh:
            return itertools.repeat(whole)
        before, _, after = whole.partition(NUMBER.encode())
        return (b"%s%012d%s" % (before, number, after) for number in itertools.count(self.block()))


@dataclass(frozen=True, slots=True)
class Seen:
    """What one drive of a closed loop saw; the CPU is the server's, workers and all, for one request."""

    per_second: float
    cpu_microseconds: float
    p50_microseconds: float
    p99_microseconds: float


@dataclass(frozen=True, slots=True)
class Waits:
    """Latencies of an open loop, sorted, in microseconds; and how late the generator itself was, as its 99th of 100."""

    microseconds: tuple[float, ...]
    late_p99_microseconds: float

    def quantile(self, part: float) -> float:
        """The latency that so many had at most."""
        return quantile(self.microseconds, part)


def quantile(ordered: Sequence[float], part: float) -> float:
    """The least of the values that `part` of all do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * part) - 1)]


def closed_loop(server: Server, load: Load, seconds: float, client: str = "wrk") -> Seen:
    """Ask as fast as answers come, over all connections; what the server puts off until later is in its CPU, too."""
    before = server.cpu_seconds()
    drive = _by_wrk if client == "wrk" else _by_own_loop
    count, took, refused, p50, p99 = drive(server, load, seconds)
    spent = settled(server) - before
    as_told = count - refused <= 3 + took / 20 if load.refused else refused == 0
    if not count or not as_told:
        raise SystemExit(f"{server.name}: {refused} of {count} requests refused")
    return Seen(count / took, spent / count * 1e6, p50, p99)


def settled(server: Server) -> float:
    """Wait until a server has done what it put off, in bounds; its CPU seconds then."""
    until = time.monotonic() + SETTLE_SECONDS
    quiet, spent = 0, server.cpu_seconds()
    while quiet < QUIET_POLLS and time.monotonic() < until:
        time.sleep(POLL_SECONDS)
        now = server.cpu_seconds()
        quiet = quiet + 1 if now - spent < POLL_SECONDS / 5 else 0
        spent = now
    return spent


def default_client() -> str:
    """The client of a closed loop: wrk where it is on PATH."""
    return "wrk" if shutil.which("wrk") else "own"


def _by_wrk(server: Server, load: Load, seconds: float) -> tuple[int, float, int, float, float]:
    """One thread of wrk; it knows whole seconds alone."""
    head, tail = (load.head(server) + load.body).split(NUMBER) if load.fresh else ("", "")
    texts = {"same": load.body, "head": head, "tail": tail}
    # A string of JSON is one of Lua as long as it is ASCII.
    script = WRK_SCRIPT % {
        **{name: json.dumps(text) for name, text in texts.items()},
        "first": load.block(),
        "fresh": str(load.fresh).lower(),
    }
    headers = [part for name, value in server.headers.items() for part in ("-H", f"{name}: {value}")]
    whole = max(1, round(seconds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua", prefix="tollgate-bench-") as file:
        file.write(script)
        file.flush()
        url = f"http://127.0.0.1:{server.port}{PATH}"
        command = ("wrk", "-t1", f"-c{load.connections}", f"-d{whole}s", "-s", file.name, *headers, url)
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=whole + GRACE_SECONDS).stdout
    seen = json.loads(said.splitlines()[-1])
    if seen["failed"]:
        raise SystemExit(f"{server.name}: {seen['failed']} of {seen['count']} requests failed")
    return seen["count"], seen["took"] / 1e6, seen["refused"], seen["p50"], seen["p99"]


def _by_own_loop(server: Server, load: Load, seconds: float) -> tuple[int, float, int, float, float]:
    """The same from this process."""
    return run_precisely(ClosedLoop(server, load).run(seconds))


def run_precisely(work: Coroutine[Any, Any, Result]) -> Result:
    """Run on a loop whose timers keep to the microsecond: epoll's, and libuv's, know milliseconds alone."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(work)


class _Loop:
    """What both loops share: connections, the requests to come, and an end."""

    def __init__(self, server: Server, load: Load) -> None:
        self._load = load
        self._server = server
        self._requests = load.requests(server)
        self._callers: list[Caller] = []
        self._refused = 0
        self._over: asyncio.Future[None] | None = None

    async def _ask_all(self, told: Callable[[Caller, int], None], begin: Callable[[], None], seconds: float) -> None:
        """Connect, begin, and wait for the end; a failure ends it."""
        self._over = asyncio.get_running_loop().create_future()
        try:
            for _ in range(self._load.connections):
                self._callers.append(await connect(self._server.port, told, self._failed))
            begin()
            async with asyncio.timeout(seconds + GRACE_SECONDS):
                await self._over
        except (CallFailed, TimeoutError, OSError) as error:
            raise SystemExit(f"{self._server.name}: {error!r}") from None
        finally:
            for caller in self._callers:
                caller.close()

    def _failed(self, error: CallFailed) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)

    def _finish(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


class ClosedLoop(_Loop):
    """Each connection asks again as soon as it is answered, until time is over."""

    async def run(self, seconds: float) -> tuple[int, float, int, float, float]:
        """Answers, seconds, refusals, and the microseconds in which half, and 99 of 100, were answered."""
        loop = asyncio.get_running_loop()
        asked: dict[Caller, float] = {}
        waits: list[float] = []
        began = until = 0.0

        def told(caller: Caller, status: int) -> None:
            now = loop.time()
            waits.append(now - asked.pop(caller))
            self._refused += status >= 400
            if now < until:
                ask(caller)
            elif not asked:
                self._finish()

        def ask(caller: Caller) -> None:
            asked[caller] = loop.time()
            caller.ask(next(self._requests))

        def begin() -> None:
            nonlocal began, until
            began = loop.time()
            until = began + seconds
            for caller in self._callers:
                ask(caller)

        await self._ask_all(told, begin, seconds)
        took = loop.time() - began
        waits.sort()
        return len(waits), took, self._refused, quantile(waits, 0.5) * 1e6, quantile(waits, 0.99) * 1e6


class OpenLoop(_Loop):
    """Requests are due at fixed instants; one that finds no free connection waits for it, and its latency with it."""

    async def run(self, per_second: float, seconds: float) -> Waits:
        """Ask `per_second * seconds` times, and wait for all answers."""
        loop = asyncio.get_running_loop()
        count = max(1, round(per_second * seconds))
        due_of: dict[Caller, float] = {}
        waiting: deque[float] = deque()
        free: list[Caller] = []
        waits: list[float] = []
        late: list[float] = []
        began = 0.0
        arrived = 0

        def arrive() -> None:
            nonlocal arrived
            now = loop.time()
            while arrived < count and (due := began + arrived / per_second) <= now + TIMER_SECONDS:
                waiting.append(due)
                late.append(max(0.0, now - due))
                arrived += 1
            if arrived < count:
                loop.call_at(began + arrived / per_second, arrive)
            serve()

        def serve() -> None:
            while waiting and free:
                caller = free.pop()
                due_of[caller] = waiting.popleft()
                caller.ask(next(self._requests))

        def told(caller: Caller, status: int) -> None:
            waits.append(loop.time() - due_of.pop(caller))
            self._refused += status >= 400
            free.append(caller)
            serve()
            if len(waits) == count:
                self._finish()

        def begin() -> None:
            nonlocal began
            free.extend(self._callers)
            began = loop.time()
            arrive()

        await self._ask_all(told, begin, seconds)
        if self._refused and not self._load.refused:
            raise SystemExit(f"{self._server.name}: {self._refused} of {count} requests refused")
        return Waits(tuple(sorted(wait * 1e6 for wait in waits)), quantile(sorted(late), 0.99) * 1e6)


def open_loop(server: Server, load: Load, per_second: float, seconds: float) -> Waits:
    """Ask so many times a second, however long answers take; then leave the server time for what it put off."""
    waits = run_precisely(OpenLoop(server, replace(load, connections=OPEN_CONNECTIONS)).run(per_second, seconds))
    settled(server)
    return waits
