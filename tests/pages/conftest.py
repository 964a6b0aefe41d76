"""A browser for all tests of a worker, and a gateway with a month behind it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import pytest
import requests

from proxy.core.budget import Period
from tests.support.browser import Browser, run_browser
from tests.support.days import day_that_lasts
from tests.support.tollgate_process import Simulator, Team, Tollgate, run_simulator, run_tollgate

USD = 1_000_000_000_000


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with run_browser() as running:
        yield running


@pytest.fixture(scope="session")
def simulator(tmp_path_factory) -> Iterator[Simulator]:
    with run_simulator(tmp_path_factory.mktemp("simulator"), "sk-upstream-4hQx8vYt1kPz") as running:
        yield running


def used(gateway: Tollgate, team: Team, day: date, model: str, *, cost: int, saved: int = 0, requests: int = 1) -> None:
    """Have the ledger's daily totals tell of it."""
    path = f"file:{gateway.data_dir}/tollgate.sqlite3?mode=rw"
    with closing(sqlite3.connect(path, uri=True, timeout=20)) as database, database:
        columns = [row[1] for row in database.execute("pragma table_info(usage_daily)")]
        told = {
            **dict.fromkeys(columns, 0),
            "day": day.isoformat(),
            "team": team.name,
            "key_id": team.kid,
            "model": model,
            "upstream": "openai",
            "endpoint": "chat",
            "requests": requests,
            "cached": requests // 4,
            "input_tokens": 1_000 * requests,
            "cost_pico_usd": cost,
            "saved_pico_usd": saved,
        }
        marks = ",".join("?" * len(columns))
        database.execute(f"insert into usage_daily values ({marks})", [told[column] for column in columns])


@contextmanager
def without(gateway: Tollgate, table: str) -> Iterator[None]:
    """Have the database answer nothing that is asked of one table."""

    def rename(before: str, after: str) -> None:
        path = f"file:{gateway.data_dir}/tollgate.sqlite3?mode=rw"
        with closing(sqlite3.connect(path, uri=True, timeout=20)) as database, database:
            database.execute(f"ALTER TABLE {before} RENAME TO {after}")

    rename(table, "away")
    try:
        yield
    finally:
        rename("away", table)


@dataclass(frozen=True)
class Place:
    """A gateway, and who is there."""

    gateway: Tollgate
    growth: Team
    search: Team
    today: date

    def ask(self, team: Team | None = None, model: str = "gpt-4o-mini", **more: object) -> int:
        """The status of one completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4, **more}
        headers = {"Authorization": "Bearer nobody"} if team is None else team.headers
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.gateway.base_url}/chat/completions"
            return session.post(url, json=body, headers=headers, timeout=30).status_code


@contextmanager
def run_place(simulator: Simulator, directory: Path, today: date) -> Iterator[Place]:
    """Two teams, of which one has spent most of its budget and the other has no room left under its limit."""
    with run_tollgate(directory, simulator.base_url, simulator.key) as gateway:
        month = {Period.MONTH: {"limit_nano_usd": 500 * 10**9, "warn_nano_usd": 100 * 10**9}}
        growth = gateway.add_team("growth", "unlimited", budgets=month)
        search = gateway.add_team("search", requests_per_minute=1, request_capacity=2)
        for back in range(today.day):
            day = today - timedelta(days=back)
            used(gateway, growth, day, "gpt-4o", cost=20 * USD + back, saved=USD, requests=40)
            used(gateway, search, day, "gpt-4o-mini", cost=USD // 8, requests=3)
        there = Place(gateway, growth, search, today)
        assert [there.ask(search) for _ in range(4)] == [200, 200, 429, 429]
        assert there.ask(growth, "<script>alert(1)</script>") == 404
        assert [there.ask() for _ in range(3)] == [401] * 3
        gateway.events("search", 2)
        yield there


@pytest.fixture(scope="session")
def _place_of(simulator, tmp_path_factory) -> Iterator[Callable[[date], Place]]:
    """The place of a day, which is the same one all day."""
    with ExitStack() as stack:
        latest: list[Place] = []

        def of(today: date) -> Place:
            if not latest or latest[-1].today != today:
                stack.close()
                directory = tmp_path_factory.mktemp("gateway")
                latest.append(stack.enter_context(run_place(simulator, directory, today)))
            return latest[-1]

        yield of


@pytest.fixture
def place(_place_of) -> Place:
    """A gateway with a month behind it, for as long as it is today."""
    return _place_of(day_that_lasts())
