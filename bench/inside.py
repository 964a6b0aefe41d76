"""A gateway inside this process, for benchmarks: the product's own parts, put together by `equip`.

Two things alone are not the product's, for they stand outside of it. Upstream is a driver that keeps the promises of
`ports.Upstream` and answers at once (turns are the product's own); clients are bytes handed to the protocol of a
connection whose transport is memory: what is measured is all that the process does but for the network's system calls.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from conversation import ANSWER
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.app.background import in_background
from proxy.app.database import open_database, registry_on
from proxy.app.equip import Equipment, equip
from proxy.pipeline.services import Services
from proxy.ports import Body, Turn, Upstream, UpstreamAnswer, UpstreamRequest
from proxy.settings import Settings, load
from proxy.web.openai import OpenAIRoutes
from proxy.web.server import OpenAIServer

__all__ = ["Callers", "Client", "Gateway", "bare_server", "gateway", "wire"]

WIDE, NARROW = "wide", "narrow"
_MOST = 1_000_000_000
_ANSWER_HEADERS = CIMultiDictProxy(
    CIMultiDict(
        {
            "Date": "Mon, 10 Mar 2025 01:25:52 GMT",
            "Content-Type": "application/json",
            "Content-Length": str(len(ANSWER)),
            "x-request-id": "req_5b1f2b0c8e4d4d1a",
            "openai-processing-ms": "312",
            "openai-version": "2020-10-01",
        }
    )
)


def wire(key: str, body: bytes) -> bytes:
    """The bytes of a request as a client sends it."""
    told = {
        "Host": "127.0.0.1:8080",
        "User-Agent": "bench/1",
        "Accept": "application/json",
        "Content-Type": "application/json",
        "Authorization": f"Bearer {key}",
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


class _Answer:
    """Has come whole."""

    status = 200
    headers = _ANSWER_HEADERS

    async def read(self) -> bytes:
        return ANSWER

    def arrived(self) -> bytes:
        return ANSWER

    async def chunks(self) -> AsyncIterator[bytes]:
        yield ANSWER

    def close(self) -> None:
        """Nothing is held."""


class _AtOnce:
    """Stands where an upstream does, and takes its turns; sends nothing, and has the answer at hand."""

    def __init__(self, real: Upstream) -> None:
        self.name, self.identity = real.name, real.identity
        self._real = real

    @property
    def waiting(self) -> int:
        return self._real.waiting

    async def turn(
        self,
        team: str = "",
        weight: int = 1,
        tokens: int = 0,
        on_wait: Callable[[], None] = lambda: None,
        model: str = "",
    ) -> Turn:
        return await self._real.turn(team, weight, tokens, on_wait, model)

    async def send(self, request: UpstreamRequest) -> UpstreamAnswer:  # noqa: ARG002 - all are answered alike
        return _Answer()


class Client:
    """One that has sent its body already; keeps the promises of `ports.Sender` as far as plain answers need them."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def receive(self) -> bytes:
        """The body."""
        return self._body

    def stream(self, max_bytes: int) -> Body:
        """No form is sent here."""
        raise NotImplementedError(max_bytes)

    async def open(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """No stream is asked for here."""
        raise NotImplementedError(status, headers)

    async def write(self, data: bytes) -> None:
        """No stream is asked for here."""
        raise NotImplementedError(data)

    async def close(self) -> None:
        """No stream is asked for here."""
        raise NotImplementedError

    def abort(self) -> None:
        """Nobody leaves."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """What is measured."""

    settings: Settings
    equipment: Equipment
    routes: OpenAIRoutes
    server: OpenAIServer
    key: str
    """Of a team whose limits nobody reaches, but which counts."""
    narrow_key: str
    """Of one that is refused from its second request on."""

    @property
    def services(self) -> Services:
        """What the pipeline works with."""
        return self.equipment.services


@asynccontextmanager
async def gateway(directory: Path) -> AsyncIterator[Gateway]:
    """Equip one worker on a directory, as it is without a settings file, with two teams and a key for each."""
    overrides = {"data_dir": str(directory), "upstream.base_url": "http://127.0.0.1:9/v1", "log.format": "json"}
    settings = load(environ={"OPENAI_API_KEY": "sk-upstream"}, overrides=overrides)
    async with AsyncExitStack() as stack:
        engine = stack.enter_context(open_database(settings))
        keys = []
        with registry_on(settings, engine, "bench") as registry:
            for team, requests_per_minute in ((WIDE, _MOST), (NARROW, 1)):
                limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": _MOST}
                registry.add_team(team, "payg", **limits)
                keys.append(registry.issue_key(team, label="bench").key)
        spawn = await stack.enter_async_context(in_background())
        # Lines are rendered and written as ever; nobody reads them.
        nowhere = await asyncio.to_thread(Path(os.devnull).open, "w", encoding="utf-8")
        with redirect_stdout(stack.enter_context(nowhere)):
            equipment = await equip(settings, engine, spawn, stack)
        for site in equipment.services.upstreams:
            for each in site.keys:
                each.call = _AtOnce(each.call)
        stack.push_async_callback(equipment.ledger.close)
        equipment.metrics.prepare((WIDE, NARROW))
        server = settings.server
        sizes = {"max_body_bytes": server.max_body_bytes, "max_held_bytes": server.max_held_bytes}
        routes = OpenAIRoutes(equipment.services, **sizes)
        yield Gateway(settings, equipment, routes, routes.server(watcher=equipment.metrics.http), *keys)


async def bare_server(stack: AsyncExitStack) -> Callable[[], asyncio.Protocol]:
    """The floor: aiohttp with one route that gives the answer, as its documentation does it."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=ANSWER, content_type="application/json")

    application = web.Application()
    application.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    if runner.server is None:
        raise LookupError("a runner that is set up has a server")
    return runner.server


class _Wire(asyncio.Transport):
    """A connection without a kernel: what is written has arrived, and the next request comes right after an answer."""

    def __init__(self, callers: Callers, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000), "sockname": ("127.0.0.1", 8_080)})
        self._callers = callers
        self._protocol = protocol
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        # Every answer here is an object of JSON, and no head ends like one.
        if data[-1:] == b"}":
            self._callers.answered(self._protocol, bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing waits to be written."""

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_reading(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """A client that waits for its answer sends nothing."""

    def resume_reading(self) -> None:
        """As above."""


class Callers:
    """Clients that each ask again as soon as they are answered."""

    def __init__(self, serve: Callable[[], asyncio.Protocol], count: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocols = [serve() for _ in range(count)]
        self._wires = [_Wire(self, protocol) for protocol in self._protocols]
        self._requests: list[bytes] = []
        self._left = 0
        self._done: asyncio.Event = asyncio.Event()
        self.last = b""
        """The latest answer, its head included where that came with it."""
        for wire_, protocol in zip(self._wires, self._protocols, strict=True):
            protocol.connection_made(wire_)

    async def ask(self, requests: Sequence[bytes]) -> None:
        """Ask all of these, and wait for the answers."""
        self._requests = list(requests)
        self._left = len(requests)
        self._done.clear()
        for protocol in self._protocols:
            self._next(protocol)
        await self._done.wait()

    def answered(self, protocol: asyncio.Protocol, data: bytes) -> None:
        """Take an answer."""
        self.last = data
        self._left -= 1
        if not self._left:
            self._done.set()
        self._next(protocol)

    def _next(self, protocol: asyncio.Protocol) -> None:
        if self._requests:
            self._loop.call_soon(protocol.data_received, self._requests.pop())

    def hang_up(self) -> None:
        """End the connections."""
        for each in self._wires:
            each.close()
