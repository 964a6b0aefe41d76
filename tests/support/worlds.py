"""Databases as they are after a month of use, filled in seconds: teams, keys that open, and a ledger of requests.

What a key is and how it is hashed, and what a daily total counts, is the product's own code; rows are inserted many at
a time, and events are made by the database itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, insert, text, update

from proxy.adapters.secrets import load_or_create_pepper
from proxy.adapters.sql.engine import open_engine
from proxy.adapters.sql.measures import MEASURES
from proxy.adapters.sql.migrate import migrate
from proxy.adapters.sql.rows import secret_values
from proxy.adapters.sql.tables import (
    api_keys,
    audit_log,
    config_revision,
    key_secrets,
    teams,
    usage_daily,
    usage_events,
)
from proxy.adapters.sql.usage import counted_from_events
from proxy.app.database import SQLITE_FILE
from proxy.core.keys import Peppers, make_key
from proxy.core.principal import CacheMode, KeySecret

__all__ = ["MODELS", "World", "fill", "kid_of", "team_name"]

MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-4.1", "gpt-4.1-mini", "o4-mini")
_DAYS = 30
_DAY_MS = 86_400_000
_UNLIMITED = 1_000_000_000
_AT_ONCE = 2_000


@dataclass(frozen=True, slots=True)
class World:
    """What there is of each."""

    name: str
    teams: int
    keys: int
    """In all; each team has as many as the others, or one more."""
    events: int
    """Over the last 30 days, among the teams in turn."""
    label_sets: int
    """Pairs of a team and a model that have used anything."""


def fill(world: World, data_dir: Path, now_ms: int | None = None) -> list[str]:
    """Make the world's database in a data directory; returns the keys: key `n` is one of team `n % teams`.

    `now_ms`: when its last day is, if that is not today.
    """
    engine = open_engine(data_dir / SQLITE_FILE)
    try:
        migrate(engine)
        peppers = load_or_create_pepper(data_dir).latest()
        now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
        made = [make_key(number.to_bytes(48, "big"), kid_of(number)) for number in range(world.keys)]
        with engine.begin() as connection:
            _insert(connection, teams, (_team(number, now_ms) for number in range(world.teams)))
            _insert(
                connection, api_keys, (_key(kid, number % world.teams, now_ms) for number, (kid, _) in enumerate(made))
            )
            _insert(connection, key_secrets, (_secret(kid, key, peppers, now_ms) for kid, key in made))
            _note(connection, world, now_ms)
            _add_events(connection, world, now_ms)
    finally:
        engine.dispose()
    return [key for _, key in made]


def team_name(number: int) -> str:
    """What a team of the world is called."""
    return f"team-{number:05}"


def kid_of(number: int) -> str:
    """The id of a key of the world."""
    return f"{number:012}"


def _insert(connection: Connection, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == _AT_ONCE:
            connection.execute(insert(table), some)
            some = []
    if some:
        connection.execute(insert(table), some)


def _team(number: int, now_ms: int) -> dict[str, Any]:
    return {
        "name": team_name(number),
        "tier": "payg",
        "tier_since_ms": now_ms,
        # Counted, and never reached.
        "requests_per_minute": _UNLIMITED,
        "tokens_per_minute": _UNLIMITED,
        "cache_mode": CacheMode.DETERMINISTIC.value,
        "allow_stateful": False,
        "created_at_ms": now_ms,
        "cache_secret": number.to_bytes(32, "big"),
        "weight": 1,
    }


def _key(kid: str, team: int, now_ms: int) -> dict[str, Any]:
    return {"kid": kid, "team": team_name(team), "label": "", "created_at_ms": now_ms, "created_by": "bench"}


def _secret(kid: str, key: str, peppers: Peppers, now_ms: int) -> dict[str, Any]:
    version, secret_hash = peppers.hash(key)
    return secret_values(kid, KeySecret(serial=1, pepper_id=version, secret_hash=secret_hash, created_at_ms=now_ms))


def _note(connection: Connection, world: World, now_ms: int) -> None:
    """The audit log and the revision of that many changes."""
    shared = {"at_ms": now_ms, "actor": "bench", "details": "{}"}
    _insert(
        connection,
        audit_log,
        (
            shared | {"action": "team.add", "subject": team_name(number), "team": team_name(number)}
            for number in range(world.teams)
        ),
    )
    _insert(
        connection,
        audit_log,
        (
            shared | {"action": "key.issue", "subject": kid_of(number), "team": team_name(number % world.teams)}
            for number in range(world.keys)
        ),
    )
    connection.execute(update(config_revision).values(revision=world.teams + world.keys))


def _add_events(connection: Connection, world: World, now_ms: int) -> None:
    if not world.events:
        return
    # Event i is of pair i % label_sets; each pair has one team, one model and one key.
    pair, first_day = "(i % :pairs)", now_ms // _DAY_MS - _DAYS + 1
    day = f"({first_day} + i / :pairs % {_DAYS})"
    made = f"printf('%012x', {day} * {_DAY_MS} + i % {_DAY_MS})"
    team = f"({pair} % :teams)"
    model = " ".join(f"WHEN {number} THEN '{name}'" for number, name in enumerate(MODELS))
    constants = {
        "at_ms": f"{day} * {_DAY_MS} + i % {_DAY_MS}", "request_id": "'req'", "endpoint": "'chat'",
        "upstream": "'openai'", "status": "200", "outcome": "'ok'", "price_id": "'m'", "estimated": "0",
        "attempts": "1", "duration_ms": "1", "input_tokens": "100 + i % 900", "output_tokens": "i % 500",
        "cost_pico_usd": "1000000 + i", "team": f"printf('team-%05d', {team})",
        # The keys of a team are its number, that of the next one with as many teams more, and so on.
        "key_id": f"printf('%012d', {team})", "model": f"CASE {pair} / :teams % {len(MODELS)} {model} END",
        "day": f"date({day} * 86400, 'unixepoch')",
        "event_id": f"substr({made}, 1, 8) || '-' || substr({made}, 9) || '-7000-8000-' || printf('%012x', i)",
    }  # fmt: skip
    values = ", ".join(constants.get(column.name, "0") for column in usage_events.c)
    names = ", ".join(column.name for column in usage_events.c)
    numbers = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < :events)"
    # All of it is written in this file.
    statement = f"INSERT INTO usage_events ({names}) {numbers} SELECT {values} FROM n"
    given = {"events": world.events, "pairs": world.label_sets, "teams": world.teams}
    connection.execute(text(statement), given)
    daily = [*usage_daily.primary_key.columns.keys(), *MEASURES]
    connection.execute(insert(usage_daily).from_select(daily, counted_from_events()))
