"""A streamed response that upstream breaks off anywhere, in the middle of an event too."""

import asyncio
import json

import pytest

from proxy.simulator import Behaviour
from proxy.simulator.endpoint import Stamp
from proxy.simulator.responses import responses_endpoint
from tests.faults.conftest import Open, ScriptedUpstream

ASK = {"model": "gpt-4o-mini", "input": "How deep is the bucket?", "stream": True}
ANSWER = responses_endpoint(Behaviour())(json.dumps(ASK).encode())
FRAMES = [frame.data for frame in ANSWER.frames(Stamp("s" * 29, 1), usage=True)]
WHOLE = b"".join(FRAMES)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(WHOLE)


@pytest.mark.parametrize("at", [1, len(FRAMES[0]) - 1, len(FRAMES[0]), len(b"".join(FRAMES[:7])) + 30, len(WHOLE) - 1])
async def test_it_looks_broken_wherever_it_was_cut(open_gateway: Open, at: int) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + WHOLE[:at])
        await writer.drain()

    async with ScriptedUpstream(script) as url:
        gateway = await open_gateway(**{"upstream.base_url": url})
        answer = await gateway.raw(gateway.request_bytes(json.dumps(ASK).encode(), path="/v1/responses"))
        assert (answer.status, answer.clean) == (200, False)
        text = b"".join(line for line in answer.body.split(b"\r\n")[1::2])
        assert text.startswith(WHOLE[:at])
        *_, last, rest = text.removeprefix(WHOLE[:at]).split(b"\n\n")
        assert rest == b""
        name, _, data = last.partition(b"\n")
        error = json.loads(data.removeprefix(b"data: "))
        assert name == b"event: error"
        assert (error["type"], error["code"]) == ("error", "upstream_broken")
        (event,) = await gateway.events()
        assert (event["endpoint"], event["outcome"], event["estimated"]) == ("responses", "upstream_error", True)
        assert event["input_tokens"] > 0
