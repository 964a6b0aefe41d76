"""What an answer from the cache costs beside a bare aiohttp server that gives the same bytes.

`python bench/hits.py`: a closed loop of callers (wrk where it is on PATH, else a loop of our own; one of them for all)
drives every server in turn, again and again, and the medians are set against that of the bare server. All features are
on: keys, limits, ledger, metrics, a log line for each request. `--profile FILE` runs the embedded one under cProfile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
from redis_calls import own_server
from startup import free_ports, wait_until_ready

TOLLGATE = (sys.executable, "-m", "proxy")
CONNECTIONS = 32
WARM_SECONDS = 1.0
TARGET = 0.5
STATIC = "aiohttp, static answer"
EMBEDDED = "hit, embedded"
QUESTION = json.dumps(
    {
        "model": "gpt-4o-mini",
        "temperature": 0,
        "messages": [
            {"role": "system", "content": "You classify tickets. Answer with one word: billing, outage or other."},
            {"role": "user", "content": "The dashboard says that my invoice is overdue, but it was paid. " * 4},
        ],
    }
).encode()
WRK_SCRIPT = """
wrk.method = "POST"
wrk.body = [==[%s]==]
wrk.headers["Content-Type"] = "application/json"
function done(summary, latency)
  local failed = 0
  for _, count in pairs(summary.errors) do failed = failed + count end
  io.write(string.format('\\n{"count": %%d, "took": %%d, "failed": %%d, "p50": %%f, "p99": %%f}\\n',
    summary.requests, summary.duration, failed, latency:percentile(50), latency:percentile(99)))
end
"""
"""Prints its figures, in microseconds, as one line of JSON."""


@dataclass(frozen=True)
class Server:
    """One that is measured."""

    name: str
    port: int
    process: psutil.Process
    headers: dict[str, str]


Drive = Callable[[Server, float], tuple[int, float, float, float]]
"""Asks for so many seconds: answers, seconds, and microseconds in which half of the answers, and 99 of 100, came."""


@dataclass(frozen=True)
class Round:
    """What one drive saw."""

    per_second: float
    cpu_microseconds: float
    p50_microseconds: float
    p99_microseconds: float


@dataclass(frozen=True)
class Figure:
    """The medians of a server, and how they stand beside the bare one's."""

    name: str
    per_second: float
    of_static: float
    cpu_microseconds: float
    of_static_cpu: float
    p50_microseconds: float
    p99_microseconds: float


def main() -> None:
    """Measure, print, and write the same as JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--seconds", type=float, default=2.0, help="of one drive")
    arguments.add_argument("--client", choices=["wrk", "own"], default="wrk" if shutil.which("wrk") else "own")
    arguments.add_argument("--profile", type=Path, help="where cProfile's record of the embedded server goes")
    arguments.add_argument("--json", type=Path, default=Path("bench/results/hits.json"))
    arguments.add_argument("--serve-static", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.serve_static:
        serve_static(chosen.serve_static, sys.stdin.buffer.read())
        return
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tollgate-bench-")))
        servers = start_all(stack, place, chosen.profile)
        drive = partial(by_wrk, place) if chosen.client == "wrk" else by_own_loop
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for server in servers:
            measured(drive, server, WARM_SECONDS)
        for _ in range(chosen.rounds):
            for server in servers:
                rounds[server.name].append(measured(drive, server, chosen.seconds))
    figures = [figure(name, rounds) for name in rounds]
    report(figures, chosen.client)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps([asdict(each) for each in figures], indent=2) + "\n")


def start_all(stack: ExitStack, place: Path, profile: Path | None) -> list[Server]:
    """The gateways, each with the answer in its cache, and a bare server that gives what they gave."""
    upstream = stack.enter_context(simulator())
    limits, answers = stack.enter_context(own_server()), stack.enter_context(own_server())
    redis = f'redis_url = "{limits}"\ncache_redis_url = "{answers}"\n'
    modes = {
        EMBEDDED: "",
        "hit, Redis for limits and answers": redis,
        "hit, the same with answers at hand (L1)": f"{redis}[cache]\nl1_seconds = 10\n",
    }
    servers, said = [], b""
    for number, (name, settings) in enumerate(modes.items()):
        command: Sequence[str] = TOLLGATE
        if profile is not None and name == EMBEDDED:
            command = (sys.executable, "-m", "cProfile", "-o", str(profile), "-m", "proxy")
        servers.append(stack.enter_context(gateway(place / str(number), name, settings, upstream, command)))
        first, said = ask(servers[-1]), ask(servers[-1])
        if first != said:
            raise SystemExit(f"{name}: the second answer is not the first")
    return [stack.enter_context(static(said)), *servers]


@contextmanager
def running(*command: str, stdin: bytes = b"", **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A child without this environment's settings, ended at the end."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TOLLGATE_", "OPENAI_"))}
    child = subprocess.Popen(
        command, env=kept | environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if child.stdin is not None:
        child.stdin.write(stdin)
        child.stdin.close()
    try:
        yield child
    finally:
        child.terminate()
        child.wait(timeout=30)


@contextmanager
def simulator() -> Iterator[str]:
    """An upstream, and its base URL."""
    port, _ = free_ports()
    with running(*TOLLGATE, "simulate-openai", "--port", str(port)) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/simulator/stats", child, time.perf_counter())
        yield f"http://127.0.0.1:{port}/v1"


@contextmanager
def gateway(
    place: Path, name: str, settings: str, upstream: str, command: Sequence[str] = TOLLGATE
) -> Iterator[Server]:
    """A gateway with one team on the unlimited tier, which counts all the same."""
    place.mkdir()
    config = place / "tollgate.toml"
    config.write_text(settings)
    here = ("--config", str(config), "--data-dir", str(place / "data"))
    port, admin_port = free_ports()
    ports = ("--port", str(port), "--admin-port", str(admin_port), "--upstream", upstream)
    with running(*command, "serve", *here, *ports, OPENAI_API_KEY="sk-upstream") as child:
        wait_until_ready(f"http://127.0.0.1:{admin_port}/readyz", child, time.perf_counter())
        limits = ("--requests-per-minute", "1000000000", "--tokens-per-minute", "1000000000")
        tell(*TOLLGATE, "teams", "add", "bench", "--tier", "payg", *limits, *here)
        key = json.loads(tell(*TOLLGATE, "keys", "issue", "--team", "bench", "--json", *here))["key"]
        yield Server(name, port, psutil.Process(child.pid), {"Authorization": f"Bearer {key}"})


@contextmanager
def static(body: bytes) -> Iterator[Server]:
    """The bare server."""
    port, _ = free_ports()
    with running(sys.executable, __file__, "--serve-static", str(port), stdin=body) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child, time.perf_counter())
        yield Server(STATIC, port, psutil.Process(child.pid), {"Authorization": "Bearer sk-nobody"})


def serve_static(port: int, body: bytes) -> None:
    """Answer everything with `body`, as aiohttp's documentation does it."""
    import uvloop  # noqa: PLC0415 - not everywhere
    from aiohttp import web  # noqa: PLC0415 - wanted in the child alone

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    loop = uvloop.new_event_loop()
    web.run_app(application, host="127.0.0.1", port=port, access_log=None, print=None, loop=loop)


