"""What changes of teams and keys have in common: one transaction each, one at a time, audited, seen by every worker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from proxy.adapters.sql.agreement import agree
from proxy.adapters.sql.engine import reading, writing
from proxy.adapters.sql.rows import budgets_in, cache_salts_of, key_of, model_limits_of, secrets_in, team_of
from proxy.adapters.sql.tables import (
    api_keys,
    audit_log,
    budgets,
    cache_salts,
    config_revision,
    key_secrets,
    model_limits,
    teams,
)
from proxy.core.keys import PepperKeeper, Peppers, kid_of
from proxy.core.names import is_name
from proxy.core.principal import HEAVIEST_WEIGHT, LONGEST_MAX_WAIT_MS, KeyRecord, Team
from proxy.core.registry import BadValue, KeyUnknown, TeamUnknown
from proxy.core.tiers import LARGEST_LIMIT, Limits
from proxy.ports import Clock

__all__ = ["Changes", "check_numbers", "key_in", "team_in"]

_LARGEST = {
    **dict.fromkeys((*Limits.__slots__, "max_parallel"), LARGEST_LIMIT),
    "weight": HEAVIEST_WEIGHT,
    "max_wait_ms": LONGEST_MAX_WAIT_MS,
}
_ALWAYS = "weight"
"""What is never absent."""


class Changes:
    """A part of the registry. `actor` is who the audit log names."""

    def __init__(self, engine: Engine, clock: Clock, peppers: PepperKeeper, actor: str = "cli") -> None:
        self._engine = engine
        self._clock = clock
        self._peppers = peppers
        self._actor = actor
        self.ended: list[str] = []
        """Ids of keys of which something was ended here at once."""

    @contextmanager
    def _change(self, operation: str) -> Iterator[Connection]:
        """A transaction that waits for the one before it, so that what it has read stays true until it is committed."""
        with writing(self._engine, "registry", operation) as connection:
            yield connection

    @contextmanager
    def _look(self, operation: str) -> Iterator[Connection]:
        with reading(self._engine, "registry", operation) as connection:
            yield connection

    def _agreed(self, connection: Connection) -> Peppers:
        """The peppers of this machine, which are those of the database. Raises `PepperMismatch`."""
        found = self._peppers.latest()
        agree(connection, found, self._clock.now_ms())
        return found

    def _note(
        self, connection: Connection, action: str, subject: str, team: str | None, details: Mapping[str, object]
    ) -> None:
        """Keep the change in the audit log and have every worker see it: once for each, in its transaction."""
        connection.execute(update(config_revision).values(revision=config_revision.c.revision + 1))
        connection.execute(
            insert(audit_log).values(
                at_ms=self._clock.now_ms(),
                actor=self._actor,
                action=action,
                subject=subject,
                team=team,
                details=msgspec.json.encode(details).decode(),
            )
        )


def team_in(connection: Connection, name: str) -> Team:
    """The team of this name. Raises `TeamUnknown`."""
    query = select(teams).where(teams.c.name == name)
    row = connection.execute(query).mappings().first() if is_name(name) else None
    if row is None:
        raise TeamUnknown(name)
    limits = connection.execute(select(model_limits).where(model_limits.c.team == name)).mappings()
    salts = connection.execute(select(cache_salts).where(cache_salts.c.team == name)).mappings()
    own = budgets_in(connection, budgets.c.team == name, budgets.c.kid == "")
    return team_of(
        row, model_limits_of(limits).get(name, {}), cache_salts_of(salts).get(name, {}), own.get((name, ""), ())
    )


def key_in(connection: Connection, text: str) -> KeyRecord:
    """The key with this id, or beginning `sk-tg_<kid>`. Raises `KeyUnknown`."""
    kid = kid_of(text)
    row = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first() if kid else None
    if row is None:
        raise KeyUnknown(kid or "")
    own = budgets_in(connection, budgets.c.team == row["team"], budgets.c.kid == kid)
    secrets = secrets_in(connection, key_secrets.c.kid == kid)
    return key_of(row, secrets.get(row["kid"], ()), own.get((row["team"], row["kid"]), ()))


def check_numbers(values: Mapping[str, object]) -> None:
    """Raise `BadValue` for a number that its column does not take."""
    for name, largest in _LARGEST.items():
        number = values.get(name)
        if number is None and (name not in values or name != _ALWAYS):
            continue
        if not isinstance(number, int) or not 0 < number <= largest:
            raise BadValue(name, f"must be a whole number from 1 to {largest}")
