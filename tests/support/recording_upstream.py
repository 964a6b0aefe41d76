"""An upstream that keeps every byte it gets, and answers each chat with what it asks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from typing import Self

__all__ = ["Recorder"]


class Recorder:
    """An upstream that keeps every byte, and answers a chat with what it asks."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.strays = b""
        """What came and was no request in canonical form."""
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._ended = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def asked(self) -> tuple[str, ...]:
        return tuple(json.loads(body)["messages"][0]["content"] for body in self.bodies)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        while self._writers:
            await self._ended.wait()
            self._ended.clear()

    def forget(self) -> None:
        self.heads.clear()
        self.bodies.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        data = b""
        try:
            while more := await reader.read(65_536):
                data = self._take(data + more, writer)
        except ConnectionError:
            pass
        finally:
            self.strays += data
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._writers.discard(writer)
            self._ended.set()

    def _take(self, data: bytes, writer: asyncio.StreamWriter) -> bytes:
        head, end, rest = data.partition(b"\r\n\r\n")
        length = re.findall(rb"\r\nContent-Length: (\d+)(?=\r\n|$)", head)
        if not end or len(length) != 1 or len(rest) < int(length[0]):
            return data
        body, rest = rest[: int(length[0])], rest[int(length[0]) :]
        self.heads.append(head)
        self.bodies.append(body)
        message = {"role": "assistant", "content": json.loads(body)["messages"][0]["content"]}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "usage": usage}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        content = json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(content), content)
        )
        return rest
