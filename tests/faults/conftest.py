"""One worker of the real thing, a simulated upstream and their clients, all in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import uvloop
from sqlalchemy import Engine, select

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import usage_events
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.app import open_database
from proxy.app.worker import Worker, serving
from proxy.core.bucket import Scope
from proxy.core.tiers import Limits, Schedule
from proxy.settings import Settings, load
from proxy.simulator import Behaviour, RunningSimulator, start
from proxy.simulator.clock import SystemTime

PATIENCE_SECONDS = 60
"""What is waited for comes, and mostly at once; how long a machine takes that has much to do is nobody's fault."""
TEAM = "attackers"
UPSTREAM_KEY = "sk-upstream-secret-of-the-house"
CAPACITY = 1_000_000
# A bucket that holds much and refills by one a minute: what it lacks is what was taken.
LIMITS = {"requests_per_minute": 1, "tokens_per_minute": 1, "request_capacity": CAPACITY, "token_capacity": CAPACITY}
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How deep is the bucket?"}]}
SETTINGS = {
    "server.port": 0,
    "server.admin_port": 0,
    "server.max_body_bytes": 100_000,
    "server.drain_seconds": 1.0,
    "upstream.name": "sim",
    "upstream.first_backoff_ms": 1,
    "upstream.max_backoff_ms": 50,
}


def pytest_asyncio_loop_factories(config, item):
    """The loop the server runs on."""
    return {"uvloop": uvloop.new_event_loop}


@dataclass(frozen=True)
class Answer:
    """What a raw client got."""

    data: bytes
    clean: bool
    """The server closed the connection in order, or kept it open."""

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.data.split(b" ", 2)[1])

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.body)["error"]


