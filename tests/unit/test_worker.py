"""One worker from its start to its stop, in the test's own loop."""

import asyncio
import fcntl
import json
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from sqlalchemy import Engine, func, select, text

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import usage_events
from proxy.app import changes, limiting, open_database
from proxy.app import worker as worker_module
from proxy.app.worker import serving
from proxy.core.event import Dispatch
from proxy.core.ids import uuid7
from proxy.pipeline import principals
from proxy.settings import Settings, load
from proxy.simulator import RunningSimulator, start
from tests.support.redis_route import until_true
from tests.support.redis_server import RedisServer

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


@pytest_asyncio.fixture
async def simulator() -> AsyncIterator[RunningSimulator]:
    async with await start() as simulator:
        yield simulator


@pytest.fixture
def settings(tmp_path: Path, simulator: RunningSimulator) -> Settings:
    return settings_of(tmp_path, simulator)


def settings_of(tmp_path: Path, simulator: RunningSimulator, **changes: object) -> Settings:
    values = {
        "data_dir": str(tmp_path),
        "server.port": 0,
        "server.admin_port": 0,
        "server.drain_seconds": 60.0,
        "upstream.base_url": simulator.base_url,
    }
    return load(environ={"OPENAI_API_KEY": "sk-upstream"}, overrides=values | changes)


@pytest.fixture
def engine(settings: Settings):
    with open_database(settings) as engine:
        yield engine


@pytest.fixture
def registry(engine: Engine, clock, tmp_path: Path) -> SqlRegistry:
    registry = SqlRegistry(engine, clock, load_or_create_pepper(tmp_path))
    registry.add_team("growth", "free")
    return registry


@pytest.fixture
def clock():
    from proxy.adapters.clock import SystemClock

    return SystemClock()


@pytest.fixture
def key(registry: SqlRegistry) -> str:
    return registry.issue_key("growth", label="one").key


@pytest_asyncio.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        yield session


def events_in(engine: Engine) -> int:
    with reading(engine, "ledger", "test") as connection:
        return connection.execute(select(func.count()).select_from(usage_events)).scalar_one()


def requests_by_outcome(worker) -> dict[str, float]:
    samples = [sample for family in worker.metrics.registry.collect() for sample in family.samples]
    counted = [each for each in samples if each.name == "tollgate_requests_total" and each.value]
    return {each.labels["outcome"]: each.value for each in counted}


async def until(met) -> None:
    async with asyncio.timeout(60):
        while not await met():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_ready_serving_and_counted(settings, engine, key, session):
    async with serving(settings, engine) as worker:
        async with session.get(f"{worker.operations_url}/readyz") as response:
            assert (response.status, (await response.json())["status"]) == (200, "ready")
        async with session.post(f"{worker.base_url}/chat/completions", json=CHAT, headers=bearer(key)) as response:
            assert response.status == 200
        async with session.get(f"{worker.operations_url}/metrics") as response:
            exposition = await response.text()
        assert (
            'tollgate_requests_total{endpoint="chat",model="gpt-4o-mini",outcome="ok",team="growth"} 1.0' in exposition
        )
        async with session.get(f"{worker.operations_url}/v1/models", headers=bearer(key)) as response:
            assert response.status == 404, "the two listeners serve nothing of each other's"
        async with session.get(f"{worker.base_url.removesuffix('/v1')}/metrics") as response:
            assert response.status == 404
    assert events_in(engine) == 1, "what was in the spool is in the database when the worker has gone"
    assert not [path for path in (settings.data_dir / "spool").glob("*") if path.name != "lock"]


