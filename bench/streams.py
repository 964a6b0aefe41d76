"""Streams: what a gateway adds before the first chunk, what a chunk costs, and two thousand of them at once.

`python bench/streams.py`: the upstream is `bench/upstream.py`, asked straight, through the bare pass-through and
through Tollgate in turn. No client asks for usage, so that Tollgate asks for it itself and takes it out of every chunk
again.

* *Time to first chunk* is from the write of a request until the first bytes of an event are there, one request after
  the other over one connection; what is added is the difference of the medians of a round.
* *CPU per chunk* is what a server takes for 50 streams at once, 100 chunks a second each, less what as many streams
  take that end after one chunk. Answers that may be kept are copied for the cache, and can be joined by others.
* *At once* are 2,000 streams of a chunk a second: resident memory at the peak, less that before, for each; the longest
  stall of the loop (`bench/watched.py`) while all of them run, and while they begin.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from figures import Figure, arguments, deliver
from processes import workbench
from servers import PATH, Server, bare, gateway, own_upstream
from stalls import Watched, watched_bare, watched_gateway

STREAMS = 2_000
OPEN_FILES = 2 * STREAMS + 500
AT_ONCE = 50
CHUNKS = 200
INTERVAL_MS = 10.0
BEGIN_AT_ONCE = 16
"""New streams before others get a turn: who asks for two thousand streams does not do so in one instant."""
SLOW_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
SETTINGS = f"[upstream]\nmax_connections = {STREAMS + 100}\n"
END = b"\r\n0\r\n\r\n"


def request(server: Server, chunks: int, number: int, *, kept: bool = False) -> bytes:
    """One that asks for a stream; what is not `kept` has a temperature."""
    body = json.dumps(
        {
            "model": "gpt-4o-mini",
            "stream": True,
            "temperature": 0 if kept else 0.7,
            "max_tokens": chunks,
            "messages": [{"role": "user", "content": f"Tell ticket {number} in as many words as you like."}],
        }
    ).encode()
    told = {"Host": "127.0.0.1", **server.headers, "Content-Type": "application/json", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body


def first_chunks(server: Server, count: int) -> list[float]:
    """Seconds until the first chunk, of one request after the other."""
    waits = []
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=30)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            asked = request(server, 2, number)
            begun = time.perf_counter()
            connection.sendall(asked)
            said = connection.recv(65_536)
            while b"data: " not in said:
                said += received(connection)
            waits.append(time.perf_counter() - begun)
            while not said.endswith(END):
                said += received(connection)
            if not said.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{server.name}: {said[:60]!r}")
    return waits


def received(connection: socket.socket) -> bytes:
    """What has come; it is a failure when the other side has closed."""
    said = connection.recv(65_536)
    if not said:
        raise SystemExit("the stream was cut")
    return said


class Listener(asyncio.Protocol):
    """Asks for one stream, and counts what comes."""

    def __init__(self, asked: bytes) -> None:
        self._asked = asked
        self._head = self._tail = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # of a stream, always
        self._transport.write(self._asked)

    def data_received(self, data: bytes) -> None:
        """See the first chunk, and the last."""
        if not self.begun.done():
            self._head += data
            if b"data: " not in self._head:
                return
            if not self._head.startswith(b"HTTP/1.1 200"):
                self._transport.abort()
                return
            self.begun.set_result(None)
        self._tail = (self._tail + data)[-len(END) :]
        if self._tail == END and not self.ended.done():
            self.ended.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """A stream that was cut is a failure."""
        for each in (self.begun, self.ended):
            if not each.done():
                each.set_exception(ConnectionResetError(f"no stream, or one that was cut: {exc}, {self._head[:60]!r}"))
                each.exception()


async def listened(server: Server, asked: Sequence[bytes]) -> list[Listener]:
    """Begin so many streams; each has its first chunk."""
    loop = asyncio.get_running_loop()
    listeners: list[Listener] = []
    for at in range(0, len(asked), BEGIN_AT_ONCE):
        some = asked[at : at + BEGIN_AT_ONCE]
        made = [loop.create_connection(lambda one=one: Listener(one), "127.0.0.1", server.port) for one in some]  # type: ignore[misc]  # bound at once
        listeners += [listener for _, listener in await asyncio.gather(*made)]
        await asyncio.gather(*(each.begun for each in listeners[at:]))
    return listeners


async def streamed(server: Server, chunks: int, count: int, *, kept: bool) -> None:
    """Listen to so many streams from their beginning to their end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        numbers = (time.perf_counter_ns() + number for number in range(count))
        asked = [request(server, chunks, number, kept=kept) for number in numbers]
        listeners = await listened(server, asked)
        await asyncio.gather(*(each.ended for each in listeners))


def cpu_per_chunk(server: Server, chunks: int, *, kept: bool = False) -> float:
    """Microseconds of the server's CPU for one chunk."""
    spent = []
    for length in (1, chunks):
        before = server.cpu_seconds()
        asyncio.run(streamed(server, length, AT_ONCE, kept=kept))
        spent.append(server.cpu_seconds() - before)
    return (spent[1] - spent[0]) / (AT_ONCE * (chunks - 1)) * 1e6


@dataclass(frozen=True, slots=True)
class Crowd:
    """Two thousand streams at once."""

    bytes_each: float
    stall_ms: float
    stall_at_start_ms: float


