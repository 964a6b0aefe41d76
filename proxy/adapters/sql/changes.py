"""What changes of teams and keys have in common: one transaction each, one at a time, audited, seen by every worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from proxy.adapters.sql.engine import reading, writing
from proxy.adapters.sql.rows import cache_salts_of, key_of, model_limits_of, team_of
from proxy.adapters.sql.tables import api_keys, audit_log, cache_salts, config_revision, model_limits, teams
from proxy.core.keys import Peppers, kid_of
from proxy.core.principal import KeyRecord, Team
from proxy.core.registry import BadValue, KeyUnknown, TeamUnknown
from proxy.core.tiers import LARGEST_LIMIT, Limits
from proxy.ports import Clock

__all__ = ["Changes", "check_model", "check_numbers", "key_in", "team_in"]

_MAX_MODEL_CHARACTERS = 256
_NUMBERS = (*Limits.__slots__, "max_parallel")


class Changes:
    """A part of the registry. `actor` is who the audit log names."""

    def __init__(self, engine: Engine, clock: Clock, peppers: Peppers, actor: str = "cli") -> None:
        self._engine = engine
        self._clock = clock
        self._peppers = peppers
        self._actor = actor

    @contextmanager
    def _change(self, operation: str) -> Iterator[Connection]:
        """A transaction that waits for the one before it, so that what it has read stays true until it is committed."""
        with writing(self._engine, "registry", operation) as connection:
            # On SQLite the transaction itself is the lock.
            connection.execute(select(config_revision.c.revision).with_for_update())
            yield connection

    @contextmanager
    def _look(self, operation: str) -> Iterator[Connection]:
        with reading(self._engine, "registry", operation) as connection:
            yield connection

    def _note(self, connection: Connection, action: str, subject: str, details: Mapping[str, object]) -> None:
        connection.execute(update(config_revision).values(revision=config_revision.c.revision + 1))
        connection.execute(
            insert(audit_log).values(
                at_ms=self._clock.now_ms(),
                actor=self._actor,
                action=action,
                subject=subject,
                details=msgspec.json.encode(details).decode(),
            )
        )


def team_in(connection: Connection, name: str) -> Team:
    """The team of this name. Raises `TeamUnknown`."""
    row = connection.execute(select(teams).where(teams.c.name == name)).mappings().first()
    if row is None:
        raise TeamUnknown(name)
    limits = connection.execute(select(model_limits).where(model_limits.c.team == name)).mappings()
    salts = connection.execute(select(cache_salts).where(cache_salts.c.team == name)).mappings()
    return team_of(row, model_limits_of(limits).get(name, {}), cache_salts_of(salts).get(name, {}))


def key_in(connection: Connection, text: str) -> KeyRecord:
    """The key with this id, or beginning `sk-tg_<kid>`. Raises `KeyUnknown`."""
    kid = kid_of(text)
    row = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first() if kid else None
    if row is None:
        raise KeyUnknown(kid or "")
    return key_of(row)


def check_numbers(values: Mapping[str, object]) -> None:
    """Raise `BadValue` for a limit that is none."""
    for name in _NUMBERS:
        number = values.get(name)
        if number is not None and (not isinstance(number, int) or not 0 < number <= LARGEST_LIMIT):
            raise BadValue(name, f"must be a whole number from 1 to {LARGEST_LIMIT}")


def check_model(model: str) -> None:
    """Raise `BadValue` for what is no name of a model."""
    if not 0 < len(model) <= _MAX_MODEL_CHARACTERS or not model.isprintable():
        raise BadValue("model", f"must be printable, and 1 to {_MAX_MODEL_CHARACTERS} characters")
