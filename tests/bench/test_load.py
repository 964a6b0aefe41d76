"""What the open loop counts, in virtual time; what both loops say of real servers."""

import asyncio
import dataclasses
import itertools
import json
import re
import shutil
import sqlite3
import urllib.request
from contextlib import ExitStack

import async_solipsism
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from load import QUESTION, Load, closed_loop, open_loop
from loops import ClosedLoop, OpenLoop, run_precisely
from processes import free_ports
from servers import ANSWER, LOG, REFUSED, UNLIMITED, Server, gateway, keeps, static, upstream

PORT = 80
EVERY_MS = 10


@dataclasses.dataclass
class OneAtATime:
    """A server that takes so long for each request, and begins none while it stalls; all in milliseconds."""

    service: float
    stall: tuple[float, float]
    busy_until: float = 0.0

    def done_at(self, arrived: float) -> float:
        begun = max(self.busy_until, arrived)
        if self.stall[0] <= begun < self.stall[1]:
            begun = self.stall[1]
        self.busy_until = begun + self.service
        return self.busy_until


class Speaks(asyncio.Protocol):
    def __init__(self, server, began, size):
        self.server, self.began, self.size, self.received = server, began, size, 0

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += len(data)
        if self.received == self.size:
            self.received = 0
            loop = asyncio.get_running_loop()
            done = self.server.done_at((loop.time() - self.began) * 1e3)
            loop.call_at(
                self.began + done / 1e3, self.transport.write, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
            )


async def driven(load, server, count):
    """Latencies in milliseconds of so many requests, 10 ms apart."""
    asked = Server("one at a time", PORT, psutil.Process())
    size = len(next(load.requests(asked)))
    began = asyncio.get_running_loop().time()
    async with await asyncio.get_running_loop().create_server(lambda: Speaks(server, began, size), "127.0.0.1", PORT):
        waits = await OpenLoop(asked, load).run(1e3 / EVERY_MS, count * EVERY_MS / 1e3)
    return [wait / 1e3 for wait in waits.microseconds]


# Sums of fractions are off by less than the grain of the virtual clock.
pytestmark = pytest.mark.filterwarnings("ignore::async_solipsism.ResolutionWarning")


@given(
    connections=st.integers(1, 20),
    count=st.integers(1, 60),
    service=st.integers(0, 25),
    stalls_at=st.integers(0, 400),
    stalls_for=st.integers(0, 500),
)
def test_latency_counts_from_the_instant_a_request_was_due(connections, count, service, stalls_at, stalls_for):
    stall = (stalls_at + 0.5, stalls_at + stalls_for + 0.5)
    with asyncio.Runner(loop_factory=async_solipsism.EventLoop) as runner:
        seen = runner.run(driven(Load(connections=connections), OneAtATime(service, stall), count))
    queue = OneAtATime(service, stall)
    expected = sorted(queue.done_at(due) - due for due in range(0, count * EVERY_MS, EVERY_MS))
    assert seen == pytest.approx(expected, abs=0.01)


def test_those_who_arrive_in_a_stall_wait_for_its_end_however_few_the_connections():
    with asyncio.Runner(loop_factory=async_solipsism.EventLoop) as runner:
        seen = runner.run(driven(Load(connections=2), OneAtATime(0, (0, 1_000)), 200))
    assert seen == pytest.approx([0] * 100 + [10 * late for late in range(1, 101)], abs=0.01)


def test_bodies_are_as_long_as_is_said():
    assert len(QUESTION) == 450
    assert len(ANSWER) == 650


def test_each_fresh_request_is_another_and_as_long():
    server = Server("none", PORT, psutil.Process())
    asked = Load().requests(server)
    first, second = next(asked), next(asked)
    assert first != second
    assert len(first) == len(second)
    assert next(Load().requests(server)) not in {first, second}
    same = Load(fresh=False).requests(server)
    assert next(same) == next(same)


