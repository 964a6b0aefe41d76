"""What a call upstream costs: microseconds of CPU of one call with its answer, the median of many short rounds.

The product's own client and a bare `aiohttp.ClientSession` take turns calling the same upstream on loopback, several
calls at a time, each over connections that stay. The kernel's part is in all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import aiohttp
from conversation import question
from figures import Figure, arguments, show, write
from servers import upstream

from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.ports import UpstreamRequest

KEY = "sk-upstream"
AT_A_TIME = 16
CALLS = 320
"""In a round: fewer than a millisecond's interruption could hide in."""
HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": "OpenAI/Python 2.3.0",
    "X-Stainless-Lang": "python",
    "X-Stainless-Package-Version": "2.3.0",
    "X-Stainless-OS": "Linux",
    "X-Stainless-Arch": "x64",
    "X-Stainless-Runtime": "CPython",
    "X-Stainless-Runtime-Version": "3.11.7",
    "X-Stainless-Async": "false",
    "x-stainless-retry-count": "0",
    "x-stainless-read-timeout": "600",
}
"""As OpenAI's SDK sends them."""

Call = Callable[[], Awaitable[bytes]]


async def measure(base_url: str, rounds: int) -> list[Figure]:
    """Microseconds of this thread for each call: ours, and a session's with one header and with those of an SDK."""
    body = question(0)
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(open_session(max_connections=200, connect_seconds=5, idle_seconds=600))
        client = OpenAIUpstream("nginx", base_url, KEY, ours)
        request = UpstreamRequest("POST", "/chat/completions", tuple(HEADERS.items()), body)
        bare = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"{base_url}/chat/completions"

        async def product() -> bytes:
            answer = await client.send(request)
            try:
                return await answer.read()
            finally:
                answer.close()

        def session(headers: dict[str, str]) -> Call:
            async def call() -> bytes:
                async with bare.post(url, data=body, headers=headers) as response:
                    return await response.read()

            return call

        calls = {
            "a call upstream, ours, headers of an SDK": product,
            "a call upstream, aiohttp's session, the same headers": session({**HEADERS, "Authorization": KEY}),
            "a call upstream, aiohttp's session, one header": session({"Content-Type": "application/json"}),
        }
        seen: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                seen[name].append(await _round(call))
    return [Figure.of(name, times, "us") for name, times in seen.items()]


async def _round(call: Call) -> float:
    async def several() -> None:
        for _ in range(CALLS // AT_A_TIME):
            if not await call():
                raise RuntimeError("an answer was empty")

    begun_ns = time.thread_time_ns()
    await asyncio.gather(*(several() for _ in range(AT_A_TIME)))
    return (time.thread_time_ns() - begun_ns) / CALLS / 1_000


def main() -> None:
    """Measure, print, and write the same as JSON where asked to."""
    chosen = arguments(__doc__).parse_args()
    try:
        import uvloop as loops  # noqa: PLC0415 - it does not install everywhere
    except ImportError:
        loops = asyncio
    with TemporaryDirectory() as place, upstream(Path(place)) as server:
        figures = loops.run(measure(server.base_url, 5 if chosen.quick else 25))
    show(figures)
    if chosen.json is not None:
        write(chosen.json, figures)


if __name__ == "__main__":
    main()