def crowd(watched: Watched, chunks: int) -> Crowd:
    """Have them, and see what they take."""
    server = watched.server
    peak_bytes, stall_at_start_ms = 0, 0.0

    async def stand_by() -> None:
        nonlocal peak_bytes, stall_at_start_ms
        asked = [request(server, chunks, number) for number in range(STREAMS)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            listeners = await listened(server, asked)
            stall_at_start_ms = watched.seen()["longest_ms"]
            ended = asyncio.gather(*(each.ended for each in listeners))
            while not ended.done():
                peak_bytes = max(peak_bytes, server.resident_bytes())
                await asyncio.wait((ended,), timeout=0.25)
            await ended

    watched.seen()
    before = server.resident_bytes()
    asyncio.run(stand_by())
    return Crowd((peak_bytes - before) / STREAMS, watched.seen()["longest_ms"], stall_at_start_ms)


@contextmanager
def many_open_files() -> Iterator[None]:
    """Room for the connections, here and in what is started here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
            raise SystemExit(f"{OPEN_FILES} open files are needed, and {hard} allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))
    yield


def fast(place: Path, rounds: int, count: int) -> list[Figure]:
    """Time to first chunk, and CPU per chunk."""
    waits: dict[str, list[float]] = {}
    chunks: dict[str, list[float]] = {}
    with ExitStack() as stack:
        above = stack.enter_context(own_upstream("--interval-ms", str(INTERVAL_MS)))
        at_once = stack.enter_context(own_upstream())
        pass_on = stack.enter_context(bare(above))
        pass_on_at_once = stack.enter_context(bare(at_once))
        ours = stack.enter_context(gateway(place / "ours", "Tollgate", above.base_url, settings=SETTINGS))
        ours_at_once = stack.enter_context(gateway(place / "at-once", "Tollgate", at_once.base_url, settings=SETTINGS))
        first = {"upstream": at_once, "bare": pass_on_at_once, "ours": ours_at_once}
        for _ in range(rounds):
            for name, server in first.items():
                waits.setdefault(name, []).append(statistics.median(first_chunks(server, count)) * 1e3)
            chunks.setdefault("bare", []).append(cpu_per_chunk(pass_on, CHUNKS))
            chunks.setdefault("ours", []).append(cpu_per_chunk(ours, CHUNKS))
            chunks.setdefault("kept", []).append(cpu_per_chunk(ours, CHUNKS, kept=True))
    added = {
        name: [mine - theirs for mine, theirs in zip(waits[name], waits["upstream"], strict=True)]
        for name in ("bare", "ours")
    }
    beside = {
        "first": [mine - theirs for mine, theirs in zip(added["ours"], added["bare"], strict=True)],
        "chunk": [mine - theirs for mine, theirs in zip(chunks["ours"], chunks["bare"], strict=True)],
    }
    return [
        Figure.of("time to first chunk, straight to upstream", waits["upstream"], "ms"),
        Figure.of("added time to first chunk, bare pass-through", added["bare"], "ms"),
        Figure.of("added time to first chunk, Tollgate", added["ours"], "ms", target=0.5),
        Figure.of("added time to first chunk, Tollgate, beyond the bare pass-through", beside["first"], "ms"),
        Figure.of("CPU per chunk, bare pass-through", chunks["bare"], "us"),
        Figure.of("CPU per chunk, Tollgate", chunks["ours"], "us", target=15.0),
        Figure.of("CPU per chunk, Tollgate, beyond the bare pass-through", beside["chunk"], "us"),
        Figure.of("CPU per chunk of an answer that is kept, Tollgate", chunks["kept"], "us"),
    ]


def many(place: Path, rounds: int, chunks: int) -> list[Figure]:
    """Two thousand at once."""
    seen: dict[str, list[Crowd]] = {}
    for number in range(rounds):
        with ExitStack() as stack:
            # New servers each time: memory that was taken once is not given back.
            above = stack.enter_context(own_upstream("--interval-ms", str(SLOW_SECONDS * 1e3)))
            here = place / f"many-{number}"
            here.mkdir()
            pass_on = stack.enter_context(watched_bare(here, f"http://127.0.0.1:{above.port}"))
            ours = stack.enter_context(watched_gateway(here / "ours", above.base_url, SETTINGS))
            for name, watched in (("bare", pass_on), ("ours", ours)):
                seen.setdefault(name, []).append(crowd(watched, chunks))
    figures = []
    for name, title, kib, ms in (("bare", "bare pass-through", None, None), ("ours", "Tollgate", 40.0, 50.0)):
        crowds = seen[name]
        each = f"of {STREAMS:,} streams at once, {title}"
        stalls = [crowd.stall_ms for crowd in crowds]
        begins = [crowd.stall_at_start_ms for crowd in crowds]
        figures += [
            Figure.of(f"memory for each {each}", [crowd.bytes_each / 1024 for crowd in crowds], "KiB", target=kib),
            Figure(f"longest stall {each}", max(stalls), "ms", ms, spread=(min(stalls), max(stalls))),
            Figure(f"longest stall at the beginning {each}", max(begins), "ms", ms, spread=(min(begins), max(begins))),
        ]
    return figures


def main() -> None:
    """Measure, print, and write the same as JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rounds, count, chunks = (1, 50, 4) if chosen.quick else (chosen.rounds, 200, 8)
    with workbench() as place, many_open_files():
        figures = fast(place, rounds, count) + many(place, 1 if rounds < 5 else 3, chunks)
    deliver(figures, chosen.json)


if __name__ == "__main__":
    main()