def tell(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ask(server: Server) -> bytes:
    """One answer."""
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    headers = {**server.headers, "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, QUESTION, headers), timeout=30) as answer:
        body: bytes = answer.read()
    return body


def measured(drive: Drive, server: Server, seconds: float) -> Round:
    """Drive a server, and see what it took of the CPU."""
    before = server.process.cpu_times()
    count, took, p50, p99 = drive(server, seconds)
    after = server.process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    return Round(count / took, spent / count * 1e6, p50, p99)


def by_wrk(place: Path, server: Server, seconds: float) -> tuple[int, float, float, float]:
    """One thread of wrk."""
    script = place / "question.lua"
    script.write_text(WRK_SCRIPT % QUESTION.decode())
    headers = [part for name, value in server.headers.items() for part in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    said = tell("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{max(1, round(seconds))}s", "-s", str(script), *headers, url)
    seen = json.loads(said.splitlines()[-1])
    if seen["failed"]:
        raise SystemExit(f"{server.name}: {seen['failed']} of {seen['count']} requests failed")
    return seen["count"], seen["took"] / 1e6, seen["p50"], seen["p99"]


def by_own_loop(server: Server, seconds: float) -> tuple[int, float, float, float]:
    """The same from this process."""
    return asyncio.run(_closed_loop(server, seconds))


async def _closed_loop(server: Server, seconds: float) -> tuple[int, float, float, float]:
    told = {**server.headers, "Host": "127.0.0.1", "Content-Type": "application/json"}
    told["Content-Length"] = str(len(QUESTION))
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    request = f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + QUESTION
    waits: list[float] = []
    began = time.perf_counter()

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while (asked := time.perf_counter()) - began < seconds:
            writer.write(request)
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            if b" 200 " not in status:
                raise SystemExit(f"{server.name}: {status.decode()}")
            length = next(line for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            waits.append(time.perf_counter() - asked)
        writer.close()

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    took = time.perf_counter() - began
    waits.sort()
    return len(waits), took, waits[len(waits) // 2] * 1e6, waits[len(waits) * 99 // 100] * 1e6


def figure(name: str, rounds: dict[str, list[Round]]) -> Figure:
    """Take the medians."""

    def median(of: str, value: Callable[[Round], float]) -> float:
        return statistics.median(value(each) for each in rounds[of])

    per_second, cpu = (median(name, value) for value in (lambda r: r.per_second, lambda r: r.cpu_microseconds))
    return Figure(
        name,
        per_second,
        per_second / median(STATIC, lambda each: each.per_second),
        cpu,
        median(STATIC, lambda each: each.cpu_microseconds) / cpu,
        median(name, lambda each: each.p50_microseconds),
        median(name, lambda each: each.p99_microseconds),
    )


def report(figures: list[Figure], client: str) -> None:
    """Print the table."""
    print(f"{CONNECTIONS} connections, {'wrk' if client == 'wrk' else 'a client of our own'}; one process each\n")
    print(f"{'':42} {'answers/s':>10} {'of static':>10} {'CPU us':>8} {'of static':>10} {'p50 ms':>8} {'p99 ms':>8}")
    for each in figures:
        print(
            f"{each.name:42} {each.per_second:10,.0f} {each.of_static:10.2f} {each.cpu_microseconds:8.1f}"
            f" {each.of_static_cpu:10.2f} {each.p50_microseconds / 1e3:8.2f} {each.p99_microseconds / 1e3:8.2f}"
        )
    print(f"\ntarget: {EMBEDDED} >= {TARGET} of static")


if __name__ == "__main__":
    main()
