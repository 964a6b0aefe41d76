"""Where calls to Azure go, over a real connection."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from proxy.adapters.azure import AzureUpstream
from proxy.adapters.openai import CompatibleUpstream, OpenAIUpstream, open_session
from proxy.ports import UpstreamRequest

KEY = "sk-azure-do-not-tell"


class Resource:
    """Hears what it is asked."""

    def __init__(self) -> None:
        self.url = ""
        self.targets: list[str] = []
        self.headers: dict[str, str] = {}

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.targets.append(f"{request.method} {request.raw_path}")
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        return web.Response(body=b"{}")


@pytest_asyncio.fixture
async def resource() -> AsyncIterator[Resource]:
    heard = Resource()
    runner = web.ServerRunner(web.Server(heard.handle), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    heard.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield heard
    await runner.cleanup()


@pytest_asyncio.fixture
async def session():
    async with open_session(max_connections=1, connect_seconds=60, idle_seconds=60) as session:
        yield session


DATED = "2024-10-21"


@pytest.mark.parametrize(
    ("version", "path_qs", "model", "target"),
    [
        (None, "/chat/completions", "dep", "/openai/v1/chat/completions"),
        (None, "/responses?beta=true", "dep", "/openai/v1/responses?beta=true"),
        ("v1", "/chat/completions", "dep", "/openai/v1/chat/completions"),
        ("preview", "/responses", "dep", "/openai/v1/responses?api-version=preview"),
        ("latest", "/models", "", "/openai/v1/models?api-version=latest"),
        (DATED, "/chat/completions", "dep", f"/openai/deployments/dep/chat/completions?api-version={DATED}"),
        (DATED, "/completions", "dep", f"/openai/deployments/dep/completions?api-version={DATED}"),
        (DATED, "/embeddings", "d/../e ?", f"/openai/deployments/d%2F..%2Fe%20%3F/embeddings?api-version={DATED}"),
        (DATED, "/images/edits", "dep", f"/openai/deployments/dep/images/edits?api-version={DATED}"),
        (DATED, "/audio/speech", "dep", f"/openai/deployments/dep/audio/speech?api-version={DATED}"),
        (DATED, "/responses", "dep", f"/openai/responses?api-version={DATED}"),
        (DATED, "/files/file-1", "", f"/openai/files/file-1?api-version={DATED}"),
        (DATED, "/embeddings?a=%20&api-version=2020-01-01&b", "dep",
         f"/openai/deployments/dep/embeddings?a=%20&b&api-version={DATED}"),
        (None, "/embeddings?api-version=2020-01-01", "dep", "/openai/v1/embeddings"),
        (DATED, "/embeddings?API-Version=1&api%2Dversion=2&+api-version=3&api-versions=4", "dep",
         f"/openai/deployments/dep/embeddings?api-versions=4&api-version={DATED}"),
    ],
)  # fmt: skip
async def test_paths(resource, session, version, path_qs, model, target):
    upstream = AzureUpstream("azure", f"{resource.url}/", KEY, session, api_version=version)
    answer = await upstream.send(UpstreamRequest("POST", path_qs, (("x-own", "kept"),), b"{}", model=model))
    await answer.read()
    answer.close()
    assert resource.targets == [f"POST {target}"]
    assert (resource.headers["api-key"], resource.headers["x-own"]) == (KEY, "kept")
    assert "authorization" not in resource.headers
    assert KEY not in repr(upstream)


async def test_without_a_key_none_is_sent(resource, session):
    upstream = AzureUpstream("azure", resource.url, None, session)
    (await upstream.send(UpstreamRequest("GET", "/models", ()))).close()
    assert not {"api-key", "authorization"} & set(resource.headers)


def test_versions_are_different_apis(session):
    names = {
        AzureUpstream("a", "http://x", KEY, session, api_version=each).identity for each in (None, "preview", DATED)
    }
    assert len(names) == 3
    assert (
        AzureUpstream("a", "http://x", "k1", session).identity
        == AzureUpstream("b", "http://x/", "k2", session).identity
    )


async def test_what_is_said_to_openai_alone_is_not_said_to_others(resource, session):
    headers = (("OpenAI-Beta", "x"), ("X-Stainless-Lang", "python"), ("x-own", "kept"), ("Accept", "*/*"))
    for kind, told in ((OpenAIUpstream, True), (CompatibleUpstream, False)):
        upstream = kind("a", f"{resource.url}/v1", KEY, session)
        (await upstream.send(UpstreamRequest("POST", "/chat/completions", headers, b"{}"))).close()
        assert resource.targets.pop() == "POST /v1/chat/completions"
        assert ("openai-beta" in resource.headers) is told
        assert ("x-stainless-lang" in resource.headers) is told
        assert (resource.headers["authorization"], resource.headers["x-own"]) == (f"Bearer {KEY}", "kept")
