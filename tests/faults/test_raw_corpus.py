"""Bytes that are not quite a request: whatever comes, upstream sees the requests that were meant, or none.

Upstream records what it gets, byte for byte, on connections that are kept and used again; after each case another
client asks, and gets its own answer.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio

from tests.faults.conftest import PATIENCE_SECONDS, Gateway, Open
from tests.support.raw_corpus import Case, Then, ask, corpus
from tests.support.recording_upstream import Recorder

KEY_OF_CORPUS = "sk-tg_" + "0" * 40
NAMES = sorted(corpus(KEY_OF_CORPUS))


class Stage:
    """A gateway before a recorder."""

    def __init__(self, gateway: Gateway, recorder: Recorder) -> None:
        self.gateway = gateway
        self.recorder = recorder
        self.cases = corpus(gateway.key)
        self.number = 0

    async def innocent(self) -> None:
        """Somebody else asks, and gets an answer to that."""
        self.number += 1
        question = f"innocent {self.number}"
        async with self.gateway.post(json.loads(ask(question))) as response:
            assert response.status == 200
            assert (await response.json())["choices"][0]["message"]["content"] == question
        assert self.recorder.asked[-1] == question
        self.recorder.forget()


@pytest_asyncio.fixture
async def stage(open_gateway: Open) -> AsyncIterator[Stage]:
    async with Recorder() as recorder:
        gateway = await open_gateway(**{"upstream.base_url": recorder.url, "cache.enabled": False})
        yield Stage(gateway, recorder)


def responses(data: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """All answers in what a connection brought; their framing is the server's own."""
    found = []
    while data:
        head, end, rest = data.partition(b"\r\n\r\n")
        assert end, data
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(first.split(" ")[1])
        length = 0 if status == 100 else int(headers["content-length"])
        found.append((status, headers, rest[:length]))
        data = rest[length:]
    return found


async def exchange(gateway: Gateway, case: Case) -> tuple[list[tuple[int, dict[str, str], bytes]], Then]:
    """Send a case; what was answered, and what became of the connection."""
    sentinel = b"GET /v1/sentinel HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with gateway.connection() as (reader, writer), asyncio.timeout(PATIENCE_SECONDS):
        writer.write(case.sent + case.behind)
        if case.then is Then.STAYS:
            data = await reader.readuntil(b"\r\n\r\n")
            writer.write(sentinel)
            data += await reader.readuntil(b"(GET /v1/sentinel)")
            data += await reader.readuntil(b"}}")
            found = responses(data)
            assert found.pop()[0] == 404
            return found, Then.STAYS
        data = b""
        if case.then is Then.LINGERS:
            data = await reader.readuntil(b"}}")
        if case.then in {Then.LINGERS, Then.WAITS}:
            writer.write_eof()
        data += await reader.read(-1)
        return responses(data), case.then


def shaped(status: int, headers: dict[str, str], body: bytes) -> None:
    error = json.loads(body)["error"]
    assert sorted(error) == ["code", "message", "param", "type"]
    assert headers["content-type"].startswith("application/json")
    assert re.fullmatch(r"req_[0-9a-f]{32}", headers["x-request-id"])
    assert status >= 400


async def check(stage: Stage, name: str, case: Case) -> None:
    gateway, recorder = stage.gateway, stage.recorder
    before = recorder.connections
    found, _ = await exchange(gateway, case)
    await gateway.settled()
    assert tuple(status for status, _, _ in found) == case.statuses, name
    assert recorder.asked == case.forwarded, name
    for status, headers, body in found:
        if status >= 400:
            shaped(status, headers, body)
            assert gateway.key.encode() not in body
    if case.then in {Then.CLOSES, Then.LINGERS} and b"/1.0\r\n" not in case.sent:
        assert found[-1][1]["connection"] == "close", name
    for head in recorder.heads:
        canonical(head, gateway)
    recorder.forget()
    await stage.innocent()
    assert recorder.strays == b""
    assert recorder.connections <= before + 1


def canonical(head: bytes, gateway: Gateway) -> None:
    """A head as only this server writes one: one host, ours; one length; one key, ours; nothing between the lines."""
    lines = head.split(b"\r\n")
    assert re.fullmatch(rb"POST /v1/chat/completions(\?[!-~]*)? HTTP/1\.1", lines[0])
    names = [line.partition(b": ")[0].lower() for line in lines[1:]]
    assert all(re.fullmatch(rb"[!#$%&'*+.^_`|~0-9a-z-]+", name) for name in names)
    assert not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", b"".join(lines))
    for name in (b"host", b"content-length", b"authorization", b"accept-encoding"):
        assert names.count(name) == 1, name
    never = {b"transfer-encoding", b"te", b"trailer", b"connection", b"upgrade", b"expect", b"keep-alive", b"cookie"}
    assert not never & set(names)
    assert gateway.key.encode() not in head


@pytest.mark.parametrize("kind", sorted({name.partition(":")[0].partition(" ")[0] for name in NAMES}))
async def test_corpus(stage: Stage, kind: str) -> None:
    wrong = []
    for name, case in stage.cases.items():
        if name.partition(":")[0].partition(" ")[0] == kind:
            try:
                await check(stage, name, case)
                if case.behind:
                    await check(stage, f"{name}, alone", replace(case, behind=b""))
            except (AssertionError, KeyError, TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                wrong.append(f"{name}: {type(error).__name__} {str(error)[:300]}")
                stage.recorder.forget()
    assert wrong == [], "\n".join(wrong)
