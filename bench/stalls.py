"""The longest stall of the event loop of a worker: under load, under scrapes, with large bodies, behind a backlog.

`python bench/stalls.py`: every server runs under `bench/watched.py`, which notes how late its loop comes round. The
bare pass-through says what the machine and aiohttp themselves do: read the others beside it. A round of

* *load* is a closed loop of 32 callers, each request another one;
* *a scrape every second* is the same with at least 5,000 label sets in `/metrics`;
* *1 MB bodies* is a closed loop of 8 callers whose requests hold an image of that size;
* *a backlog* is load while the database takes nothing, and then load while it takes over what has gathered.

The figure is the longest stall of all rounds; the spread is that of the rounds. *Its own work* is the CPU time that
the loop's thread took in one such stretch: a stall that is much longer is mostly other threads' or the machine's.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sqlite3
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
from figures import Figure, arguments, deliver
from load import CONNECTIONS, NUMBER, Load, closed_loop, default_client
from processes import free_ports, running, server_cores, wait_until_ready, workbench
from servers import BENCH_TEAM, HERE, TOLLGATE, Server, ask, gateway, upstream

TARGET_MS = 20.0
LABEL_SETS = 5_000
MODELS = 320
BODY_BYTES = 1_000_000
TELL_WITHIN_SECONDS = 10.0
TAKEN_OVER_WITHIN_SECONDS = 60.0
SETTINGS = f"[models]\nextra = {json.dumps([f'bench-{number}' for number in range(MODELS)])}\n"

Seen = dict[str, Any]


class Watched:
    """A server under watch."""

    def __init__(self, server: Server, path: Path, place: Path | None = None) -> None:
        self.server = server
        self.place = place
        """Where a gateway keeps its data."""
        self._path = path

    def seen(self) -> Seen:
        """What was seen since the last time."""
        self._path.unlink(missing_ok=True)
        self.server.process.send_signal(signal.SIGUSR1)
        until = time.monotonic() + TELL_WITHIN_SECONDS
        while not self._path.exists():
            if time.monotonic() > until:
                raise SystemExit(f"{self.server.name} does not say what was seen")
            time.sleep(0.005)
        said: Seen = json.loads(self._path.read_text())
        return said


def watching(path: Path, *command: str) -> tuple[str, ...]:
    """The command that runs `command`, without its interpreter, under watch."""
    return (sys.executable, str(HERE / "watched.py"), str(path), *command)


@contextmanager
def watched_gateway(
    place: Path, above: str, settings: str = SETTINGS, teams: Mapping[str, Sequence[str]] = BENCH_TEAM
) -> Iterator[Watched]:
    """Tollgate, embedded, at home in `place`."""
    place.mkdir(parents=True, exist_ok=True)
    path = place / "seen.json"
    home = place / "gateway"
    command = watching(path, *TOLLGATE[1:])
    with gateway(home, "Tollgate", above, settings=settings, teams=teams, command=command) as server:
        yield Watched(server, path, home)


@contextmanager
def watched_bare(place: Path, above: str) -> Iterator[Watched]:
    """The bare pass-through."""
    path = place / "bare.json"
    port, _ = free_ports()
    command = watching(path, str(HERE / "bare.py"), "--port", str(port), "--upstream", above)
    with running(*command, cores=server_cores()) as child:
        wait_until_ready(f"http://127.0.0.1:{port}/", child)
        yield Watched(Server("bare pass-through", port, psutil.Process(child.pid)), path)


def with_image(size: int) -> Load:
    """Bodies of so many bytes, nearly all of them an image; each with another number."""
    image = base64.b64encode(os.urandom(size * 3 // 4)).decode()
    parts = [
        {"type": "text", "text": f"Ticket {NUMBER}: what is the amount on this invoice?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}},
    ]
    body = {"model": "gpt-4o-mini", "temperature": 0, "messages": [{"role": "user", "content": parts}]}
    return Load(json.dumps(body), connections=8)


def label_sets(page: bytes) -> int:
    """Sets of labels in a scrape: a histogram's buckets are one."""
    return sum(not line.startswith(b"#") and b"{" in line and b"_bucket{" not in line for line in page.splitlines())


