"""Two thousand slow streams at once through one worker: each whole, each its own, at a small price in memory."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
from collections.abc import Iterator

import psutil
import pytest

from tests.support.tollgate_process import Tollgate, run_tollgate

STREAMS = 2_000
ROUNDS = 5
AT_ONCE = 100
"""New connections between two looks at how far the others are."""
OPEN_FILES = 2 * STREAMS + 500
BYTES_A_STREAM = 100_000
SETTINGS = f"""
[upstream]
max_connections = {STREAMS + 100}
"""
NUMBER = re.compile(rb"stream-(\d+)\b")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

pytestmark = pytest.mark.timeout(240)


def piece(number: int, turn: int) -> bytes:
    """What stream `number` says in one turn; the last one ends it."""
    content = {"index": 0, "delta": {"content": f"<{number}:{turn}>"}, "finish_reason": None}
    said = b"data: " + json.dumps({"id": f"chatcmpl-{number}", "choices": [content]}).encode() + b"\n\n"
    if turn < ROUNDS - 1:
        return said
    end = {"index": 0, "delta": {}, "finish_reason": "stop"}
    used = {"prompt_tokens": 8, "completion_tokens": ROUNDS, "total_tokens": 8 + ROUNDS}
    last = [{"choices": [end]}, {"choices": [], "usage": used}]
    return said + b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in last) + b"data: [DONE]\n\n"


class Tally:
    """Counts up to all streams, and tells when they are there."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def add(self) -> None:
        self.count += 1
        for wanted, future in self._waiting:
            if self.count >= wanted and not future.done():
                future.set_result(None)

    async def reach(self, wanted: int) -> None:
        if self.count < wanted:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((wanted, future))
            await future


class Upstream(asyncio.Protocol):
    """One connection from the gateway: it waits for its turns."""

    def __init__(self, asked: dict[int, asyncio.Transport], tally: Tally) -> None:
        self._asked, self._tally = asked, tally
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if (found := NUMBER.search(self._received)) and self._received.endswith(b"}"):
            self._asked[int(found[1])] = self._transport
            self._transport.write(HEAD)
            self._received = b""
            self._tally.add()


class Client(asyncio.Protocol):
    """One connection to the gateway."""

    def __init__(self, number: int, turns: list[Tally], ended: Tally) -> None:
        self._number, self._turns, self._ended = number, turns, ended
        self._turn = 0
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while self._turn < ROUNDS and f"<{self._number}:{self._turn}>".encode() in self.received:
            self._turns[self._turn].add()
            self._turn += 1

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.add()

    @property
    def payload(self) -> bytes:
        """All that was said; the framing must be whole."""
        said, rest = [], self.received.partition(b"\r\n\r\n")[2]
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if (length := int(size, 16)) == 0:
                assert rest == b"\r\n"
                return b"".join(said)
            said.append(rest[:length])
            rest = rest[length + 2 :]


@pytest.fixture
def open_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(f"needs {OPEN_FILES} open files, and the hard limit is {hard}: raise it with ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def request(number: int, key: str) -> bytes:
    messages = [{"role": "user", "content": f"stream-{number}"}]
    body = {"model": "gpt-4o-mini", "stream": True, "stream_options": {"include_usage": True}, "messages": messages}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {key}\r\nConnection: close\r\n"
    )
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def resident_bytes(server: Tollgate) -> int:
    """Memory of the server and of what it started."""
    process = psutil.Process(server.pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


async def test_two_thousand_slow_streams(open_files, tmp_path, capsys) -> None:
    loop = asyncio.get_running_loop()
    asked: dict[int, asyncio.Transport] = {}
    arrived, ended, turns = Tally(), Tally(), [Tally() for _ in range(ROUNDS)]
    upstream = await loop.create_server(lambda: Upstream(asked, arrived), "127.0.0.1", 0, backlog=1_024)
    url = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/v1"
    started = await asyncio.to_thread(lambda: run_tollgate(tmp_path, url, "sk-upstream", settings=SETTINGS))
    async with upstream, asyncio.timeout(200):
        server = await asyncio.to_thread(started.__enter__)
        try:
            key = (await asyncio.to_thread(server.add_team, "many")).key
            port = int(server.root.rpartition(":")[2])
            idle_bytes = resident_bytes(server)
            began = loop.time()
            clients = []
            for number in range(STREAMS):
                transport, client = await loop.create_connection(
                    lambda n=number: Client(n, turns, ended), "127.0.0.1", port
                )
                transport.write(request(number, key))
                clients.append(client)
                if len(clients) % AT_ONCE == 0:
                    await arrived.reach(len(clients))
            opened = loop.time()
            assert arrived.count == len(asked) == STREAMS
            assert ended.count == 0
            busy_bytes = resident_bytes(server)
            for turn, heard in enumerate(turns):
                for number, transport in asked.items():
                    said = piece(number, turn)
                    transport.write(b"%x\r\n%s\r\n" % (len(said), said))
                await heard.reach(STREAMS)
                if turn == 2:
                    assert f"tollgate_in_flight_requests {STREAMS}.0" in await asyncio.to_thread(server.metrics)
                    busy_bytes = max(busy_bytes, resident_bytes(server))
            for transport in asked.values():
                transport.write(b"0\r\n\r\n")
            await ended.reach(STREAMS)
            done = loop.time()
            for number, client in enumerate(clients):
                assert client.received.startswith(b"HTTP/1.1 200 OK\r\n")
                assert client.payload == b"".join(piece(number, turn) for turn in range(ROUNDS))
            events = await asyncio.to_thread(server.events, "many", STREAMS)
        finally:
            await asyncio.to_thread(started.__exit__, None, None, None)
    assert len(events) == STREAMS
    assert {(each["outcome"], each["output_tokens"], each["estimated"]) for each in events} == {("ok", ROUNDS, 0)}
    a_stream = (busy_bytes - idle_bytes) / STREAMS
    with capsys.disabled():
        print(f"\n{STREAMS} streams: {a_stream / 1_000:.1f} kB each over {idle_bytes / 1e6:.0f} MB idle; "
              f"{opened - began:.1f} s to open, {done - opened:.1f} s for {ROUNDS} turns")  # fmt: skip
    assert a_stream < BYTES_A_STREAM
