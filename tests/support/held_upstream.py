"""An upstream that answers chats, and stops in the midst until it is told to go on: for what must happen meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.support.served_apart import served_apart

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
    go_on: Callable[[], object] = lambda: None
    """Answer what is held to its end, and whatever comes from now on."""


@contextmanager
def held_upstream() -> Iterator[HeldUpstream]:
    """Of a stream that is held the first word has been sent, of a plain answer nothing."""
    upstream = HeldUpstream()

    def server() -> web.Server[web.BaseRequest]:
        gate = asyncio.Event()
        loop = asyncio.get_running_loop()
        upstream.go_on = lambda: loop.call_soon_threadsafe(gate.set)

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

        return web.Server(handle, handler_cancellation=True)

    with served_apart(server) as upstream.base_url:
        yield upstream


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
