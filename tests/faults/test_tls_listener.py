"""The public listener over TLS: the same API, and a certificate that can be changed under it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from proxy.adapters.certificates import ListenerCertificate, client_context
from proxy.app.listen import follow_certificate
from proxy.app.worker import Worker
from tests.faults.conftest import CHAT, PATIENCE_SECONDS, Answer, Gateway, Open, read_answer, until
from tests.support.certificates import Authority

SHORT = 1.5


def context(authority: Authority) -> ssl.SSLContext:
    return client_context(authority.file)


async def serve(open_gateway: Open, files: tuple[Path, Path], **changes: object) -> Gateway:
    return await open_gateway(
        **{"server.tls_cert_file": str(files[0]), "server.tls_key_file": str(files[1]), **changes}
    )


def port_of(worker: Worker) -> int:
    assert worker.base_url.startswith("https://127.0.0.1:")
    return int(worker.base_url.removesuffix("/v1").rpartition(":")[2])


@contextlib.asynccontextmanager
async def connected(
    gateway: Gateway, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(gateway.worker), ssl=tls)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(gateway: Gateway, tls: ssl.SSLContext) -> tuple[Answer, str]:
    """An answer, and the name in the certificate it came under."""
    async with connected(gateway, tls) as (reader, writer):
        name = writer.get_extra_info("peercert")["subject"][0][0][1]
        writer.write(gateway.request_bytes())
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await read_answer(reader), name


async def test_the_official_sdk_over_tls(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = await serve(open_gateway, authority.issue("gateway"))
    async with (
        DefaultAsyncHttpxClient(verify=context(authority), trust_env=False) as http,
        AsyncOpenAI(base_url=gateway.worker.base_url, api_key=gateway.key, http_client=http, max_retries=0) as client,
    ):
        answer = await client.chat.completions.create(**CHAT)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(**CHAT, stream=True, temperature=1)
        assert [chunk async for chunk in stream]
    await gateway.settled()


async def test_what_is_no_tls_and_what_is_no_request_get_nowhere(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = await serve(open_gateway, authority.issue("gateway"))
    async with connected(gateway, None) as (reader, writer):
        writer.write(gateway.request_bytes())
        with contextlib.suppress(ConnectionResetError):
            assert b"HTTP" not in await reader.read(-1)
    async with connected(gateway, context(authority)) as (reader, writer):
        writer.write(b"BREW / HTTP/1.1\r\n\r\n")
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert gateway.stats.requests == 0


async def test_slow_clients_over_tls(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = await serve(open_gateway, authority.issue("gateway"), **{"server.header_timeout_seconds": SHORT})
    async with connected(gateway, context(authority)) as (reader, writer):
        writer.write(b"POST /v1")
        assert (await read_answer(reader)).status == 408


async def test_clients_that_do_not_shake_hands_are_counted_and_let_go(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    bounds = {"server.max_connections": 2, "server.header_timeout_seconds": 3.0}
    gateway = await serve(open_gateway, authority.issue("gateway"), **bounds)
    listener, tls = gateway.worker.listener, context(authority)
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(connected(gateway, None))
        await until(lambda: listener.open_connections == 2)
        answer, _ = await ask(gateway, tls)
        assert (answer.status, answer.error["code"]) == (503, "server_is_overloaded")
        silent = [await stack.enter_async_context(connected(gateway, None)) for _ in range(20)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            with contextlib.suppress(ConnectionResetError):
                assert await silent[-1][0].read(-1) == b"", "there is no room to tell it anything"
            assert listener.open_connections <= 4
            await until(lambda: listener.open_connections == 0)
    assert gateway.metric("tollgate_connections_cut_total", reason="too_many") >= 17
    assert (await ask(gateway, tls))[0].status == 200


async def test_a_handshake_that_is_none_is_forgotten_at_once(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    gateway = await serve(open_gateway, authority.issue("gateway"), **{"server.max_connections": 1})
    for _ in range(5):
        async with connected(gateway, None) as (_, writer):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await until(lambda: gateway.worker.listener.open_connections == 0)
    assert (await ask(gateway, context(authority)))[0].status == 200


async def test_whoever_shakes_hands_when_the_server_stops_holds_it_up_for_no_time(
    open_gateway: Open, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    gateway = await serve(open_gateway, authority.issue("gateway"))
    async with connected(gateway, None) as (reader, _):
        await until(lambda: gateway.worker.listener.open_connections == 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await gateway.stop()
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(-1) == b""


async def test_a_certificate_is_changed_without_a_restart(
    open_gateway: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    authority = Authority(tmp_path)
    place = authority.issue("first")
    certificate = ListenerCertificate(*place)
    gateway = await serve(open_gateway, place)
    tls = context(authority)
    assert (await ask(gateway, tls))[1] == "first"
    for new, old in zip(authority.issue("second"), place, strict=True):
        new.replace(old)
    # Not before: one that looks between the two would find a certificate with another's key, and say so.
    following = asyncio.create_task(follow_certificate(certificate, every_seconds=0.01))
    await until(lambda: "the certificate of the public listener was changed" in caplog.text)
    following.cancel()
    assert (await ask(gateway, tls))[0].status == 200


async def test_a_worker_follows_its_certificate(
    open_gateway: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = asyncio.Event()

    async def follow(certificate: ListenerCertificate) -> None:
        await changed.wait()
        await follow_certificate(certificate, 0.01)

    monkeypatch.setattr("proxy.app.worker.follow_certificate", follow)
    authority = Authority(tmp_path)
    place = authority.issue("first")
    gateway = await serve(open_gateway, place)
    tls = context(authority)
    async with connected(gateway, tls) as (reader, writer):
        assert (await ask(gateway, tls))[1] == "first"
        for new, old in zip(authority.issue("second"), place, strict=True):
            new.replace(old)
        changed.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (await ask(gateway, tls))[1] != "second":
                pass
        writer.write(gateway.request_bytes())
        assert (await read_answer(reader)).status == 200, "connections from before go on"


async def test_pairs_that_are_no_good_leave_the_one_from_before(
    open_gateway: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("proxy.app.worker.follow_certificate", lambda each: follow_certificate(each, 0.01))
    authority = Authority(tmp_path)
    place = authority.issue("first")
    gateway = await serve(open_gateway, place)
    bad = tmp_path / "bad"
    bad.write_text("no certificate")
    bad.replace(place[0])
    await until(lambda: "the certificate of the public listener stays as it was" in caplog.text)
    caplog.clear()
    answer, name = await ask(gateway, context(authority))
    assert json.loads(answer.body)["choices"]
    assert name == "first"
