"""Keys and teams as the request path reads them."""

from __future__ import annotations

import asyncio

from sqlalchemy import Engine, select

from proxy.adapters.sql.engine import reading
from proxy.adapters.sql.rows import cache_salts_of, key_of, model_limits_of, team_of
from proxy.adapters.sql.tables import api_keys, cache_salts, config_revision, model_limits, teams
from proxy.core.principal import KeyRecord, Team

__all__ = ["SqlKeyStore"]


class SqlKeyStore:
    """The key store of an SQL database; implements `ports.KeyStore`.

    Each call takes a thread, so that a slow database holds up no other request.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, kid: str) -> tuple[KeyRecord, Team] | None:
        """The key with this id and its team, whatever its state, or None. Raises `StoreAway`."""
        return await asyncio.to_thread(self._find, kid)

    async def revision(self) -> int:
        """A number that grows with every change of a key or team, by whatever process. Raises `StoreAway`."""
        return await asyncio.to_thread(self.read_revision)

    def _find(self, kid: str) -> tuple[KeyRecord, Team] | None:
        with reading(self._engine, "keys", "find") as connection:
            key = connection.execute(select(api_keys).where(api_keys.c.kid == kid)).mappings().first()
            if key is None:
                return None
            name = key["team"]
            team = connection.execute(select(teams).where(teams.c.name == name)).mappings().one()
            limits = connection.execute(select(model_limits).where(model_limits.c.team == name)).mappings()
            salts = connection.execute(select(cache_salts).where(cache_salts.c.team == name)).mappings()
            return key_of(key), team_of(
                team, model_limits_of(limits).get(name, {}), cache_salts_of(salts).get(name, {})
            )

    def read_revision(self) -> int:
        """Read the revision on the caller's own thread. Raises `StoreAway`."""
        with reading(self._engine, "keys", "revision") as connection:
            revision: int = connection.execute(select(config_revision.c.revision)).scalar_one()
        return revision
