"""The steps' equipment as it is on one machine, on a clock that is set by hand."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Engine, event, select, text

from proxy.adapters.ledger import SpoolLedger
from proxy.adapters.logs import RequestLog, json_line
from proxy.adapters.memory.cache import MemoryCache
from proxy.adapters.memory.limiter import MemoryLimiter
from proxy.adapters.openai import OpenAIUpstream, open_session
from proxy.adapters.price_file import load_prices
from proxy.adapters.prometheus import Metrics
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine, reading
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.tables import usage_events
from proxy.adapters.telemetry import Telemetry
from proxy.core.bucket import Scope
from proxy.core.chat import parse_chat
from proxy.core.ids import uuid7
from proxy.core.strict_json import parse_object
from proxy.core.tiers import DEFAULT_TIERS, Limits, Schedule
from proxy.pipeline.catalogue import Catalogue
from proxy.pipeline.exchange import Exchange
from proxy.pipeline.flights import Flights
from proxy.pipeline.principals import Principals
from proxy.pipeline.services import Policy, Services
from proxy.pipeline.upstreams import Upstreams
from proxy.web.errors import status_of
from tests.support.schema import put_database
from tests.support.tasks import Tasks

NOW_MS = 1_800_000_000_000
LIMITS = {"requests_per_minute": 100, "tokens_per_minute": 10_000}


class ManualClock:
    def __init__(self) -> None:
        self.ms = NOW_MS

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ns(self) -> int:
        # Another origin, so that the two are never taken for one another.
        return (self.ms - NOW_MS + 5_000_000) * 1_000_000


class Database:
    """An SQLite file that can be counted and taken away."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.key_look_ups = 0
        event.listen(engine, "before_cursor_execute", self._count)

    def _count(self, _connection, _cursor, statement: str, *_: object) -> None:
        self.key_look_ups += "FROM api_keys" in statement and statement.startswith("SELECT")

    def take_away(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("ALTER TABLE api_keys RENAME TO away"))

    def bring_back(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO api_keys"))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    engine = open_engine(put_database(tmp_path / "tollgate.sqlite3"))
    yield Database(engine)
    engine.dispose()


@pytest.fixture
def registry(database: Database, clock: ManualClock, tmp_path: Path) -> SqlRegistry:
    registry = SqlRegistry(database.engine, clock, load_or_create_pepper(tmp_path))
    registry.add_team("growth", "free", **LIMITS)
    return registry


@pytest.fixture
def key_store(database: Database) -> SqlKeyStore:
    return SqlKeyStore(database.engine)


@dataclass
class Bench:
    """Services, and an exchange that has been authenticated and interpreted."""

    services: Services
    clock: ManualClock
    database: Database
    metrics: Metrics
    ledger: SpoolLedger
    key: str

    async def exchange(self, body: bytes, *, headers: dict[str, str] | None = None, query: str = "") -> Exchange:
        now_ms = self.clock.now_ms()
        event_id = uuid7(now_ms, bytes(10))
        exchange = Exchange(
            event_id=event_id,
            request_id="req_1",
            client_request_id="",
            at_ms=now_ms,
            started_ns=self.clock.monotonic_ns(),
            method="POST",
            path="/chat/completions",
            query=query,
            endpoint="chat",
            headers=headers or {},
        )
        exchange.principal = await self.services.principals.of(self.key)
        exchange.asked = parse_chat(parse_object(body), body)
        exchange.price = self.services.prices.price(exchange.asked.model, now_ms)
        return exchange

    def with_policy(self, **changes: Any) -> Services:
        return replace(self.services, policy=replace(self.services.policy, **changes))

    async def charged(self) -> tuple[int, int]:
        """Requests and tokens that the team's bucket lacks."""
        limits = Limits(**LIMITS)
        scope = Scope("team", Schedule(limits, limits))
        (standing,) = await self.services.limiter.peek("growth", [scope])
        return LIMITS["requests_per_minute"] - standing.requests.remaining, (
            LIMITS["tokens_per_minute"] - standing.tokens.remaining
        )

    async def events(self) -> list[dict[str, Any]]:
        await self.ledger.ship_once()
        with reading(self.database.engine, "ledger", "test") as connection:
            return [dict(row) for row in connection.execute(select(usage_events)).mappings()]


@pytest_asyncio.fixture
async def bench(
    tmp_path: Path, clock: ManualClock, database: Database, registry: SqlRegistry, key_store: SqlKeyStore
) -> AsyncIterator[Bench]:
    prices = load_prices(None)
    metrics = Metrics(frozenset(prices.models()).__contains__)
    telemetry = Telemetry(metrics, RequestLog(json_line, lambda _: None, io.StringIO()))
    ledger = SpoolLedger(tmp_path / "spool", SqlLedgerStore(database.engine), prices, telemetry, clock)
    tasks = Tasks()
    async with open_session(max_connections=1, connect_seconds=1, idle_seconds=1) as session:
        services = Services(
            policy=Policy(tiers=DEFAULT_TIERS, default_tier="free"),
            clock=clock,
            principals=Principals(key_store, load_or_create_pepper(tmp_path), clock),
            prices=prices,
            limiter=MemoryLimiter(clock),
            cache=MemoryCache(clock, max_bytes=1_000_000),
            ledger=ledger,
            upstreams=Upstreams.single(OpenAIUpstream("openai", "http://127.0.0.1:9/v1", None, session)),
            telemetry=telemetry,
            catalogue=Catalogue(),
            flights=Flights(),
            spawn=tasks,
            status_of=status_of,
        )
        key = registry.issue_key("growth", label="test").key
        yield Bench(services, clock, database, metrics, ledger, key)
        await tasks.finished()
        await ledger.close()
