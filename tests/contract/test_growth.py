"""What a request, a start and a look cost does not hang on how many teams, keys and events there are.

Cost is counted in steps of SQLite's virtual machine and in rows that are fetched: the same on any machine.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine, event

from proxy.adapters.clock import SystemClock
from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.key_store import SqlKeyStore
from proxy.adapters.sql.ledger_store import SqlLedgerStore
from proxy.adapters.sql.registry import SqlRegistry
from proxy.adapters.sql.spend import SqlSpendLedger
from proxy.adapters.sql.usage import SqlUsageReports
from proxy.adapters.sql.uses import latest_uses
from proxy.app.database import SQLITE_FILE
from proxy.core.budget import Period, minute_of, span_of
from proxy.core.event import UsageEvent
from proxy.core.ids import uuid7
from proxy.core.registry import Axis
from tests.support.ledger_records import event as usage_event
from tests.support.worlds import World, fill, kid_of, team_name

SMALL = World("small", teams=200, keys=400, events=40_000, label_sets=1_000)
"""As much as is looked at of anything that has no end."""
LARGE = World("large", teams=2_000, keys=8_000, events=160_000, label_sets=4_000)
NOW_MS = 1_781_697_600_000
"""2026-06-17, 12:00 UTC: in the midst of a month, a day and a minute."""
_FRAME_BYTES = 4_096 + 24
_STEPS = 10
"""Of the virtual machine, between two that are counted."""


@dataclass
class Place:
    """A world, and what it takes to ask it something."""

    engine: Engine
    directory: Path
    keys: list[str]
    steps: int = 0

    def cost(self, work: Callable[[Place], object]) -> int:
        """Steps that the work takes of the database, once what it prepares is prepared."""
        work(self)
        before = self.steps
        work(self)
        return self.steps - before


def place(world: World, directory: Path) -> Place:
    directory.mkdir()
    keys = fill(world, directory, NOW_MS)
    engine = open_engine(directory / SQLITE_FILE)
    made = Place(engine, directory, keys)

    def count() -> None:
        made.steps += 1

    event.listen(engine, "connect", lambda connection, _: connection.set_progress_handler(count, _STEPS))
    return made


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    directory = tmp_path_factory.mktemp("worlds")
    made = [place(world, directory / world.name) for world in (SMALL, LARGE)]
    yield made
    for each in made:
        each.engine.dispose()


def registry(at: Place) -> SqlRegistry:
    return SqlRegistry(at.engine, SystemClock(), load_or_create_pepper(at.directory))


def authenticate(at: Place) -> None:
    found = asyncio.run(SqlKeyStore(at.engine).find(kid_of(150)))
    assert found is not None
    assert found[1].name == team_name(150)


def issue_and_revoke(at: Place) -> None:
    changes = registry(at)
    changes.revoke_key(changes.issue_key(team_name(3)).record.kid)


def take_over(at: Place) -> None:
    assert SqlLedgerStore(at.engine).take_over([usage_event(next(_numbers)) for _ in range(50)], "w/1", 1) == 50


_numbers = iter(range(10**6, 10**7))


def spent_of_a_month(at: Place) -> None:
    SqlSpendLedger(at.engine).read(team_name(5), "team", span_of(Period.MONTH, NOW_MS), minute_of(NOW_MS))


def usage_of_a_team(at: Place) -> None:
    assert SqlUsageReports(at.engine).usage((Axis.DAY,), None, None, team_name(5))


def budgets_of_a_team(at: Place) -> None:
    registry(at).budgets_spent(NOW_MS, team_name(5))


@pytest.mark.parametrize(
    "work",
    [
        authenticate,
        issue_and_revoke,
        take_over,
        spent_of_a_month,
        usage_of_a_team,
        budgets_of_a_team,
        lambda at: asyncio.run(SqlKeyStore(at.engine).revision()),
        lambda at: asyncio.run(SqlKeyStore(at.engine).note_uses({kid_of(1): NOW_MS})),
        lambda at: latest_uses(at.engine),
        lambda at: registry(at).team_names(100),
        lambda at: registry(at).team_budgets(),
    ],
)
def test_a_database_of_many_answers_with_the_same_work(worlds, work):
    small, large = (each.cost(work) for each in worlds)
    assert small > 0
    assert large <= 1.1 * small + 5


def test_a_change_is_seen_with_the_same_work_however_many_there_have_been(worlds):
    costs = []
    for each in worlds:
        store = SqlKeyStore(each.engine)
        seen = asyncio.run(store.changes(None))
        assert len(seen.teams) == min(200, len(each.keys)), "the newest, and no more"
        registry(each).set_team(team_name(7), weight=2)
        before = each.steps
        assert asyncio.run(store.changes(seen)).changed == frozenset({team_name(7)})
        costs.append(each.steps - before)
    small, large = costs
    assert small > 0
    assert large <= 1.1 * small + 5


def pages_written(at: Place, events: list[UsageEvent]) -> int:
    """Pages that SQLite changes to take the events over."""
    wal = at.directory / f"{SQLITE_FILE}-wal"
    with closing(sqlite3.connect(at.directory / SQLITE_FILE)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert SqlLedgerStore(at.engine).take_over(events, "w/1", 1) == len(events)
    return wal.stat().st_size // _FRAME_BYTES


def copy_of(source: Place, directory: Path) -> Place:
    """The same world, to be changed by itself: work on the others is compared."""
    with (
        closing(sqlite3.connect(source.directory / SQLITE_FILE)) as theirs,
        closing(sqlite3.connect(directory / SQLITE_FILE)) as ours,
    ):
        theirs.backup(ours)
    return Place(open_engine(directory / SQLITE_FILE), directory, source.keys)


def test_events_of_many_teams_are_added_to_few_pages(worlds, tmp_path):
    """However many events there are: what they are added to begins with the day."""
    chance = random.Random(1)

    def made(number: int) -> UsageEvent:
        at_ms = NOW_MS + number
        team, event_id = team_name(number * 7), uuid7(at_ms, chance.randbytes(10))
        return replace(usage_event(1), team=team, key_id=kid_of(number * 7), event_id=event_id, at_ms=at_ms)

    large = copy_of(worlds[-1], tmp_path)
    pages_written(large, [made(number) for number in range(250)])
    assert pages_written(large, [made(number) for number in range(250)]) < 250
    large.engine.dispose()
