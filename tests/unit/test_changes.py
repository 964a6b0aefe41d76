"""Changes are told over Redis, with the keys that have ended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from sqlalchemy import text

from proxy.app import changes, open_database, open_registry
from proxy.app.administration import admin_api
from proxy.app.background import in_background
from proxy.app.changes import announce, hear
from proxy.app.database import registry_on
from proxy.app.listen import listen, runner_of
from proxy.core.errors import StoreAway
from proxy.settings import Settings, load
from proxy.web.operations import Operations
from tests.faults.tcp_proxy import run_tcp_proxy
from tests.support.redis_route import open_route
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis():
    with RedisServer() as running:
        yield running


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A server may stand still for a moment, as on a busy machine."""
    monkeypatch.setattr(changes, "_PATIENCE_SECONDS", 30.0)


async def test_what_is_announced_is_heard_with_the_keys_that_have_ended(redis):
    url = f"redis://127.0.0.1:{redis.port}"
    ended, changed = asyncio.Queue(), asyncio.Queue()
    async with open_route(url) as route, in_background() as spawn:
        hear(route, spawn, ended.put_nowait, lambda: changed.put_nowait("changed"))
        async with asyncio.timeout(60):
            await changed.get()
            assert ended.empty(), "to have subscribed ends no key"
            assert await asyncio.to_thread(announce, url, ["0a1B2c3D4e5F", "000000000000"])
            assert await ended.get() == ["0a1B2c3D4e5F", "000000000000"]
            await changed.get()
            assert await asyncio.to_thread(announce, url)
            assert await ended.get() == []
            await changed.get()


def test_a_redis_that_is_away_is_no_failure():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        assert not announce(f"redis://127.0.0.1:{nobody.getsockname()[1]}", ["0a1B2c3D4e5F"])


async def test_a_redis_that_takes_its_time_is_told(redis):
    async with ended_on(redis) as ended, run_tcp_proxy(("127.0.0.1", redis.port)) as gate:
        gate.delay_seconds = 0.3
        assert await asyncio.to_thread(announce, f"redis://127.0.0.1:{gate.port}", ["0a1B2c3D4e5F"])
        assert await ended.get() == ["0a1B2c3D4e5F"]


TOKEN = "a-token-of-the-operator-0123456789"


@pytest.fixture
def settings(tmp_path, redis) -> Settings:
    given = {"TOLLGATE_ADMIN_TOKEN": TOKEN, "TOLLGATE_REDIS_URL": redis.url}
    return load(environ=given, overrides={"data_dir": str(tmp_path / "data")})


@asynccontextmanager
async def ended_on(redis: RedisServer) -> AsyncIterator[asyncio.Queue[list[str]]]:
    """The keys named in each announcement."""
    ended, heard = asyncio.Queue(), asyncio.Event()
    async with open_route(redis.url) as route, in_background() as spawn, asyncio.timeout(60):
        hear(route, spawn, ended.put_nowait, heard.set)
        await heard.wait()
        yield ended


def three_keys(settings: Settings) -> list[str]:
    with open_registry(settings) as registry:
        registry.add_team("growth", "free")
        return [registry.issue_key("growth").record.kid for _ in range(3)]


def on_the_command_line(settings: Settings, kids: list[str]) -> None:
    for do in (
        lambda r: r.revoke_key(kids[0]),
        lambda r: r.rotate_key(kids[1]),
        lambda r: r.rotate_key(kids[2], 1_000),
    ):
        with open_registry(settings) as registry:
            do(registry)
    with open_registry(settings) as registry:
        registry.list_keys()
        registry.set_key(kids[2], label="told last")


async def over_the_admin_api(settings: Settings, kids: list[str]) -> None:
    with open_database(settings) as engine:
        operations = Operations(
            render_metrics=lambda _: (b"", "text/plain"), checks={}, admin=admin_api(settings, engine)
        )
        runner = runner_of(operations.server(), shutdown_seconds=1.0)
        url = f"{await listen(runner, '127.0.0.1', 0)}/admin/v1/keys"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            for method, path, body in (
                ("POST", f"{kids[0]}/revoke", None),
                ("POST", f"{kids[1]}/rotate", {}),
                ("POST", f"{kids[2]}/rotate", {"overlap_seconds": 1}),
                ("GET", kids[2], None),
                ("PATCH", kids[2], {"label": "told last"}),
            ):
                async with session.request(method, f"{url}/{path}", json=body) as answer:
                    assert answer.status == 200, await answer.text()
        await runner.cleanup()


@pytest.mark.parametrize("way", ["command line", "admin API"])
async def test_each_change_is_announced_with_what_it_has_ended(settings, redis, way):
    kids = await asyncio.to_thread(three_keys, settings)
    async with ended_on(redis) as ended:
        if way == "command line":
            await asyncio.to_thread(on_the_command_line, settings, kids)
        else:
            await over_the_admin_api(settings, kids)
        assert [await ended.get() for _ in range(4)] == [[kids[0]], [kids[1]], [], []], "reading announces nothing"
        assert ended.empty()


async def test_to_revoke_a_key_again_tells_those_who_were_not_told(settings, redis):
    def revoke(kid: str) -> None:
        for _ in range(2):
            with open_registry(settings) as registry:
                registry.revoke_key(kid)

    kid, *_ = await asyncio.to_thread(three_keys, settings)
    async with ended_on(redis) as ended:
        await asyncio.to_thread(revoke, kid)
        assert [await ended.get() for _ in range(2)] == [[kid], [kid]]


async def test_an_ended_key_is_named_though_the_database_is_gone_right_after(settings, redis):
    """Workers that cannot ask it would go on trusting the key."""

    def end(kid: str) -> None:
        with open_database(settings) as engine, registry_on(settings, engine, "test") as registry:
            registry.revoke_key(kid)
            with engine.begin() as connection:
                connection.execute(text("ALTER TABLE config_revision RENAME TO away"))
            raise StoreAway("registry", "what came after")

    kid, *_ = await asyncio.to_thread(three_keys, settings)
    async with ended_on(redis) as ended:
        with pytest.raises(StoreAway):
            await asyncio.to_thread(end, kid)
        assert await ended.get() == [kid]
