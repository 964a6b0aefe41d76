"""Load: as much as a server takes from so many callers (closed loop), or so many requests a second (open loop).

The closed loop is wrk's, or one of our own where wrk is missing. In the open loop, requests are due at fixed instants,
whether earlier ones were answered or not; a latency counts from the instant at which the request was due, so the time
in which it waited for a free connection, or for us, is in it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, replace

from loops import GRACE_SECONDS, ClosedLoop, OpenLoop, Waits, run_precisely
from question import CONNECTIONS, NUMBER, QUESTION, Load
from servers import PATH, Server

__all__ = ["CONNECTIONS", "NUMBER", "QUESTION", "Load", "Seen", "Waits", "closed_loop", "default_client", "open_loop"]

OPEN_CONNECTIONS = 128
SETTLE_SECONDS = 10.0
POLL_SECONDS = 0.1
TICK_SECONDS = 0.01
"""In which the kernel tells CPU time: what took less may be told as nothing."""
QUIET_POLLS = 3

WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = %(same)s
wrk.headers["Content-Type"] = "application/json"
local head, tail, number = %(head)s, %(tail)s, %(first)d
if %(numbered)s then
  request = function()
    number = number + 1
    return head .. string.format("%%012d", number %% %(numbers)d) .. tail
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
class Seen:
    """What one drive of a closed loop saw; the CPU is the server's, workers and all, for one request."""

    per_second: float
    cpu_microseconds: float
    p50_microseconds: float
    p99_microseconds: float

    @property
    def cores(self) -> float:
        """How many cores the server had, what it put off included: less than 1 where something held it up."""
        return self.per_second * self.cpu_microseconds / 1e6


def closed_loop(server: Server, load: Load, seconds: float, client: str = "wrk") -> Seen:
    """Ask as fast as answers come, over all connections; what the server puts off until later is in its CPU, too."""
    before = server.cpu_seconds()
    drive = _by_wrk if client == "wrk" else _by_own_loop
    count, took, refused, p50, p99 = drive(server, load, seconds)
    spent = max(settled(server) - before, TICK_SECONDS)
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
    numbered = load.fresh or load.in_turn > 0
    head, tail = (load.head(server) + load.body).split(NUMBER) if numbered else ("", "")
    texts = {"same": load.body, "head": head, "tail": tail}
    # A string of JSON is one of Lua as long as it is ASCII.
    script = WRK_SCRIPT % {
        **{name: json.dumps(text) for name, text in texts.items()},
        "first": load.first(),
        "numbers": load.in_turn or 10**12,
        "numbered": str(numbered).lower(),
    }
    headers = [part for name, value in server.headers.items() for part in ("-H", f"{name}: {value}")]
    whole = max(1, round(seconds))
    # Left alone, it takes for a failure what a busy machine keeps waiting for two seconds.
    patient = ("--timeout", f"{GRACE_SECONDS:.0f}s")
    with tempfile.NamedTemporaryFile("w", suffix=".lua", prefix="tollgate-bench-") as file:
        file.write(script)
        file.flush()
        url = f"http://127.0.0.1:{server.port}{PATH}"
        command = ("wrk", "-t1", f"-c{load.connections}", f"-d{whole}s", *patient, "-s", file.name, *headers, url)
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=whole + GRACE_SECONDS).stdout
    seen = json.loads(said.splitlines()[-1])
    if seen["failed"]:
        raise SystemExit(f"{server.name}: {seen['failed']} of {seen['count']} requests failed")
    return seen["count"], seen["took"] / 1e6, seen["refused"], seen["p50"], seen["p99"]


def _by_own_loop(server: Server, load: Load, seconds: float) -> tuple[int, float, int, float, float]:
    """The same from this process."""
    return run_precisely(ClosedLoop(server, load).run(seconds))


def open_loop(server: Server, load: Load, per_second: float, seconds: float) -> Waits:
    """Ask so many times a second, however long answers take; then leave the server time for what it put off."""
    waits = run_precisely(OpenLoop(server, replace(load, connections=OPEN_CONNECTIONS)).run(per_second, seconds))
    settled(server)
    return waits