@pytest.mark.parametrize("which", ["server.port", "server.admin_port"])
async def test_a_port_that_is_taken_is_said_so(tmp_path, simulator, engine, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = settings_of(tmp_path, simulator, **{which: taken.getsockname()[1]})
        with pytest.raises(OSError, match="address already in use"):
            async with serving(settings, engine):
                raise AssertionError("it cannot serve")
    async with serving(settings_of(tmp_path, simulator), engine):
        pass  # nothing was left behind


async def test_a_change_of_keys_is_noticed(settings, engine, registry, key, session):
    async with serving(settings, engine) as worker:

        async def status() -> int:
            async with session.get(f"{worker.base_url}/models", headers=bearer(key)) as response:
                return response.status

        assert await status() == 200
        registry.revoke_key(key[6:18])

        async def refused() -> bool:
            return await status() == 401

        await until(refused)


@pytest.mark.parametrize("header", ["Authorization: Bearer ", "api-key: "])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_a_key_from_elsewhere_is_read_however_its_client_writes_it(settings, engine, registry, header, encoding):
    registry.import_keys("growth", ["Schlüssel für Größe 7"])
    body = json.dumps(CHAT)
    async with serving(settings, engine) as worker:
        place = urlsplit(worker.base_url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port)
        lines = ("POST /v1/chat/completions HTTP/1.1", "Host: x", f"{header}Schlüssel für Größe 7", "Connection: close")
        head = "\r\n".join((*lines, "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""))
        writer.write(head.encode(encoding) + body.encode())
        async with asyncio.timeout(60):
            answer = await reader.read()
        writer.close()
    assert answer.startswith(b"HTTP/1.1 200"), answer


async def test_after_a_change_only_the_key_it_ended_is_out_while_the_database_is_away(
    settings, engine, registry, key, session
):
    other = registry.issue_key("growth", label="other").key
    async with serving(settings, engine) as worker:

        async def status(of: str) -> int:
            async with session.get(f"{worker.base_url}/models", headers=bearer(of)) as response:
                return response.status

        async def looks(number: int) -> bool:
            return worker.services.principals._generation == number

        await until(partial(looks, 1))
        assert [await status(each) for each in (key, other)] == [200, 200]
        registry.revoke_key(key[6:18])
        await until(partial(looks, 2))
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE api_keys RENAME TO away"))
        assert [await status(each) for each in (key, other)] == [503, 200]
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO api_keys"))
        assert [await status(each) for each in (key, other)] == [401, 200]


def test_a_change_that_nobody_tells_of_is_looked_for_several_times_a_second():
    """Users are told that a change holds within a second; tests that wait for one give a busy machine more."""
    assert 0 < worker_module._LOOK_FOR_CHANGES_SECONDS <= 0.5


async def test_a_change_is_heard_of_over_redis_and_one_that_was_missed_when_it_is_back(
    tmp_path, simulator, engine, registry, key, session, monkeypatch
):
    # Nothing else tells: nobody looks at the database, and nothing that is known runs out.
    monkeypatch.setattr(worker_module, "_LOOK_FOR_CHANGES_SECONDS", 3_600)
    monkeypatch.setattr(principals, "POSITIVE_TTL_MS", 3_600_000)
    monkeypatch.setattr(changes, "_PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(limiting, "_CONNECT_SECONDS", 30.0)
    confirm, looks = principals.Principals.confirm, []
    monkeypatch.setattr(principals.Principals, "confirm", lambda self, at: looks.append(at) or confirm(self, at))
    with RedisServer() as redis:
        settings = settings_of(tmp_path, simulator, redis_url=redis.url, **{"limits.redis_deadline_ms": 10_000})
        async with serving(settings, engine) as worker:

            async def limit_told() -> str:
                url = f"{worker.base_url}/chat/completions"
                async with session.post(url, json=CHAT, headers=bearer(key)) as response:
                    return response.headers.get("x-ratelimit-limit-requests", "none")

            # The second time because something may have been missed before somebody listened.
            await until_true(lambda: len(looks) >= 2, "the database was looked at as often as it will be")
            assert await limit_told() == "20"
            registry.set_team("growth", tier="payg")
            assert await limit_told() == "20"
            assert await asyncio.to_thread(changes.announce, redis.url)

            async def is_60() -> bool:
                return await limit_told() == "60"

            await until(is_60)
            redis.kill()
            registry.set_team("growth", tier="free")
            assert not await asyncio.to_thread(changes.announce, redis.url)
            redis.start()

            async def is_20() -> bool:
                return await limit_told() == "20"

            await until(is_20)


async def test_a_new_team_has_its_counters_at_zero_before_its_first_request(settings, engine, registry):
    async with serving(settings, engine) as worker:
        registry.add_team("sales", "free")
        labels = {"team": "sales", "limit": "tokens"}

        async def there() -> bool:
            return worker.metrics.registry.get_sample_value("tollgate_rate_limited_total", labels) == 0.0

        await until(there)


async def test_a_team_that_could_not_be_read_when_it_was_new_is_read_later(settings, engine, registry):
    async with serving(settings, engine) as worker:
        value = worker.metrics.registry.get_sample_value
        registry.add_team("sales", "free")
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE audit_log RENAME TO away"))
            connection.execute(text("UPDATE config_revision SET revision = revision + 1"))

        async def counted() -> bool:
            return bool(value("tollgate_store_errors_total", {"store": "keys", "operation": "changes"}))

        await until(counted)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO audit_log"))

        async def there() -> bool:
            return value("tollgate_rate_limited_total", {"team": "sales", "limit": "tokens"}) == 0.0

        await until(there)


async def test_not_ready_while_the_database_is_away(settings, engine, key, session):
    async with serving(settings, engine) as worker:

        async def readiness() -> int:
            async with session.get(f"{worker.operations_url}/readyz") as response:
                return response.status

        assert await readiness() == 200
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE config_revision RENAME TO away"))
        assert await readiness() == 503

        async def counted() -> bool:
            labels = {"store": "keys", "operation": "changes"}
            return bool(worker.metrics.registry.get_sample_value("tollgate_store_errors_total", labels))

        await until(counted)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO config_revision"))
        assert await readiness() == 200


async def test_a_drain_says_so_first_and_lets_streams_finish(settings, engine, key, session):
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(serving(settings, engine))
        headers = bearer(key) | {"x-simulate-chunk-ms": "20"}
        url = f"{worker.base_url}/chat/completions"
        async with session.post(url, json={**CHAT, "stream": True}, headers=headers) as response:
            await response.content.readuntil(b"\n\n")
            leaving = asyncio.create_task(stack.aclose())

            async def draining() -> bool:
                return worker.operations.draining

            await until(draining)
            rest = await response.content.read()
            assert rest.endswith(b"data: [DONE]\n\n")
        await leaving
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get(f"{worker.base_url}/models")
    with reading(engine, "ledger", "test") as connection:
        (outcome,) = connection.execute(select(usage_events.c.outcome)).scalars()
    assert outcome == "ok"


async def test_a_stream_that_outlasts_the_drain_is_cut_and_accounted_for(tmp_path, simulator, engine, key, session):
    settings = settings_of(tmp_path, simulator, **{"server.drain_seconds": 0.05})
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(serving(settings, engine))
        headers = bearer(key) | {"x-simulate-chunk-ms": "600000"}
        url = f"{worker.base_url}/chat/completions"
        async with session.post(url, json={**CHAT, "stream": True}, headers=headers) as response:
            await response.content.readuntil(b"\n\n")
            await stack.aclose()
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.read()
    with reading(engine, "ledger", "test") as connection:
        (event,) = connection.execute(select(usage_events)).mappings()
    assert (event["outcome"], event["status"], event["estimated"]) == ("unavailable", 200, True)
    assert requests_by_outcome(worker) == {"unavailable": 1}
    assert worker.metrics.registry.get_sample_value("tollgate_in_flight_requests") == 0

    async def stopped() -> bool:
        return simulator.stats.in_flight == 0

    await until(stopped)
    assert simulator.stats.cut_by_client == 1


@pytest.mark.parametrize("how", ["cancel", "drain"])
@pytest.mark.parametrize("temperature", [0, 1])
async def test_who_waits_when_the_time_to_drain_is_up_is_told_so(
    tmp_path, simulator, engine, key, session, how, temperature
):
    more = {"server.drain_seconds": 0.2, "streams.on_disconnect": how}
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(serving(settings_of(tmp_path, simulator, **more), engine))
        headers = bearer(key) | {"x-simulate-delay-ms": "600000"}
        body = {**CHAT, "temperature": temperature}
        asking = asyncio.create_task(session.post(f"{worker.base_url}/chat/completions", json=body, headers=headers))

        async def is_asked() -> bool:
            return simulator.stats.in_flight == 1

        await until(is_asked)
        await stack.aclose()
        async with await asking as response:
            assert response.status == 503
            assert (await response.json())["error"]["code"] == "server_is_overloaded"
    with reading(engine, "ledger", "test") as connection:
        (event,) = connection.execute(select(usage_events)).mappings()
    assert (event["outcome"], event["status"], event["estimated"]) == ("unavailable", 503, True)
    assert event["output_tokens"] == 1_024, "upstream was at work: it is charged what was reserved"
    assert requests_by_outcome(worker) == {"unavailable": 1}
    assert worker.metrics.registry.get_sample_value("tollgate_in_flight_requests") == 0

    async def stopped() -> bool:
        return simulator.stats.in_flight == 0

    await until(stopped)
    assert simulator.stats.cut_by_client == 1


async def test_a_client_that_leaves_during_the_drain_is_no_doing_of_ours(settings, engine, key, simulator):
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(serving(settings, engine))
        headers = bearer(key) | {"x-simulate-delay-ms": "600000"}
        async with aiohttp.ClientSession() as own:
            asking = asyncio.create_task(own.post(f"{worker.base_url}/chat/completions", json=CHAT, headers=headers))

            async def is_asked() -> bool:
                return simulator.stats.in_flight == 1

            await until(is_asked)
            leaving = asyncio.create_task(stack.aclose())

            async def draining() -> bool:
                return worker.operations.draining

            await until(draining)
            asking.cancel()
            await asyncio.wait([asking])
        await leaving
    assert requests_by_outcome(worker) == {"client_gone": 1}


async def test_what_a_dead_worker_left_is_charged_at_the_next_start(settings, engine, key):
    async with serving(settings, engine) as worker:
        at_ms = worker.services.clock.now_ms()
        event_id = uuid7(at_ms, bytes(10))
        worker.ledger.begin(
            Dispatch(event_id, at_ms, "req_1", "growth", "k", "chat", "gpt-4o-mini", "openai", 10, 20, None)
        )
    with reading(engine, "ledger", "test") as connection:
        (event,) = connection.execute(select(usage_events)).mappings()
    assert (event["outcome"], event["input_tokens"], event["output_tokens"]) == ("interrupted", 10, 20)


async def test_the_log_has_a_line_for_each_request_and_no_secret(settings, engine, key, session, capsys):
    async with serving(settings, engine) as worker:
        for sent in (bearer(key), bearer("sk-tg_wrong"), {}):
            url = f"{worker.base_url}/chat/completions"
            async with session.post(url, json=CHAT, headers=sent) as response:
                await response.read()
    out = capsys.readouterr().out
    assert [json.loads(line)["status"] for line in out.splitlines()] == [200, 401, 401]
    assert key not in out
    assert "sk-upstream" not in out


@pytest.mark.parametrize("reader", ["stalls", "is gone"])
async def test_whoever_reads_the_log_holds_up_nobody(settings, engine, key, session, monkeypatch, reader):
    read, write = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # elsewhere they are small
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4_096)
    with os.fdopen(write, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        if reader == "is gone":
            os.close(read)
        async with serving(settings, engine) as worker:
            monkeypatch.undo()
            for _ in range(30):
                async with session.get(f"{worker.base_url}/models", headers=bearer(key)) as response:
                    assert response.status == 200

            def lost() -> float:
                return worker.metrics.registry.get_sample_value("tollgate_log_lines_dropped_total")

            async def all_lost() -> bool:
                return lost() == 30

            if reader == "is gone":
                await until(all_lost)
            else:
                assert lost() == 0
                # More than the pipe holds: they wait, and we do not.
                assert not worker.equipment.log.written(0.05)
                got = b""
                while got.count(b"\n") < 30:
                    got += await asyncio.to_thread(os.read, read, 65_536)
                assert {json.loads(line)["status"] for line in got.splitlines()} == {200}
                os.close(read)
