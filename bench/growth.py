"""What does not grow: the same figures before a database of one team and before one of 10,000.

The large world has 10,000 teams with 100,000 keys and a million events in its ledger; its requests come with the keys
of 5,000 teams in turn, so that as many label sets are counted. The small one is a single team. Both are driven in turn,
by the same closed loop; CPU is the server's, with what it puts off.
"""

from __future__ import annotations

import http.client
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from figures import Figure, arguments, deliver
from load import NUMBER, QUESTION, Load, Seen, closed_loop
from processes import free_ports, running, server_cores, wait_until_ready, workbench
from rounds import interleaved, rates, ratios
from servers import LOG, PATH, TOLLGATE, Server, upstream

sys.path.insert(0, str(Path(__file__).parents[1]))

from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.app.database import SQLITE_FILE
from proxy.core.registry import Axis
from tests.support.worlds import World, fill, team_name

COLD_KEYS = 200
"""Keys that are used once, at the end, so that nobody has asked for them before."""
SMALL = World("1 team", teams=1, keys=1 + COLD_KEYS, events=0, label_sets=1)
LARGE = World("10,000 teams", teams=10_000, keys=100_000, events=1_000_000, label_sets=5_000)
QUICK = World("1,000 teams", teams=1_000, keys=10_000, events=100_000, label_sets=500)
STEADY = 0.9
READY_MS, RESIDENT_MB = 1_000.0, 90.0
SCRAPES = 3


@dataclass(frozen=True, slots=True)
class Crowd(Load):
    """Requests with one key after the other, each of them another request."""

    keys: Iterator[str] = field(default_factory=lambda: iter(()))

    def requests(self, server: Server) -> Iterator[bytes]:
        """One request after the other, as bytes."""
        head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Type: application/json\r\n"
        before, _, after = self.body.partition(NUMBER)
        length = len(before) + 12 + len(after)
        for key, number in zip(self.keys, itertools.count(self.block()), strict=False):
            told = f"{head}Content-Length: {length}\r\nAuthorization: Bearer {key}\r\n\r\n"
            yield f"{told}{before}{number:012}{after}".encode()


@dataclass(frozen=True, slots=True)
class Place:
    """A world that is served."""

    world: World
    server: Server
    directory: Path
    crowd: Crowd
    cold: Sequence[str]
    ready_ms: float
    resident_mb: float
    """When it was ready."""


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, help="of either world; 4, or 2 where it is to be quick")
    parser.add_argument("--seconds", type=float, default=1.5, help="of one drive")
    chosen = parser.parse_args()
    worlds = (SMALL, QUICK if chosen.quick else LARGE)
    deliver(measure(worlds, chosen.rounds or (2 if chosen.quick else 4), chosen.seconds), chosen.json)


def measure(worlds: Sequence[World], rounds: int, seconds: float) -> list[Figure]:
    """Fill both, start both, drive them in turn, then ask each what is asked seldom."""
    with workbench() as place, ExitStack() as stack:
        keys = {world.name: fill(world, place / world.name) for world in worlds}
        above = stack.enter_context(upstream(place))
        starts = {world.name: [start(world, place, above)[0] for _ in range(2)] for world in worlds}
        served = {
            world.name: stack.enter_context(serving(world, place / world.name, keys[world.name], above))
            for world in worlds
        }
        for each in served.values():
            starts[each.world.name].append(each.ready_ms)
            warm(each, seconds)

        def drive(name: str) -> Seen:
            return closed_loop(served[name].server, served[name].crowd, seconds, "own")

        seen = interleaved(list(served), drive, rounds)
        small, large = (world.name for world in worlds)
        figures = [*rates(seen), *ratios(seen, small, {large: STEADY})]
        for name, each in served.items():
            ready = Figure.of(f"{name}: start to ready", starts[name], "ms", target=READY_MS)
            resident = Figure(f"{name}: resident memory when ready", each.resident_mb, "MB", target=RESIDENT_MB)
            figures += [ready, resident, *seldom(each)]
    return figures


def start(world: World, place: Path, above: Server) -> tuple[float, float]:
    """Start it and end it."""
    with serving(world, place / world.name, [], above) as each:
        return each.ready_ms, each.resident_mb


@contextmanager
def serving(world: World, directory: Path, keys: Sequence[str], above: Server) -> Iterator[Place]:
    """Tollgate on a world, asked with a key of each pair of team and model that the ledger knows."""
    port, admin_port = free_ports()
    command = (*TOLLGATE, "serve", "--data-dir", str(directory), "--port", str(port), "--admin-port", str(admin_port),
               "--upstream", above.base_url)  # fmt: skip
    begun = time.perf_counter()
    with running(*command, cores=server_cores(), log=directory / LOG, OPENAI_API_KEY="sk-upstream") as child:
        wait_until_ready(f"http://127.0.0.1:{admin_port}/readyz", child, begun)
        ready_ms = (time.perf_counter() - begun) * 1_000
        server = Server(world.name, port, psutil.Process(child.pid), admin_port=admin_port)
        crowd = Crowd(keys=itertools.cycle(keys[: world.label_sets]))
        resident_mb = server.resident_bytes() / 1e6
        yield Place(world, server, directory, crowd, keys[-COLD_KEYS:], ready_ms, resident_mb)


def warm(place: Place, seconds: float) -> None:
    """Ask with every key at least once."""
    asked = 0.0
    while asked < place.world.label_sets:
        seen = closed_loop(place.server, place.crowd, seconds, "own")
        asked += seen.per_second * seconds


def seldom(place: Place) -> list[Figure]:
    """What no request waits for, or few do."""
    name, server = place.world.name, place.server
    figures = [Figure(f"{name}: resident memory after the drives", server.resident_bytes() / 1e6, "MB")]
    figures.append(Figure.of(f"{name}: a request with a key that is not at hand", cold(place), "ms"))
    scrapes, size = [], 0
    for _ in range(SCRAPES):
        began = time.perf_counter()
        size = len(got(server.admin_port, "/metrics"))
        scrapes.append((time.perf_counter() - began) * 1_000)
    figures += [Figure.of(f"{name}: a scrape", scrapes, "ms"), Figure(f"{name}: its size", size / 1e6, "MB")]
    engine = open_engine(place.directory / SQLITE_FILE)
    reports = SqlUsageReports(engine)
    for what, axes, team in (
        ("of one team by day", (Axis.DAY,), team_name(0)),
        ("by team and model", (Axis.TEAM, Axis.MODEL), None),
    ):
        taken = []
        for _ in range(SCRAPES):
            began = time.perf_counter()
            reports.usage(axes, team=team)
            taken.append((time.perf_counter() - began) * 1_000)
        figures.append(Figure.of(f"{name}: usage {what}", taken, "ms"))
    engine.dispose()
    return figures


def cold(place: Place) -> list[float]:
    """Milliseconds of single requests, each with a key that was never used."""
    connection = http.client.HTTPConnection("127.0.0.1", place.server.port, timeout=30)
    taken = []
    for number, key in enumerate(place.cold):
        body = QUESTION.replace(NUMBER, f"{place.crowd.block() + number:012}")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        began = time.perf_counter()
        connection.request("POST", PATH, body, headers)
        answer = connection.getresponse()
        said = answer.read()
        taken.append((time.perf_counter() - began) * 1_000)
        if answer.status != 200 or "choices" not in json.loads(said):
            raise SystemExit(f"{place.world.name}: {answer.status}")
    connection.close()
    return taken


def got(port: int, path: str) -> bytes:
    """A page of the operations listener."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    return body


if __name__ == "__main__":
    main()
