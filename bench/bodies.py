"""Large bodies: requests of a megabyte, and 100 MB that pass through unread, up and down.

`python bench/bodies.py`. A request of 1 MB holds an image; Tollgate reads it strictly, looks it up in the cache and
estimates its tokens, and the bare pass-through hands it on: both say what they take for each, and how many a second
they pass on. What is kept at OpenAI (`/v1/files`) is not read, and passes piece by piece: resident memory at the peak,
less that before, says whether it was held anywhere on the way. All run under `bench/watched.py`, which takes some 2 %.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil
from figures import Figure, arguments, deliver
from load import closed_loop, default_client
from processes import free_ports, running, wait_until_ready, workbench
from servers import UNLIMITED, Server, upstream
from stalls import TARGET_MS, Watched, watched_bare, watched_gateway, with_image

BODY_BYTES = 1_000_000
LARGE_BYTES = 100_000_000
MEGABYTE = 1_000_000
GROWTH_MIB = 32.0
PIECE = bytes(range(256)) * 256
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HOARDERS = {"hoarders": (*UNLIMITED, "--stateful")}
LOOK_SECONDS = 0.02


def main() -> None:
    """Measure, print, and write the same as JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one drive")
    parser.add_argument("--upstream", type=int, metavar="PORT", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.upstream:
        asyncio.run(take_and_give(chosen.upstream))
        return
    rounds, seconds = (1, 1.0) if chosen.quick else (chosen.rounds, chosen.seconds)
    with workbench() as place:
        figures = [*megabytes(place, rounds, seconds), *passing_through(place, min(rounds, 3))]
    deliver(figures, chosen.json)


def megabytes(place: Path, rounds: int, seconds: float) -> Iterator[Figure]:
    """Requests of 1 MB."""
    load, client = with_image(BODY_BYTES), default_client()
    rates: dict[str, list[float]] = {}
    costs: dict[str, list[float]] = {}
    with ExitStack() as stack:
        above = stack.enter_context(upstream(place))
        pass_on = stack.enter_context(watched_bare(place, f"http://127.0.0.1:{above.port}"))
        ours = stack.enter_context(watched_gateway(place / "megabytes", above.base_url))
        for _ in range(rounds):
            for watched in (pass_on, ours):
                seen = closed_loop(watched.server, load, seconds, client)
                rates.setdefault(watched.server.name, []).append(seen.per_second)
                costs.setdefault(watched.server.name, []).append(seen.cpu_microseconds / 1e3 / (BODY_BYTES / MEGABYTE))
    for name, rate in rates.items():
        yield Figure.of(f"requests of 1 MB, {name}", rate, "1/s", better="more")
        yield Figure.of(f"CPU for a request of 1 MB, {name}", costs[name], "ms")


def passing_through(place: Path, rounds: int) -> Iterator[Figure]:
    """100 MB, up and down."""
    ways: dict[str, Callable[[Server], None]] = {"up": send_up, "down": bring_down}
    with ExitStack() as stack:
        above = stack.enter_context(large_upstream())
        ours = stack.enter_context(watched_gateway(place / "large", above.base_url, teams=HOARDERS))
        for way in ways.values():
            way(ours.server)  # what is made for the first of all is no cost of the others
        for name, way in ways.items():
            seen = [large(ours, way) for _ in range(rounds)]
            speeds, costs, grown, stalls = (list(column) for column in zip(*seen, strict=True))
            yield Figure.of(f"100 MB {name} through Tollgate", speeds, "MB/s", better="more")
            yield Figure.of(f"CPU for a MB {name} through Tollgate", costs, "ms")
            yield Figure(
                f"memory for 100 MB {name} through Tollgate",
                max(grown),
                "MiB",
                GROWTH_MIB,
                spread=(min(grown), max(grown)),
            )
            yield Figure(
                f"longest stall during 100 MB {name}, Tollgate",
                max(stalls),
                "ms",
                TARGET_MS,
                spread=(min(stalls), max(stalls)),
            )


def large(watched: Watched, way: Callable[[Server], None]) -> tuple[float, float, float, float]:
    """Megabytes a second, milliseconds of CPU for each, MiB that the server grew by, and its longest stall in ms."""
    server = watched.server
    watched.seen()
    with peak_of(server) as peak:
        before, spent, begun = server.resident_bytes(), server.cpu_seconds(), time.perf_counter()
        way(server)
        took, spent = time.perf_counter() - begun, server.cpu_seconds() - spent
    size = LARGE_BYTES / MEGABYTE
    return size / took, spent * 1e3 / size, (peak[0] - before) / 2**20, watched.seen()["longest_ms"]


@contextmanager
def peak_of(server: Server) -> Iterator[list[int]]:
    """The most memory that it held during the block, as the one element of a list."""
    peak = [server.resident_bytes()]
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], server.resident_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def send_up(server: Server) -> None:
    """Send 100 MB as fast as they are taken."""
    with closing(
        asked(server, "POST /v1/files", f"Content-Length: {LARGE_BYTES}\r\nContent-Type: text/plain\r\n")
    ) as to:
        for _ in range(LARGE_BYTES // len(PIECE)):
            to.sendall(PIECE)
        to.sendall(PIECE[: LARGE_BYTES % len(PIECE)])
        answered(to)


def bring_down(server: Server) -> None:
    """Ask for 100 MB, and take them as fast as they come."""
    with closing(asked(server, "GET /v1/files/file-large/content", "")) as of:
        rest = answered(of)
        left = LARGE_BYTES - len(rest)
        while left > 0:
            piece = of.recv(262_144)
            if not piece:
                raise SystemExit(f"{left} bytes are missing")
            left -= len(piece)


def asked(server: Server, what: str, more: str) -> socket.socket:
    """A connection on which something was asked."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    told = "".join(f"{name}: {value}\r\n" for name, value in server.headers.items())
    connection.sendall(f"{what} HTTP/1.1\r\nHost: 127.0.0.1\r\n{told}{more}\r\n".encode())
    return connection


def answered(connection: socket.socket) -> bytes:
    """Wait for the head of the answer; returns what came behind it."""
    said = b""
    while b"\r\n\r\n" not in said:
        piece = connection.recv(65_536)
        if not piece:
            raise SystemExit(f"no answer: {said[:80]!r}")
        said += piece
    if not said.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"refused: {said[:300]!r}")
    return said.partition(b"\r\n\r\n")[2]


@contextmanager
def large_upstream() -> Iterator[Server]:
    """Takes whatever it is sent, and gives 100 MB to whoever asks for content."""
    port, _ = free_ports()
    with running(sys.executable, __file__, "--upstream", str(port)) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Server("upstream", port, psutil.Process(child.pid))


class Hoard(asyncio.Protocol):
    """One connection: requests one after the other, bodies counted and thrown away."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin with nothing."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # of a stream, always
        self._head = b""
        self._left = self._to_give = 0
        self._may_write = True

    def data_received(self, data: bytes) -> None:
        """Count, and answer when all is there."""
        if not self._left:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            length = LENGTH.search(self._head, 0, end + 2)
            self._left = (int(length[1]) if length else 0) + end + 4
            data = self._head
        self._left -= len(data)
        if not self._left:
            self._answer(self._head.partition(b"\r\n")[0])
            self._head = b""

    def pause_writing(self) -> None:
        """Hold what is left."""
        self._may_write = False

    def resume_writing(self) -> None:
        """Go on."""
        self._may_write = True
        self._give()

    def _answer(self, what: bytes) -> None:
        self._to_give = LARGE_BYTES if b"/content" in what else 2
        kind = b"application/octet-stream" if self._to_give > 2 else b"application/json"
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (kind, self._to_give)
        )
        if self._to_give == 2:
            self._to_give = 0
            self._transport.write(b"{}")
        self._give()

    def _give(self) -> None:
        while self._to_give and self._may_write:
            piece = PIECE[: self._to_give]
            self._to_give -= len(piece)
            self._transport.write(piece)


async def take_and_give(port: int) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Hoard, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    main()
