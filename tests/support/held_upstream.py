"""An upstream that answers chats, and stops in the midst until it is told to go on: for what must happen meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

__all__ = ["HELD", "INPUT_TOKENS", "HeldUpstream", "held_upstream"]

HELD = {"x-hold": "1"}
"""Headers of a request that is held; others are answered at once."""
INPUT_TOKENS = 5
"""What every prompt is said to be."""
_TOKENS = 16


@dataclass
class HeldUpstream:
    """What it was asked, and how it went."""

    base_url: str = ""
    asked: int = 0
    """Requests that have come, bodies and all."""
    completed: int = 0
    """Of them, those answered to the end."""
    cut: int = 0
    """Of them, those whose client left before that."""
    _gates: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)

    def go_on(self) -> None:
        """Answer what is held to its end, and whatever comes from now on."""
        for loop, gate in self._gates:
            loop.call_soon_threadsafe(gate.set)


@contextmanager
def held_upstream() -> Iterator[HeldUpstream]:
    """Of a stream that is held the first word has been sent, of a plain answer nothing."""
    upstream = HeldUpstream()
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        gate = asyncio.Event()
        upstream._gates.append((asyncio.get_running_loop(), gate))

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            asked = json.loads(await request.read())
            upstream.asked += 1
            try:
                answer = await _answered(request, asked, gate)
            except (asyncio.CancelledError, ConnectionError):
                upstream.cut += 1
                raise
            upstream.completed += 1
            return answer

        runner = web.ServerRunner(web.Server(handle, handler_cancellation=True), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        upstream.base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await asyncio.to_thread(ended.wait)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert started.wait(60)
    try:
        yield upstream
    finally:
        ended.set()
        thread.join()


async def _answered(request: web.BaseRequest, asked: dict[str, Any], gate: asyncio.Event) -> web.StreamResponse:
    tokens = asked.get("max_tokens") or _TOKENS
    is_held = not HELD.keys().isdisjoint(name.lower() for name in request.headers)
    usage = {"prompt_tokens": INPUT_TOKENS, "completion_tokens": tokens, "total_tokens": INPUT_TOKENS + tokens}
    head = {"id": "chatcmpl-1", "created": 1, "model": asked["model"]}
    if not asked.get("stream"):
        if is_held:
            await gate.wait()
        message = {"role": "assistant", "content": "deep" * tokens}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        told = {**head, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
        return b"data: " + json.dumps(told).encode() + b"\n\n"

    def word(**delta: str) -> bytes:
        return event([{"index": 0, "delta": delta, "finish_reason": None}])

    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(word(role="assistant", content="deep"))
    if is_held:
        await gate.wait()
    for _ in range(tokens - 1):
        await response.write(word(content="deep"))
    await response.write(event([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    await response.write(event([], usage) + b"data: [DONE]\n\n")
    await response.write_eof()
    return response