def test_both_loops_drive_a_bare_server():
    with static() as server:
        seen = closed_loop(server, Load(connections=4), 0.1, "own")
        assert seen.per_second > 0
        assert 0 < seen.p50_microseconds <= seen.p99_microseconds
        waits = open_loop(server, Load(), 100, 0.1)
        assert len(waits.microseconds) == 10
        assert 0 < waits.quantile(0.5) <= waits.quantile(0.99) == waits.microseconds[-1]
    assert not server.process.is_running()


WRK = pytest.param("wrk", marks=pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not on PATH"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A gateway with a team that has no limits to speak of, and one that is refused."""
    place = tmp_path_factory.mktemp("served")
    teams = {"bench": UNLIMITED, "refused": REFUSED}
    with upstream(place) as above, gateway(place / "gateway", "gateway", above.base_url, teams=teams) as server:
        yield server


def looked_up(server):
    """How many look-ups found something, and how many did not."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics").read().decode()
    found = re.findall(r'(?m)^tollgate_cache_requests_total{.*result="(hit|miss)".*} (.+)$', page)
    return {result: sum(float(value) for which, value in found if which == result) for result in ("hit", "miss")}


@pytest.mark.parametrize("client", ["own", WRK])
def test_fresh_requests_miss_the_cache_and_others_hit_it(client, served):
    body = QUESTION.replace("overdue", client)
    before = looked_up(served)
    for _ in range(2):
        closed_loop(served, Load(body=body, connections=2), 0.1, client)
    fresh = looked_up(served)
    assert fresh["hit"] == before["hit"]
    assert fresh["miss"] > before["miss"]
    assert keeps(served, body.encode())
    before = looked_up(served)
    closed_loop(served, Load(body=body, connections=2, fresh=False), 0.1, client)
    after = looked_up(served)
    assert after["hit"] > before["hit"]
    assert after["miss"] == before["miss"]


def test_what_is_driven_is_accounted_for_and_logged(tmp_path):
    with ExitStack() as stack:
        above = stack.enter_context(upstream(tmp_path))
        server = stack.enter_context(gateway(tmp_path / "gateway", "gateway", above.base_url))
        assert keeps(server, QUESTION.encode())
        closed_loop(server, Load(connections=2), 0.1, "own")
        page = urllib.request.urlopen(f"http://127.0.0.1:{server.admin_port}/metrics").read().decode()
        counted = sum(map(float, re.findall(r"(?m)^tollgate_requests_total{.*} (.+)$", page)))
    # The server has ended, and with it all that it puts off.
    logged = [json.loads(line) for line in (tmp_path / "gateway" / LOG).read_text().splitlines()]
    requests = [line for line in logged if line["event"] == "request"]
    with sqlite3.connect(tmp_path / "gateway" / "data" / "tollgate.sqlite3") as database:
        accounted = dict(database.execute("SELECT request_id, cost_pico_usd FROM usage_events"))
    database.close()
    assert counted == len(requests) == len(accounted) > 2
    assert {line["request_id"]: line["cost_pico_usd"] for line in requests} == accounted
    assert {line["cache"] for line in requests} == {"miss", "hit"}


def test_numbers_in_turn_are_the_same_in_every_drive_and_begin_elsewhere():
    server = Server("none", PORT, psutil.Process())
    load = Load(fresh=False, in_turn=1_000)
    drives = [list(itertools.islice(load.requests(server), 1_000)) for _ in range(2)]
    assert set(drives[0]) == set(drives[1])
    assert len(set(drives[0])) == 1_000
    assert drives[0][0] not in {*drives[1][:100], *drives[1][-100:]}


def test_a_server_that_leaves_or_refuses_is_no_measurement(served):
    server, load = served.as_team("refused"), Load(connections=2)
    assert closed_loop(server, dataclasses.replace(load, refused=True), 0.1, "own").per_second > 0
    with pytest.raises(SystemExit, match="requests refused"):
        closed_loop(server, load, 0.1, "own")
    with pytest.raises(SystemExit, match="requests refused"):
        open_loop(server, load, 50, 0.1)
    # A port that is kept until this process ends, and on which nobody listens.
    gone = dataclasses.replace(served, port=free_ports()[0])
    with pytest.raises(SystemExit, match="gateway: ConnectionRefusedError"):
        run_precisely(ClosedLoop(gone, load).run(0.1))
