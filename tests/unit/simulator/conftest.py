"""A time that passes only when it is waited for, and a simulator that listens."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
import pytest_asyncio

from proxy.simulator import Behaviour, RunningSimulator, start

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How deep is the bucket?"}]}
KEY = {"Authorization": "Bearer sk-test"}


class ManualTime:
    def __init__(self) -> None:
        self.ms = 1_800_000_000_000.0
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return int(self.ms)

    def monotonic_ns(self) -> int:
        return int(self.ms * 1_000_000)

    async def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
            self.ms += seconds * 1_000
        await asyncio.sleep(0)


class Harness:
    """A simulator and a plain client on it."""

    def __init__(self, simulator: RunningSimulator, time: ManualTime, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.stats = simulator.stats
        self.time = time
        self.session = session
        self.url = f"{simulator.base_url}/chat/completions"
        self.root = simulator.base_url.removesuffix("/v1")

    def post(self, body: dict | bytes | None = None, *, key: dict | None = None, **faults: object):
        """A chat request; `cut_after=2` sends `x-simulate-cut-after: 2`, other fields go into the body."""
        headers = {f"x-simulate-{name.replace('_', '-')}": str(value) for name, value in faults.items()}
        headers |= KEY if key is None else key
        body = CHAT if body is None else body
        content = {"data": body} if isinstance(body, bytes) else {"json": body}
        return self.session.post(self.url, headers=headers, **content)

    def stream(self, **faults: object):
        return self.post({**CHAT, "stream": True}, **faults)

    async def until(self, met: Callable[[], bool]) -> None:
        """Wait for a condition of the server's."""
        async with asyncio.timeout(60):
            while not met():  # noqa: ASYNC110 - the server's counts have no event
                await asyncio.sleep(0.005)


@pytest.fixture
def chat() -> dict:
    return dict(CHAT)


@pytest.fixture
def manual_time() -> ManualTime:
    return ManualTime()


Start = Callable[..., Awaitable[Harness]]


@pytest_asyncio.fixture
async def simulate() -> AsyncIterator[Start]:
    running: list[Harness] = []

    async def go(time: object = None, **options: object) -> Harness:
        simulator = await start(Behaviour(**options), time=time)
        # Reused connections would let aiohttp try again by itself after a reset.
        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        running.append(Harness(simulator, time, session))
        return running[-1]

    yield go
    for harness in running:
        await harness.session.close()
        await harness.simulator.stop()
