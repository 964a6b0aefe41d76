"""The admin API in the test's own loop: stores that are away or busy, callers that leave."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import date

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import insert, text

from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import usage_daily
from proxy.app import open_database
from proxy.app.administration import admin_api, rotate_admin_token
from proxy.app.listen import listen, runner_of
from proxy.core.registry import DataUnusable
from proxy.settings import load
from proxy.web.admin import accounts
from proxy.web.operations import Operations

GIVEN = "a-token-of-the-operator-0123456789"


@pytest.fixture
def settings(tmp_path):
    file = tmp_path / "tollgate.toml"
    file.write_text('[models.aliases]\nfast = "gpt-4o-mini"\n')
    return load(file, {"TOLLGATE_ADMIN_TOKEN": GIVEN}, {"data_dir": str(tmp_path / "data")})


@pytest.fixture
def engine(settings):
    with open_database(settings) as engine:
        yield engine


@pytest_asyncio.fixture
async def url(settings, engine):
    async def fine():
        return None

    operations = Operations(
        render_metrics=lambda _: (b"", "text/plain"),
        checks={"x": fine},
        admin=admin_api(settings, engine),
    )
    runner = runner_of(operations.server(), shutdown_seconds=1.0)
    yield await listen(runner, "127.0.0.1", 0)
    await runner.cleanup()


@pytest_asyncio.fixture
async def session():
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {GIVEN}"}) as session:
        yield session


@contextmanager
def busy(engine):
    """Hold the one place of those who write."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE config_revision SET revision = revision"))
        yield


async def until(met):
    async with asyncio.timeout(60):
        while not met():  # noqa: ASYNC110 - a thread's doings have no event here
            await asyncio.sleep(0.005)


def threads():
    return {thread for thread in threading.enumerate() if thread.name == "admin"}


async def test_a_token_that_is_given_makes_no_file(settings, url, session):
    async with session.get(f"{url}/admin/v1/teams") as answer:
        assert answer.status == 200
    assert "admin_token" not in {path.name for path in settings.data_dir.iterdir()}
    with pytest.raises(DataUnusable, match="TOLLGATE_ADMIN_TOKEN"):
        rotate_admin_token(settings, "cli:test")
    assert GIVEN not in f"{settings!r} {settings.server!r}"


async def test_an_alias_is_no_name_to_limit_or_forget_by(url, session):
    await session.post(f"{url}/admin/v1/teams", json={"name": "growth"})
    for method, path, body in (
        ("PUT", "/teams/growth/model-limits/{}", {"requests_per_minute": 1}),
        ("POST", "/cache/purge", {"team": "growth"}),
    ):
        for model, status in (("fast", 422), ("gpt-4o-mini", 200)):
            named = body if "{}" in path else {**body, "model": model}
            async with session.request(method, f"{url}/admin/v1{path.format(model)}", json=named) as answer:
                told = await answer.json()
            assert (answer.status, "fast is an alias of gpt-4o-mini" in str(told)) == (status, model == "fast")


async def test_a_store_that_is_away_is_a_503_in_openais_shape(engine, url, session):
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE teams RENAME TO away"))
    for method, path, body in (("GET", "/teams", None), ("POST", "/teams", {"name": "growth"})):
        async with session.request(method, f"{url}/admin/v1{path}", json=body) as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["type"]) == (503, "service_unavailable_error")
        assert "Retry-After" in answer.headers
        assert "away" not in error["message"]
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO teams"))
    async with session.get(f"{url}/admin/v1/teams") as answer:
        assert answer.status == 200


async def test_who_waits_for_the_database_holds_up_nobody(engine, url, session):
    await until(lambda: not threads())
    with busy(engine):
        waiting = asyncio.create_task(session.post(f"{url}/admin/v1/teams", json={"name": "growth"}))
        await until(threads)
        for path in ("/healthz", "/readyz", "/admin/v1/teams", "/admin/v1/openapi.json"):
            async with session.get(f"{url}{path}") as answer:
                assert answer.status == 200
        assert not waiting.done()
    answer = await waiting
    assert answer.status == 201


async def test_a_change_goes_on_when_its_caller_leaves(settings, engine, url, session):
    await until(lambda: not threads())
    with busy(engine):
        waiting = asyncio.create_task(session.post(f"{url}/admin/v1/teams", json={"name": "growth"}))
        await until(threads)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await until(lambda: not threads())
    async with session.get(f"{url}/admin/v1/audit") as answer:
        (line,) = (await answer.json())["data"]
    assert (line["actor"], line["action"], line["team"]) == ("admin-api", "team.add", "growth")


async def test_a_report_is_bounded(engine, url, session, monkeypatch):
    monkeypatch.setattr(accounts, "MAX_ROWS", 3)
    zeros = {column.name: 0 for column in usage_daily.c if not column.primary_key}
    key = {"day": date(2026, 1, 1), "team": "growth", "key_id": "k", "upstream": "u", "endpoint": "chat"}
    rows = [{**zeros, **key, "model": f"m{number}"} for number in range(4)]
    with engine.begin() as connection:
        connection.execute(insert(usage_daily), rows)
    for path in ("/usage?by=model", "/usage.csv?by=model"):
        async with session.get(f"{url}/admin/v1{path}&since=2026-01-01") as answer:
            error = (await answer.json())["error"]
        assert (answer.status, error["param"]) == (422, "by")
    async with session.get(f"{url}/admin/v1/usage?by=team&since=2026-01-01") as answer:
        assert answer.status == 200


async def test_a_fault_of_ours_is_told_without_what_it_says(url, session, monkeypatch, caplog):
    secret = "sk-tg_quoted"

    def fail(*_):
        raise RuntimeError(secret)

    monkeypatch.setattr(SqlRegistry, "list_teams", fail)
    async with session.get(f"{url}/admin/v1/teams") as answer:
        error = (await answer.json())["error"]
    assert (answer.status, error["type"]) == (500, "server_error")
    assert "unexpected RuntimeError" in caplog.text
    assert "quoted" not in caplog.text + error["message"]


async def test_heads_of_pages(url, session):
    for path in ("/healthz", "/readyz", "/metrics"):
        async with session.head(f"{url}{path}") as answer:
            assert (answer.status, await answer.read()) == (200, b"")