def scrape(server: Server) -> bytes:
    """One page of metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics", timeout=30) as answer:
        page: bytes = answer.read()
    return page


def fill_metrics(server: Server) -> int:
    """Ask for one model after the other until a scrape is as large as it is to be; says how many label sets it has."""
    for number in range(MODELS):
        ask(server, json.dumps({"model": f"bench-{number}", "messages": [{"role": "user", "content": "Hi"}]}).encode())
    found = label_sets(scrape(server))
    if found < LABEL_SETS:
        raise SystemExit(f"{found} label sets where {LABEL_SETS} are wanted")
    return found


@contextmanager
def scraped(server: Server) -> Iterator[list[float]]:
    """Scrape every second during the block; yields how many seconds each took."""
    took: list[float] = []
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(max(0.0, 1.0 - (took[-1] if took else 0.0))):
            begun = time.perf_counter()
            scrape(server)
            took.append(time.perf_counter() - begun)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield took
    finally:
        over.set()
        thread.join()


def under_load(watched: Watched, seconds: float, client: str) -> Seen:
    """What is seen under load."""
    watched.seen()
    closed_loop(watched.server, Load(connections=CONNECTIONS), seconds, client)
    return watched.seen()


def under_scrapes(watched: Watched, seconds: float, client: str) -> Seen:
    """What is seen under load and scrapes."""
    watched.seen()
    with scraped(watched.server):
        closed_loop(watched.server, Load(connections=CONNECTIONS), max(seconds, 3.0), client)
    return watched.seen()


def with_large_bodies(watched: Watched, seconds: float, client: str) -> Seen:
    """What is seen with large bodies."""
    watched.seen()
    closed_loop(watched.server, with_image(BODY_BYTES), seconds, client)
    return watched.seen()


def behind_a_backlog(watched: Watched, seconds: float, client: str) -> Seen:
    """What is seen while a backlog is taken over; load goes on all the time."""
    if watched.place is None:
        return under_load(watched, seconds, client)
    load = Load(connections=CONNECTIONS)
    database = watched.place / "data" / "tollgate.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        closed_loop(watched.server, load, seconds, client)
        connection.execute("ROLLBACK")
        before = taken_over(connection)
        watched.seen()
        until = time.monotonic() + TAKEN_OVER_WITHIN_SECONDS
        # It is tried again after a while that grows to ten seconds.
        while taken_over(connection) <= before:
            closed_loop(watched.server, load, 1.0, client)
            if time.monotonic() > until:
                raise SystemExit("the backlog is not taken over")
        closed_loop(watched.server, load, seconds, client)
    return watched.seen()


def taken_over(connection: sqlite3.Connection) -> int:
    """Events in the ledger."""
    found: int = connection.execute("SELECT count(*) FROM usage_events").fetchone()[0]
    return found


def worst(what: str, seen: Sequence[Seen], name: str, target: float | None = None) -> Figure:
    """The most of all rounds."""
    values = [each[name] for each in seen]
    return Figure(what, max(values), "ms", target, spread=(min(values), max(values)))


KINDS: tuple[tuple[str, Callable[[Watched, float, str], Seen]], ...] = (
    ("under load", under_load),
    (f"under load and a scrape of {LABEL_SETS:,} label sets every second", under_scrapes),
    ("with 1 MB bodies", with_large_bodies),
    ("while a backlog is taken over", behind_a_backlog),
)


def main() -> None:
    """Measure, print, and write the same as JSON."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one drive")
    parser.add_argument("--only", help="the kinds whose names hold this")
    parser.add_argument("--verbose", action="store_true", help="all that was seen in each round")
    chosen = parser.parse_args()
    rounds, seconds = (1, 1.0) if chosen.quick else (chosen.rounds, chosen.seconds)
    client = default_client()
    figures: list[Figure] = []
    with workbench() as place, ExitStack() as stack:
        above = stack.enter_context(upstream(place))
        bare = stack.enter_context(watched_bare(place, f"http://127.0.0.1:{above.port}"))
        ours = stack.enter_context(watched_gateway(place / "one", above.base_url))
        full = stack.enter_context(watched_gateway(place / "full", above.base_url))
        fill_metrics(full.server)
        for title, drive in KINDS:
            if chosen.only and chosen.only not in title:
                continue
            pairs = [("bare pass-through", bare)] if drive in {under_load, with_large_bodies} else []
            pairs.append(("Tollgate", full if drive is under_scrapes else ours))
            seen: dict[str, list[Seen]] = {name: [] for name, _ in pairs}
            for _ in range(rounds):
                for name, watched in pairs:
                    seen[name].append(drive(watched, seconds, client))
                    if chosen.verbose:
                        print(title, name, seen[name][-1], file=sys.stderr)
            for name, _ in pairs:
                target = TARGET_MS if name == "Tollgate" else None
                figures.append(worst(f"longest stall {title}, {name}", seen[name], "longest_ms", target))
                figures.append(worst(f"of its own work {title}, {name}", seen[name], "longest_own_ms"))
    deliver(figures, chosen.json)


if __name__ == "__main__":
    os.umask(0o077)
    main()
