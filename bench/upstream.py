"""An upstream that is nearly free: one answer for everything, and streams of chunks at a set interval.

`python bench/upstream.py --port N < ANSWER`. A request whose body asks for `"stream": true` gets `--chunks` chunks (or
as many as its `max_tokens` says), the first after `--first-ms`, the others `--interval-ms` apart, with the usage before
`[DONE]`. Bodies must come with their length.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from dataclasses import dataclass

MAX_HEAD_BYTES = 65_536
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STREAM = re.compile(rb'"stream" *: *true')
CHUNKS = re.compile(rb'"max_(?:completion_)?tokens" *: *(\d+)')
ABOUT = (
    b'"id":"chatcmpl-BwTq3nYkTfLr8Jx0mZsVh2dQeUaPo","object":"chat.completion.chunk","created":1800000000,'
    b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_560af6e559"'
)
CHUNK = (
    b'data: {%s,"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],'
    b'"usage":null}\n\n'
)
LAST = b'data: {%s,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
USAGE = b'data: {%s,"choices":[],"usage":{"prompt_tokens":84,"completion_tokens":%d,"total_tokens":%d}}\n\n'


@dataclass(frozen=True, slots=True)
class Manner:
    """How it answers."""

    answer: bytes
    chunks: int
    first_seconds: float
    interval_seconds: float


def framed(piece: bytes) -> bytes:
    """As a chunk of HTTP/1.1."""
    return b"%x\r\n%s\r\n" % (len(piece), piece)


class Conversation(asyncio.Protocol):
    """One connection: requests one after the other."""

    def __init__(self, manner: Manner) -> None:
        self._manner = manner
        self._whole = (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(manner.answer)
        ) + manner.answer
        self._chunk = framed(CHUNK % ABOUT)
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = transport  # type: ignore[assignment]  # of a stream, always

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - whatever the reason
        """Stop what is under way."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete, unless a stream is under way."""
        self._received += data
        self._answer()

    def _answer(self) -> None:
        while self._timer is None and self._transport is not None:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                if len(self._received) > MAX_HEAD_BYTES:
                    self._transport.abort()
                return
            length = LENGTH.search(self._received, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._received) < whole:
                return
            body = self._received[end + 4 : whole]
            del self._received[:whole]
            if STREAM.search(body):
                asked = CHUNKS.search(body)
                self._stream(int(asked[1]) if asked else self._manner.chunks)
            else:
                self._transport.write(self._whole)

    def _stream(self, chunks: int) -> None:
        if self._transport is None:
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        loop = asyncio.get_running_loop()
        due = loop.time() + self._manner.first_seconds
        self._timer = loop.call_at(due, self._next, due, chunks, chunks)

    def _next(self, due: float, left: int, chunks: int) -> None:
        if self._transport is None:
            return
        if left > 0:
            self._transport.write(self._chunk)
            due += self._manner.interval_seconds
            self._timer = asyncio.get_running_loop().call_at(due, self._next, due, left - 1, chunks)
            return
        end = LAST % ABOUT + USAGE % (ABOUT, chunks, 84 + chunks) + b"data: [DONE]\n\n"
        self._transport.write(framed(end) + b"0\r\n\r\n")
        self._timer = None
        self._answer()


async def serve(port: int, manner: Manner) -> None:
    """Serve until the process is ended."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Conversation(manner), "127.0.0.1", port, backlog=4096
    )
    await server.serve_forever()


def main() -> None:
    """Read the command line, and serve."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--chunks", type=int, default=20, help="chunks of a stream that names no number")
    arguments.add_argument("--first-ms", type=float, default=0.0, help="before a stream's first chunk")
    arguments.add_argument("--interval-ms", type=float, default=0.0, help="between two chunks of a stream")
    chosen = arguments.parse_args()
    manner = Manner(sys.stdin.buffer.read(), chosen.chunks, chosen.first_ms / 1e3, chosen.interval_ms / 1e3)
    try:
        import uvloop  # noqa: PLC0415 - it does not install everywhere

        uvloop.run(serve(chosen.port, manner))
    except ImportError:
        asyncio.run(serve(chosen.port, manner))


if __name__ == "__main__":
    main()
