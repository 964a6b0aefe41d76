"""The way upstream is the operator's: nothing a client sends changes it, and nobody on it is taken for another."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxy.core.budget import Cap, Period, span_of
from proxy.core.caps import BudgetReached
from proxy.core.decision import TEAM_SCOPE
from proxy.core.outgoing import Proxies
from proxy.settings import load
from tests.faults.conftest import TEAM, UPSTREAM_KEY, Gateway, Open, ScriptedUpstream, until
from tests.support.certificates import Authority, server_context
from tests.support.forward_proxy import ForwardProxy
from tests.support.recording_upstream import Recorder

PROXY_PASSWORD = "pr0xy-passw0rd"
NETRC_PASSWORD = "netrc-passw0rd"
ONCE = {"upstream.max_attempts": 1, "upstream.connect_timeout_seconds": 20.0, "cache.enabled": False}


async def asked(gateway: Gateway, **headers: str) -> tuple[int, Any]:
    async with gateway.post(headers=headers) as response:
        return response.status, await response.json()


async def unreachable(gateway: Gateway) -> None:
    """Refused as it must be: nothing was sent, no tokens are charged, and nobody is told more than that."""
    status, body = await asked(gateway)
    assert (status, body["error"]["code"]) == (502, "upstream_unreachable")
    assert await gateway.charged() == (1, 0)
    assert gateway.total("tollgate_upstream_errors_total", upstream="sim", kind="unreachable") == 1


# TLS


async def test_an_upstream_whose_authority_was_named_is_called(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with Recorder(server_context(authority.issue("upstream"))) as upstream:
        gateway = await open_gateway(
            **ONCE | {"upstream.base_url": upstream.url, "upstream.ca_file": str(authority.file)}
        )
        assert (await asked(gateway))[0] == 200
        assert len(upstream.asked) == 1


@pytest.mark.parametrize("fault", ["unknown", "another host", "expired", "another authority"])
async def test_an_upstream_that_proves_nothing_is_not_spoken_to(open_gateway: Open, tmp_path: Path, fault: str) -> None:
    authority = Authority(tmp_path)
    files = {
        "another host": lambda: authority.issue("upstream", "elsewhere.example"),
        "expired": lambda: authority.issue("upstream", expired=True),
    }.get(fault, lambda: authority.issue("upstream"))()
    trusted = {
        "unknown": {},
        "another authority": {"upstream.ca_file": str(Authority(tmp_path, "another").file)},
    }.get(fault, {"upstream.ca_file": str(authority.file)})
    async with Recorder(server_context(files)) as upstream:
        gateway = await open_gateway(**ONCE | {"upstream.base_url": upstream.url} | trusted)
        await unreachable(gateway)
        assert upstream.heads == []
        assert upstream.strays == b""


async def test_https_is_not_spoken_in_the_clear(open_gateway: Open) -> None:
    async with Recorder() as upstream:
        soon = {"upstream.connect_timeout_seconds": 1.0}  # it says nothing to a handshake
        gateway = await open_gateway(**ONCE | soon | {"upstream.base_url": upstream.url.replace("http://", "https://")})
        await unreachable(gateway)
        assert upstream.heads == []
        assert UPSTREAM_KEY.encode() not in upstream.strays


# What clients send


ELSEWHERE = {
    "Host": "elsewhere.example",
    "X-Forwarded-Host": "elsewhere.example",
    "X-Forwarded-For": "6.6.6.6",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Port": "1",
    "X-Forwarded-Server": "elsewhere.example",
    "Forwarded": "host=elsewhere.example;proto=http",
    "X-Real-IP": "6.6.6.6",
    "X-Original-URL": "/v1/files",
    "X-Rewrite-URL": "http://elsewhere.example/",
    "X-HTTP-Method-Override": "DELETE",
    "X-Host": "elsewhere.example",
    "Proxy": "http://elsewhere.example",
    "Proxy-Authorization": "Basic eDp5",
    "Cookie": "a=b",
    "x-tollgate-upstream": "elsewhere",
    "x-tollgate-upstream-url": "http://elsewhere.example/v1",
    "x-tollgate-base-url": "http://elsewhere.example/v1",
    "OpenAI-Organization": "org-else",
    "OpenAI-Project": "proj-else",
    "Location": "http://elsewhere.example/",
    "Referer": "http://elsewhere.example/",
    "Origin": "http://elsewhere.example",
}
NOT_SENT_ON = {
    "x-forwarded-host", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-port", "x-forwarded-server", "forwarded",
    "x-real-ip", "proxy-authorization", "cookie", "x-tollgate-upstream", "x-tollgate-upstream-url",
    "x-tollgate-base-url", "openai-organization", "openai-project",
}  # fmt: skip


async def test_no_header_leads_a_call_elsewhere(open_gateway: Open) -> None:
    async with Recorder() as upstream, Recorder() as elsewhere:
        gateway = await open_gateway(**ONCE | {"upstream.base_url": upstream.url})
        for name, value in ELSEWHERE.items():
            there = value.replace("elsewhere.example", f"127.0.0.1:{elsewhere.port}")
            assert (await asked(gateway, **{name: there}))[0] == 200
            lines = [line.lower() for line in upstream.heads[-1].decode().split("\r\n")]
            assert lines[0] == "post /v1/chat/completions http/1.1", name
            said = {each: [line for line in lines if line.startswith(f"{each}:")] for each in ("host", "authorization")}
            assert said == {
                "host": [f"host: 127.0.0.1:{upstream.port}"],
                "authorization": [f"authorization: bearer {UPSTREAM_KEY}"],
            }, name
            if name.lower() in NOT_SENT_ON:
                assert not [line for line in lines if line.startswith(f"{name.lower()}:")]
        assert len(upstream.heads) == len(ELSEWHERE)
        assert elsewhere.connections == 0


async def test_no_target_leads_a_call_elsewhere(open_gateway: Open) -> None:
    async with Recorder() as upstream, Recorder() as elsewhere:
        gateway = await open_gateway(**ONCE | {"upstream.base_url": upstream.url})
        there = f"127.0.0.1:{elsewhere.port}"
        for target in (
            f"http://{there}/v1/chat/completions",
            f"//{there}/v1/chat/completions",
            f"/{there}/v1/chat/completions",
            f"@{there}/v1/chat/completions",
            f"/v1/chat/completions@{there}/",
            f"/v1/models/http://{there}/",
            f"/v1/files/..%2f..%2f@{there}",
        ):
            assert (await gateway.raw(gateway.request_bytes(path=target))).status in {400, 403, 404, 405}
        # A query is part of the same call, whatever it says.
        path = f"/v1/chat/completions?base_url=http://{there}&host=@{there}#x"
        assert (await gateway.raw(gateway.request_bytes(path=path.partition("#")[0]))).status == 200
        assert [head.split(b"\r\n")[0].decode() for head in upstream.heads] == [
            f"POST {path.partition('#')[0]} HTTP/1.1"
        ]
        assert elsewhere.connections == 0


async def test_redirects_are_not_followed_and_cookies_not_kept(open_gateway: Open) -> None:
    async with Recorder() as elsewhere:

        async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(
                b"HTTP/1.1 307 Elsewhere\r\nLocation: %s/chat/completions\r\nSet-Cookie: a=b; Path=/\r\n"
                b"Content-Length: 0\r\nConnection: close\r\n\r\n" % elsewhere.url.encode()
            )

        upstream = ScriptedUpstream(script)
        async with upstream as url:
            gateway = await open_gateway(**ONCE | {"upstream.base_url": url})
            for _ in range(2):
                async with gateway.post() as response:
                    assert response.status not in range(200, 300)
                    assert "set-cookie" not in response.headers
                    assert "location" not in response.headers
        assert elsewhere.connections == 0
        assert len(upstream.heads) == 2
        assert b"cookie" not in b"".join(upstream.heads).lower()


# Proxies of the network


def through(gateway_settings: dict[str, Any], proxy: ForwardProxy, *, password: bool = False) -> dict[str, Any]:
    user = f"user:{PROXY_PASSWORD}@" if password else ""
    url = f"http://{user}127.0.0.1:{proxy.port}"
    return ONCE | gateway_settings | {"outgoing.https_proxy": url, "outgoing.http_proxy": url}


@pytest.mark.parametrize("password", [False, True])
async def test_https_goes_through_a_tunnel_that_sees_nothing(
    open_gateway: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture, password: bool
) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("upstream", "upstream.example")
    async with Recorder(server_context(files)) as upstream, ForwardProxy(upstream.port) as proxy:
        settings = {"upstream.base_url": "https://upstream.example/v1", "upstream.ca_file": str(authority.file)}
        gateway = await open_gateway(**through(settings, proxy, password=password))
        for _ in range(2):
            assert (await asked(gateway))[0] == 200
        assert proxy.lines == [b"CONNECT upstream.example:443 HTTP/1.1"], "and is used again"
        assert (b"Proxy-Authorization: Basic " in proxy.heads[0]) is password
        assert UPSTREAM_KEY.encode() not in proxy.heads[0]
        for head in upstream.heads:
            assert b"\r\nHost: upstream.example\r\n" in head
            assert b"proxy-authorization" not in head.lower()
    assert PROXY_PASSWORD not in caplog.text + gateway.log.getvalue() + repr(gateway.settings)


async def test_the_certificate_is_that_of_upstream_behind_a_tunnel_too(open_gateway: Open, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    files = authority.issue("other", "other.example")
    async with Recorder(server_context(files)) as upstream, ForwardProxy(upstream.port) as proxy:
        settings = {"upstream.base_url": "https://upstream.example/v1", "upstream.ca_file": str(authority.file)}
        await unreachable(await open_gateway(**through(settings, proxy)))
        assert upstream.heads == []


async def test_http_goes_through_a_proxy(open_gateway: Open) -> None:
    async with Recorder() as upstream, ForwardProxy(upstream.port) as proxy:
        gateway = await open_gateway(
            **through({"upstream.base_url": "http://upstream.example/v1"}, proxy, password=True)
        )
        assert (await asked(gateway))[0] == 200
        assert proxy.lines == [b"POST http://upstream.example/v1/chat/completions HTTP/1.1"]
        assert b"Proxy-Authorization: Basic " in proxy.heads[0]


@pytest.mark.parametrize(("no_proxy", "led"), [("", 1), ("example.com, 0.0.0.0", 0)])
async def test_what_is_excepted_is_called_directly(open_gateway: Open, no_proxy: str, led: int) -> None:
    async with Recorder() as upstream, ForwardProxy(upstream.port) as proxy:
        # This machine, by an address that is not the one of loopback.
        settings = {"upstream.base_url": f"http://0.0.0.0:{upstream.port}/v1", "outgoing.no_proxy": no_proxy}
        gateway = await open_gateway(**through(settings, proxy))
        assert (await asked(gateway))[0] == 200
        assert (len(proxy.heads), len(upstream.heads)) == (led, 1)


@pytest.mark.parametrize("fault", ["refuses", "away"])
async def test_a_proxy_that_refuses_or_is_away_is_an_upstream_that_is(
    open_gateway: Open, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    async with Recorder() as upstream:
        async with ForwardProxy(upstream.port, refuses=True) as proxy:
            settings = through({"upstream.base_url": "https://upstream.example/v1"}, proxy, password=True)
            gateway = await open_gateway(**settings)
            if fault == "refuses":
                status, body = await asked(gateway)
        if fault == "away":
            status, body = await asked(gateway)
        assert (status, body["error"]["code"]) == (502, "upstream_unreachable")
        assert upstream.connections == 0
    said = caplog.text + gateway.log.getvalue() + json.dumps(body)
    assert PROXY_PASSWORD not in said
    assert "Basic " not in said


async def test_the_webhook_goes_through_the_proxy_too(open_gateway: Open, tmp_path: Path) -> None:
    secret = tmp_path / "webhook.secret"
    secret.write_text("s" * 32)
    async with Recorder() as upstream, ForwardProxy(upstream.port, refuses=True) as proxy:
        settings = through({"upstream.base_url": upstream.url}, proxy)
        settings |= {"budgets.webhook_url": "http://hook.example/it", "budgets.webhook_secret_file": str(secret)}
        gateway = await open_gateway(**settings)
        now_ms = gateway.worker.services.clock.now_ms()
        cap = Cap(TEAM_SCOPE, span_of(Period.MONTH, now_ms), None, 1)
        gateway.worker.services.budget_reached(BudgetReached(TEAM, "", cap, now_ms))
        await until(lambda: proxy.lines == [b"POST http://hook.example/it HTTP/1.1"])


async def test_the_environment_is_read_once_and_by_the_settings_alone(
    open_gateway: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Recorder() as upstream, ForwardProxy(upstream.port) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        gateway = await open_gateway(**ONCE | {"upstream.base_url": f"http://0.0.0.0:{upstream.port}/v1"})
        assert (await asked(gateway))[0] == 200
        assert proxy.heads == [], "these settings were read from another environment"


@pytest.mark.parametrize("led", [False, True])
async def test_no_password_of_a_netrc_goes_anywhere(
    open_gateway: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, led: bool
) -> None:
    netrc = tmp_path / ".netrc"
    hosts = ("127.0.0.1", "0.0.0.0", "upstream.example", "default")
    netrc.write_text("".join(f"machine {host} login someone password {NETRC_PASSWORD}\n" for host in hosts))
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    async with Recorder() as upstream, ForwardProxy(upstream.port) as proxy:
        changes = through({"upstream.base_url": "http://upstream.example/v1"}, proxy)
        gateway = await open_gateway(**changes if led else ONCE | {"upstream.base_url": upstream.url})
        assert (await asked(gateway))[0] == 200
        (head,) = upstream.heads
        assert head.lower().count(b"\r\nauthorization:") == 1
        assert f"Authorization: Bearer {UPSTREAM_KEY}".encode() in head
        assert len(proxy.heads) == led
        assert b"proxy-authorization" not in b"".join(proxy.heads).lower()


def test_settings_take_proxies_from_the_variables_everybody_knows(tmp_path: Path) -> None:
    def proxies(**environ: str) -> Proxies:
        return load(environ={"TOLLGATE_DATA_DIR": str(tmp_path)} | environ).outgoing.proxies()

    assert proxies() == Proxies()
    assert proxies(HTTPS_PROXY="http://a:1", HTTP_PROXY="http://b:2", NO_PROXY="c") == (
        Proxies("http://a:1", "http://b:2", "c")
    )
    assert proxies(https_proxy="http://a:1", HTTPS_PROXY="http://b:2") == Proxies("http://a:1")
    assert proxies(no_proxy="c", HTTP_PROXY="") == Proxies(no_proxy="c")