@dataclass
class Gateway:
    """A worker that serves, its upstream, and a client of each kind."""

    worker: Worker
    engine: Engine
    simulator: RunningSimulator
    session: aiohttp.ClientSession
    key: str
    settings: Settings
    log: io.StringIO
    stop: Callable[[], Awaitable[None]]
    """Drain the worker as at the end of its process."""
    answers: list[int] = field(default_factory=list)

    @property
    def stats(self):
        return self.simulator.stats

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.worker.base_url.removeprefix("http://").removesuffix("/v1").rpartition(":")
        return host, int(port)

    def post(self, body: Any = None, *, headers: dict[str, str] | None = None, **faults: object):
        """A chat request; `cut_after=2` sends `x-simulate-cut-after: 2`."""
        simulate = {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in faults.items()}
        body = CHAT if body is None else body
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        sent = {"Authorization": f"Bearer {self.key}", **simulate, **(headers or {})}
        return self.session.post(f"{self.worker.base_url}/chat/completions", headers=sent, **content)

    def stream(self, **faults: object):
        return self.post({**CHAT, "stream": True}, **faults)

    def request_bytes(self, body: dict | bytes | None = None, *more: str, path: str = "/v1/chat/completions") -> bytes:
        """A good request as it goes over the wire."""
        content = body if isinstance(body, bytes) else json.dumps(CHAT if body is None else body).encode()
        head = [
            f"POST {path} HTTP/1.1",
            "Host: gateway",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *more,
        ]
        return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + content

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def raw(self, data: bytes, *, half_close: bool = False) -> Answer:
        """Send bytes; read one answer, or to the end of the connection where its length is not told."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            if half_close:
                writer.write_eof()
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await read_answer(reader)

    async def noticed(self) -> None:
        """Wait until all that clients who have left by now had sent is known to the server, and that they left.

        Connections are taken in the order in which they were made: once one that is newer has been served to its end,
        no older one is still to come. No client may be connected.
        """
        async with self.connection() as (reader, writer):
            writer.write_eof()
            assert await reader.read() == b""
        await until(lambda: self.worker.listener.open_connections == 0)

    async def settled(self) -> None:
        """Wait until nothing is being served, here and upstream."""
        await until(lambda: self.in_flight == 0 and self.stats.in_flight == 0)

    @property
    def in_flight(self) -> float:
        return self.metric("tollgate_in_flight_requests")

    def metric(self, name: str, **labels: str) -> float:
        return self.worker.metrics.registry.get_sample_value(name, labels) or 0.0

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series of a metric that have these labels."""
        samples = [sample for family in self.worker.metrics.registry.collect() for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    async def events(self) -> list[dict[str, Any]]:
        """All events of the ledger, in the order in which they began."""
        await self.settled()
        await self.worker.ledger.ship_once()
        return await asyncio.to_thread(self._events)

    def _events(self) -> list[dict[str, Any]]:
        with reading(self.engine, "ledger", "test") as connection:
            query = select(usage_events).order_by(usage_events.c.event_id)
            return [dict(row) for row in connection.execute(query).mappings()]

    async def charged(self) -> tuple[int, int]:
        """Requests and tokens that are missing in the team's bucket."""
        limits = Limits(**LIMITS)
        (standing,) = await self.worker.services.limiter.peek(TEAM, [Scope("team", Schedule(limits, limits))])
        return CAPACITY - standing.requests.remaining, CAPACITY - standing.tokens.remaining

    async def mismatches(self):
        return await asyncio.to_thread(SqlUsageReports(self.engine).verify)

    def records(self) -> list[dict[str, Any]]:
        """The lines of the request log."""
        assert self.worker.equipment.log.written(PATIENCE_SECONDS)
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    async def works(self) -> None:
        """One more good request is served, whole."""
        answer = await self.raw(self.request_bytes())
        assert answer.status == 200
        assert json.loads(answer.body)["choices"]


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """One answer: by its length, by its last chunk, or until the connection ends."""
    data = b""
    try:
        while True:
            head, blank, body = data.partition(b"\r\n\r\n")
            lower = head.lower()
            if blank and b"content-length: " in lower:
                length = int(lower.partition(b"content-length: ")[2].split(b"\r\n")[0])
                if len(body) >= length:
                    return Answer(data, clean=True)
            elif blank and b"transfer-encoding: chunked" in lower and body.endswith(b"0\r\n\r\n"):
                return Answer(data, clean=True)
            more = await reader.read(65_536)
            if not more:
                return Answer(data, clean=False)
            data += more
    except ConnectionResetError:
        return Answer(data, clean=False)


async def until(met: Callable[[], bool]) -> None:
    """Wait for a condition that has no event of its own."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not met():  # noqa: ASYNC110 - counts have no event
            await asyncio.sleep(0.005)


async def at_rest(amount: Callable[[], int]) -> int:
    """Wait until an amount has begun to grow and grows no more; returns it.

    It is looked at in turns of the loop, in each of which all that can go on does: time alone may pass for everybody.
    """
    seen = looks = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while looks < 30:
            await asyncio.sleep(0.01)
            looks = looks + 1 if amount() == seen > 0 else 0
            seen = amount()
    return seen


class HeldTime(SystemTime):
    """The time of a simulator: whatever it is to wait for lasts until it is released, but for the first few waits."""

    def __init__(self, free: int = 0) -> None:
        self._released = asyncio.Event()
        self._free = free
        self.waiting = 0

    async def sleep(self, seconds: float) -> None:
        """Return once released; at once where nothing is to be waited for."""
        if seconds and self._free:
            self._free -= 1
        elif seconds:
            self.waiting += 1
            await self._released.wait()
            self.waiting -= 1
        await asyncio.sleep(0)

    def release(self) -> None:
        """End all waits, and those to come."""
        self._released.set()


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """Where nobody listens: a port that is taken, so that nobody else begins to."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


Open = Callable[..., Awaitable[Gateway]]


@pytest_asyncio.fixture
async def open_gateway(tmp_path: Path, nothing_forgotten: None) -> AsyncIterator[Open]:
    """Start gateways with settings of their own; all are stopped at the end."""
    async with contextlib.AsyncExitStack() as stack:

        async def go(behaviour: Behaviour | None = None, *, time: HeldTime | None = None, **changes: object) -> Gateway:
            behaviour = behaviour or Behaviour(api_key=UPSTREAM_KEY)
            simulator = await stack.enter_async_context(await start(behaviour, time=time))
            values = {"data_dir": str(tmp_path), "upstream.base_url": simulator.base_url, **SETTINGS, **changes}
            settings = load(environ={"OPENAI_API_KEY": UPSTREAM_KEY}, overrides=values)
            engine = stack.enter_context(open_database(settings))
            log = io.StringIO()
            running = await stack.enter_async_context(contextlib.AsyncExitStack())
            with contextlib.redirect_stdout(log):
                worker = await running.enter_async_context(serving(settings, engine))
            registry = SqlRegistry(engine, worker.services.clock, load_or_create_pepper(tmp_path))
            registry.add_team(TEAM, "free", **LIMITS)
            key = registry.issue_key(TEAM, label="test").key
            session = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True, limit=0))
            )
            return Gateway(worker, engine, simulator, session, key, settings, log, running.aclose)

        yield go


@pytest_asyncio.fixture
async def gateway(open_gateway: Open) -> Gateway:
    return await open_gateway()


@pytest.fixture
def nothing_forgotten(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """No task failed unseen, and nothing was logged as an error, traceback or secret."""
    yield
    gc.collect()
    records = [record for when in ("setup", "call", "teardown") for record in caplog.get_records(when)]
    assert [record.getMessage() for record in records if record.levelno >= logging.ERROR or record.exc_info] == []
    assert UPSTREAM_KEY not in caplog.text


Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedUpstream:
    """An upstream that says what a script says, byte for byte, on every connection; the request has been read."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.calls = 0
        self.left = 0
        """Scripts that the other side's leaving ended."""
        self.heads: list[bytes] = []

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._open:
            writer.close()
        await until(lambda: not self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.calls += 1
            self.heads.append(head)
            length = head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]
            await reader.readexactly(int(length or 0))
            await self._script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._open.discard(writer)
