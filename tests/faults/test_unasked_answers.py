"""What upstream says unasked: nobody is given an answer that was not made for them."""

import asyncio
import json

import pytest

from tests.faults.conftest import CHAT, Open, ScriptedUpstream, until

SECRET = b"of somebody else"


def answer(content: bytes, *, chunked: bool = False) -> bytes:
    body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content.decode()}}]})
    head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    if chunked:
        return f"{head}Transfer-Encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n".encode()
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


UNASKED = {
    "another answer": answer(SECRET),
    "half an answer": answer(SECRET)[:-9],
    "two more": answer(SECRET) * 2,
    "a time that is up": b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    "no answer at all": b"of somebody else",
    "a head that is to go on": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("when", ["with the end", "behind the end", "later"])
@pytest.mark.parametrize("unasked", UNASKED.values(), ids=UNASKED)
async def test_they_are_given_to_nobody(open_gateway: Open, unasked: bytes, when: str, chunked: bool) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = answer(b"own", chunked=chunked)
        if when == "with the end":
            writer.write(own[:-5])
            await asyncio.sleep(0.05)
            writer.write(own[-5:] + unasked)
        else:
            writer.write(own)
            await asyncio.sleep(0 if when == "behind the end" else 0.05)
            writer.write(unasked)
        await writer.drain()
        while True:
            await reader.readuntil(b"How deep")
            writer.write(answer(SECRET))

    upstream = ScriptedUpstream(script)
    async with upstream as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        for number in range(3):
            got = await gateway.raw(gateway.request_bytes(CHAT))
            assert got.status == 200
            assert SECRET not in got.data
            # Whoever says such a thing is spoken to no more. Before it has come, nobody can know.
            await until(lambda number=number: upstream.left == number + 1)


async def test_heads_that_go_on_belong_to_the_answer_and_the_connection_stays(open_gateway: Open) -> None:
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 2 + answer(b"own", chunked=True))
            await reader.readuntil(b"How deep")

    async with ScriptedUpstream(script) as base_url:
        gateway = await open_gateway(**{"upstream.base_url": base_url})
        for _ in range(3):
            got = await gateway.raw(gateway.request_bytes(CHAT))
            assert got.status == 200
            assert b"own" in got.data
        assert connections == 1
